"""Audit a ranked run and, if it is fit, publish it: one create-only manifest, then one pointer."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from lakerank.audit import TOP, Bounds, Check, RunCounts, audit
from lakerank.lake.runs import RunPaths, current_run, publish, read_manifest, write_manifest
from lakerank.lake.storage import Storage, join
from lakerank.logs import about as about_lines
from lakerank.spark.audit import golden_errors, golden_pairs, golden_quality, last_run, top_documents
from lakerank.spark.manifest import Ranked, manifest_of
from lakerank.spark.plan.plan import planned_lists
from lakerank.spark.rank.combine import FusionRule
from lakerank.spark.rank.frame import read_ranked
from lakerank.spark.rank.lists import RankRule, write_fused_lists, write_lists
from lakerank.spark.stage import PlannedStage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Override:
    """Someone who knows better than the audit, and why."""

    reason: str
    by: str


@dataclass(frozen=True, slots=True)
class AuditRules:
    """Bounds of the audit; where configured, the addresses of golden pairs and judgements; who knows better."""

    bounds: Bounds
    golden_pairs: str | None = None
    golden_qrels: str | None = None
    override: Override | None = None


def rank_and_publish(
    spark: SparkSession,
    storage: Storage,
    scorer: str,
    passes: Sequence[PlannedStage],
    rule: RankRule | FusionRule,
    rules: AuditRules,
    took: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any], bool]:
    """Rank the run's scores, audit the lists and publish them if they pass, or if someone knows better.

    The audit is left in `audit.json` in the run's folder whether it passes or not.

    Args:
        scorer: who is said to have made the run.
        rule: a FusionRule where there are several passes.
        took: what the manifest should say of each pass: model, what planning and scoring took.

    Returns:
        The manifest, and whether the run is published. Of two drivers at one run, one writes the manifest and the
        other returns that one's.
    """
    started, paths = time.monotonic(), passes[0].paths
    golden = golden_pairs(storage, rules.golden_pairs) if rules.golden_pairs else None
    with about_lines(stage="rank"):
        ranked = _rank(spark, storage, passes, rule, golden or {})
    ranked_at = time.monotonic()
    with about_lines(stage="audit"):
        checks = _audit(spark, storage, paths, ranked, rules, golden)
        passed = _report(storage, paths, checks)
    seconds = {"rank": ranked_at - started, "audit": time.monotonic() - ranked_at}
    manifest = manifest_of(storage, scorer, passes, asdict(rule), ranked, checks, took, seconds)
    if not passed and rules.override is None:
        return manifest, False
    if not passed and rules.override is not None:
        logger.warning("published all the same by %s: %s", rules.override.by, rules.override.reason)
        failed = [check.name for check in checks if not check.passed]
        manifest["published_anyway"] = {**asdict(rules.override), "failed_audits": failed}
    return settle(storage, paths, manifest), True


def audit_address(paths: RunPaths) -> str:
    """Where the last audit of a run is, also of one that was not published."""
    return join(paths.folder, "audit.json")


def _report(storage: Storage, paths: RunPaths, checks: Sequence[Check]) -> bool:
    """Leave the audit in the run's folder and in the log; whether all of it passed."""
    passed = all(check.passed for check in checks)
    report = {"run_id": paths.run_id, "passed": passed, "checks": [check.as_dict() for check in checks]}
    storage.replace(audit_address(paths), json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode())
    for check in checks:
        value = "unknown" if check.value is None else f"{check.value:.4g}"
        bound = "not bounded" if check.bound is None else f"at most {check.bound:g}"
        level, verdict = (logging.INFO, "passed") if check.passed else (logging.ERROR, "FAILED")
        logger.log(level, "audit: %s  %s = %s (%s); %s", verdict, check.name, value, bound, check.detail)
    return passed


