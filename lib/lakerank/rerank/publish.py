"""Rank a scored run, audit the lists and, if they pass, publish them: one create-only manifest, then one pointer."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakerank.audit import TOP, Bounds, Check, Findings, GoldenQuality, LastRun, LostPairs, RunCounts, audit
from lakerank.errors import requires
from lakerank.lake.checksums import json_bytes
from lakerank.lake.publication import Publication, discard_unpublished, run_before, set_aside, settle
from lakerank.lake.runs import RunPaths, read_manifest
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, read_table_file
from lakerank.logs import about
from lakerank.plan.index import ranked_files
from lakerank.rerank.compare import ComparedLists, Comparison
from lakerank.rerank.rank.lists import write_lists
from lakerank.rerank.rank.write import ListFolders
from lakerank.rerank.stage import Audited, Ranked, ScoredRun, manifest_of
from lakerank.runner import Runner
from lakerank.schemas import GOLDEN

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Override:
    """Why a run is to be published whatever the audit finds, and who decided so."""

    reason: str
    by: str


@dataclass(frozen=True, slots=True)
class AuditRules:
    """Bounds of the audit, and an override."""

    bounds: Bounds
    override: Override | None = None


def rank_and_publish(
    runner: Runner, storage: Storage, run: ScoredRun, rules: AuditRules
) -> tuple[dict[str, Any], Publication | None]:
    """Rank the run's scores, audit the lists and publish them if they pass or there is an override.

    The audit is written to `audit.json` in the run's folder whether it passes or not. Where it fails, the lists are set
    aside, out of `ranked/`.

    Returns:
        The manifest, and what the pointer says of the run; None where the audit failed. Of two drivers at one run, one
        writes the manifest and the other returns that one's.
    """
    started, paths = time.monotonic(), run.stages[0].paths
    golden = _read_golden_pairs(storage, rules.bounds.golden_pairs) if rules.bounds.golden_pairs else None
    with about(stage="rank"):
        ranked = _rank(runner, storage, run, golden or {})
    ranked_at = time.monotonic()
    with about(stage="audit"):
        last, findings = _findings(runner, storage, run, ranked, rules, golden)
        checks = audit(ranked.counts, rules.bounds, findings)
        failed = _report(storage, paths, checks)
    seconds = {"rank": ranked_at - started, "audit": time.monotonic() - ranked_at}
    manifest = manifest_of(storage, run, ranked, Audited(checks, last, seconds))
    if failed and rules.override is not None:
        logger.warning("published despite the failed audit by %s: %s", rules.override.by, rules.override.reason)
        manifest["published_anyway"] = {**asdict(rules.override), "failed_audits": failed}
    elif failed and set_aside(storage, paths):
        return manifest, None
    settled = settle(storage, paths, manifest)
    discard_unpublished(storage, paths)
    return settled


def _rank(runner: Runner, storage: Storage, run: ScoredRun, golden: Mapping[tuple[str, str], float]) -> Ranked:
    paths, plan, several = run.stages[0].paths, run.stages[0].plan, len(run.stages) > 1
    kept = run.rule.depth, run.rule.per_group, run.rule.duplicates
    folders = ListFolders(storage, paths.ranked, paths.rejected, *kept, plan.id_types, frozenset(golden))
    stages = [stage.results(storage) for stage in run.stages]
    report = write_lists(runner, stages, ranked_files(storage, paths, plan), run.rule, folders)
    ranked, rejected = (report.filter(pc.equal(report["table"], table)) for table in ("ranked", "rejected"))
    names = ["rows", "beyond_depth", "beyond_group", "collapsed", "new", "queries", "queries_listed", "truncated"]
    sums = (pc.sum(ranked[name]).as_py() for name in names)
    rows, beyond_depth, beyond_group, collapsed, new, queries, listed, truncated = sums
    scored = rows + beyond_depth + beyond_group + collapsed
    rejects = pc.sum(rejected["rows"]).as_py()
    by_stage: list[Counter[str]] = [Counter() for _ in run.stages] if several else []
    for row in chain.from_iterable(ranked["stages"].to_pylist()):
        by_stage[row["stage"] - 1][row["reason"] or ""] += row["count"]
    unscored = plan.candidates - scored - rejects
    if several:
        unscored = sum(stage.plan.new + stage.plan.reused for stage in run.stages)
        unscored -= sum(results.total() for results in by_stage)
    counts = RunCounts(
        candidates=plan.candidates,
        ranked=rows,
        beyond_depth=beyond_depth,
        beyond_group=beyond_group,
        rejected=rejects,
        unscored=unscored,
        queries=listed,
        unranked_queries=listed - queries,
        truncated=truncated,
        repeated=None if run.rule.duplicates == "keep" else pc.sum(ranked["repeated"]).as_py(),
        collapsed=collapsed,
        histogram=tuple(map(sum, zip(*ranked["histogram"].to_pylist(), strict=True))),
    )
    logits = chain.from_iterable(ranked["golden"].to_pylist())
    return Ranked(
        counts=counts,
        scored=new,
        reused=scored - new,
        labels=_count_values(ranked),
        reasons=_count_values(rejected),
        ranked_files=tuple(ranked.select(["file", "rows", "bytes"]).to_pylist()),
        rejected_files=tuple(rejected.select(["file", "rows", "bytes"]).to_pylist()),
        golden={(pair["query_id"], pair["doc_id"]): pair["logit"] for pair in logits},
        by_stage=tuple(by_stage),
    )


def _count_values(report: pa.Table) -> dict[str, int]:
    """Rows by label or reason, over all files."""
    total: Counter[str] = Counter()
    for row in chain.from_iterable(report["values"].to_pylist()):
        total[row["value"]] += row["count"]
    return dict(sorted(total.items()))


def _findings(
    runner: Runner,
    storage: Storage,
    run: ScoredRun,
    ranked: Ranked,
    rules: AuditRules,
    golden: Mapping[tuple[str, str], float] | None,
) -> tuple[str | None, Findings]:
    """The published run that the audit compares with, and all that it looks at beside the counts."""
    paths, plan, qrels = run.stages[0].paths, run.stages[0].plan, rules.bounds.golden_qrels
    last, last_run, quality = run_before(storage, paths), None, None
    manifest = None if last is None else read_manifest(storage, paths.output, last)
    if manifest is not None or qrels:
        compared = _compared_lists(run, ranked, manifest, qrels)
        comparison = compared.compare(runner, storage)
        if manifest is not None:
            last_run = _last_run(manifest, comparison, compared.depth)
        if qrels:
            drop = None if manifest is None else comparison.drop
            quality = GoldenQuality(comparison.judged, comparison.now, drop)
    lost, logits, errors = plan.dropped_from, ranked.golden, None
    if golden is not None:
        errors = {pair: abs(logits[pair] - logit) if pair in logits else None for pair, logit in golden.items()}
    return last, Findings(
        rejects=ranked.reasons,
        last=last_run,
        lost_pairs=None if lost is None else LostPairs(lost["run_id"], plan.dropped, lost["candidates"]),
        golden_errors=errors,
        golden_quality=quality,
        stages=[(sum(counts.values()) - counts.get("", 0), sum(counts.values())) for counts in ranked.by_stage],
    )


def _compared_lists(run: ScoredRun, ranked: Ranked, last: Mapping[str, Any] | None, qrels: str | None) -> ComparedLists:
    """This run's lists, those of the run of a manifest, and judgements.

    Lists are compared down to the lesser of the two depths: what the other run was cut at is no change.

    Raises:
        DependencyError: pytrec_eval is not installed here; the workers need it as well.
    """
    if qrels:
        with requires("report", "audit.golden_qrels needs pytrec_eval", ", workers included"):
            import pytrec_eval  # noqa: F401
    paths, depths = run.stages[0].paths, [TOP, run.rule.depth or TOP]
    new, old = [join(paths.ranked, file["file"]) for file in ranked.ranked_files], None
    if last is not None:
        folder = RunPaths(paths.output, last["run_id"]).ranked
        old = [join(folder, file["file"]) for file in last["ranked_files"]]
        depths.append(last["ranking"]["depth"] or TOP)
    return ComparedLists(new, old, min(depths), qrels)


def _last_run(manifest: Mapping[str, Any], comparison: Comparison, depth: int) -> LastRun:
    """How far the tops of the lists have moved since the run of a manifest."""
    counts, histogram = manifest["counts"], tuple(manifest["histogram"])
    # Manifests of earlier versions count only logits within the depth.
    within = counts["ranked"] + counts["beyond_depth"]
    whole = sum(histogram) == counts.get("beyond_group", 0) + counts.get("collapsed", 0) + within
    logits = histogram if whole else None
    return LastRun(manifest["run_id"], logits, comparison.queries, comparison.shared, comparison.churn, depth)


def _report(storage: Storage, paths: RunPaths, checks: Sequence[Check]) -> list[str]:
    """Write the audit to the run's folder and to the log; the names of what failed."""
    failed = [check.name for check in checks if check.passed is False]
    report = {"run_id": paths.run_id, "passed": not failed, "checks": [check.as_dict() for check in checks]}
    storage.replace(join(paths.folder, "audit.json"), json_bytes(report))
    for check in checks:
        value = "unknown" if check.value is None else f"{check.value:.4g}"
        bound = "no bound" if check.bound is None else f"at most {check.bound:g}"
        level = logging.ERROR if check.passed is False else logging.INFO
        verdict = "FAILED" if check.passed is False else check.verdict
        logger.log(level, "audit: %s  %s = %s (%s); %s", verdict, check.name, value, bound, check.detail)
    return failed


def _read_golden_pairs(storage: Storage, address: str) -> dict[tuple[str, str], float]:
    """The golden pairs and their logits. They are few."""
    golden: dict[tuple[str, str], float] = {}
    for fragment in fragments(storage, address, GOLDEN):
        for _, _, batch in read_table_file(storage, fragment.file, GOLDEN):
            golden |= {(row["query_id"], row["doc_id"]): row["logit"] for row in batch.to_pylist()}
    return golden