def settle(storage: Storage, paths: RunPaths, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest unless the run has one, then move the pointer; returns the manifest that stands."""
    if not write_manifest(storage, paths, manifest):
        logger.warning("run %s was published by another driver meanwhile: its manifest stands", paths.run_id)
        manifest = read_manifest(storage, paths.output, paths.run_id) or manifest
    publish(storage, paths, manifest["published_at"])
    return manifest


def _rank(
    spark: SparkSession,
    storage: Storage,
    passes: Sequence[PlannedStage],
    rule: RankRule | FusionRule,
    golden: Mapping[tuple[str, str], float],
) -> Ranked:
    paths, plan = passes[0].paths, passes[0].plan
    lists = planned_lists(storage, paths, plan)
    results = [one.results(storage) for one in passes]
    if isinstance(rule, FusionRule):
        report = write_fused_lists(spark, results, lists, rule, paths.ranked, paths.rejected, golden)
    else:
        report = write_lists(spark, results[0], lists, rule, paths.ranked, paths.rejected, golden)
    ranked, rejected = (report.filter(pc.equal(report["table"], table)) for table in ("ranked", "rejected"))
    rows, beyond, own, queries, candidates_of, truncated = (
        pc.sum(ranked[name]).as_py()
        for name in ("rows", "beyond_depth", "own", "queries", "candidates_of", "truncated")
    )
    by_pass = pass_results(len(passes), _sum_counts(ranked, "passes"))
    lost = sum(one.plan.new + one.plan.reused - sum(found.values()) for one, found in zip(passes, by_pass, strict=True))
    unscored = plan.candidates - rows - beyond - pc.sum(rejected["rows"]).as_py()
    counts = RunCounts(
        candidates=plan.candidates,
        ranked=rows,
        beyond_depth=beyond,
        rejected=pc.sum(rejected["rows"]).as_py(),
        unscored=lost if len(passes) > 1 else unscored,
        queries=candidates_of,
        unranked_queries=candidates_of - queries,
        truncated=truncated,
        histogram=tuple(map(sum, zip(*ranked["histogram"].to_pylist(), strict=True))),
    )
    found = (pair for pairs in ranked["watched"].to_pylist() for pair in pairs)
    return Ranked(
        counts,
        own,
        rows + beyond - own,
        _sum_counts(ranked, "counts"),
        _sum_counts(rejected, "counts"),
        tuple(ranked.select(["file", "rows", "bytes"]).to_pylist()),
        tuple(rejected.select(["file", "rows", "bytes"]).to_pylist()),
        {(pair["query_id"], pair["doc_id"]): pair["logit"] for pair in found},
        tuple(by_pass) if len(passes) > 1 else (),
    )


def pass_results(passes: int, counts: Mapping[str, int]) -> list[dict[str, int]]:
    """How many results each pass gave, by reason; "" for those with a score. `counts` is of Listed.passes."""
    found: list[dict[str, int]] = [{} for _ in range(passes)]
    for what, count in counts.items():
        number, _, reason = what.partition(" ")
        found[int(number) - 1][reason] = count
    return found


def _sum_counts(report: pa.Table, column: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in report[column].to_pylist():
        total.update(dict(counts))
    return dict(sorted(total.items()))


def _audit(
    spark: SparkSession,
    storage: Storage,
    paths: RunPaths,
    ranked: Ranked,
    rules: AuditRules,
    golden: Mapping[tuple[str, str], float] | None,
) -> list[Check]:
    current = current_run(storage, paths.output)
    manifest = read_manifest(storage, paths.output, current["run_id"]) if current else None
    new = read_ranked(spark, storage, [join(paths.ranked, one["file"]) for one in ranked.ranked_files], TOP)
    old = top_documents(spark, storage, paths.output, manifest) if manifest else None
    qrels = rules.golden_qrels
    return audit(
        ranked.counts,
        rules.bounds,
        ranked.reasons,
        last_run(spark, manifest, old, new) if manifest and old is not None else None,
        golden_errors(golden, ranked.golden) if golden is not None else None,
        golden_quality(spark, storage, qrels, new, old) if qrels else None,
        [(sum(found.values()) - found.get("", 0), sum(found.values())) for found in ranked.by_pass],
    )
