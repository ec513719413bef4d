"""Rank a scored run, audit the lists and, if they pass, publish them: one create-only manifest, then one pointer."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.audit import TOP, Bounds, Check, Findings, GoldenQuality, LastRun, LostPairs, RunCounts, audit
from lakerank.errors import DependencyError
from lakerank.lake.publication import Publication, discard_unpublished, run_before, set_aside, settle
from lakerank.lake.runs import RunPaths, read_manifest
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, read_table_file
from lakerank.logs import about
from lakerank.plan.index import ranked_files
from lakerank.rerank.rank.lists import ranked_batches, write_lists
from lakerank.rerank.rank.write import ListFolders
from lakerank.rerank.stage import Audited, Ranked, ScoredRun, manifest_of
from lakerank.schemas import GOLDEN, QRELS, RANKED
from lakerank.spark.runtime.frames import describe_job, parallelism, scatter
from lakerank.spark.runtime.runner import SparkRunner

logger = logging.getLogger(__name__)

_NDCG = pa.schema([("now", pa.float64()), ("last", pa.float64())])


@dataclass(frozen=True, slots=True)
class Override:
    """Why a run is to be published whatever the audit finds, and who decided so."""

    reason: str
    by: str


@dataclass(frozen=True, slots=True)
class AuditRules:
    """Bounds of the audit; where configured, the addresses of golden pairs and judgements, and an override."""

    bounds: Bounds
    golden_pairs: str | None = None
    golden_qrels: str | None = None
    override: Override | None = None


def rank_and_publish(
    spark: SparkSession, storage: Storage, run: ScoredRun, rules: AuditRules
) -> tuple[dict[str, Any], Publication | None]:
    """Rank the run's scores, audit the lists and publish them if they pass or there is an override.

    The audit is written to `audit.json` in the run's folder whether it passes or not. Where it fails, the lists are set
    aside, out of `ranked/`.

    Returns:
        The manifest, and what the pointer says of the run; None where the audit failed. Of two drivers at one run, one
        writes the manifest and the other returns that one's.
    """
    started, paths = time.monotonic(), run.stages[0].paths
    golden = _read_golden_pairs(storage, rules.golden_pairs) if rules.golden_pairs else None
    with about(stage="rank"):
        ranked = _rank(spark, storage, run, golden or {})
    ranked_at = time.monotonic()
    with about(stage="audit"):
        last, findings = _findings(spark, storage, run, ranked, rules, golden)
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


def _rank(spark: SparkSession, storage: Storage, run: ScoredRun, golden: Mapping[tuple[str, str], float]) -> Ranked:
    paths, plan, several = run.stages[0].paths, run.stages[0].plan, len(run.stages) > 1
    folders = ListFolders(storage, paths.ranked, paths.rejected, run.rule.depth, frozenset(golden))
    stages = [stage.results(storage) for stage in run.stages]
    report = write_lists(SparkRunner(spark), stages, ranked_files(storage, paths, plan), run.rule, folders)
    ranked, rejected = (report.filter(pc.equal(report["table"], table)) for table in ("ranked", "rejected"))
    rows, beyond, new, queries, listed, truncated = (
        pc.sum(ranked[name]).as_py()
        for name in ("rows", "beyond_depth", "new", "queries", "queries_listed", "truncated")
    )
    rejects = pc.sum(rejected["rows"]).as_py()
    by_stage: list[Counter[str]] = [Counter() for _ in run.stages] if several else []
    for row in chain.from_iterable(ranked["stages"].to_pylist()):
        by_stage[row["stage"] - 1][row["reason"] or ""] += row["count"]
    unscored = plan.candidates - rows - beyond - rejects
    if several:
        unscored = sum(stage.plan.new + stage.plan.reused for stage in run.stages)
        unscored -= sum(results.total() for results in by_stage)
    counts = RunCounts(
        candidates=plan.candidates,
        ranked=rows,
        beyond_depth=beyond,
        rejected=rejects,
        unscored=unscored,
        queries=listed,
        unranked_queries=listed - queries,
        truncated=truncated,
        histogram=tuple(map(sum, zip(*ranked["histogram"].to_pylist(), strict=True))),
    )
    logits = chain.from_iterable(ranked["golden"].to_pylist())
    return Ranked(
        counts=counts,
        scored=new,
        reused=rows + beyond - new,
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
    spark: SparkSession,
    storage: Storage,
    run: ScoredRun,
    ranked: Ranked,
    rules: AuditRules,
    golden: Mapping[tuple[str, str], float] | None,
) -> tuple[str | None, Findings]:
    """The published run that the audit compares with, and all that it looks at beside the counts."""

    def top_documents(paths: RunPaths, files: Iterable[Mapping[str, Any]]) -> DataFrame:
        return read_ranked(spark, storage, [join(paths.ranked, file["file"]) for file in files], TOP)

    paths, plan, qrels = run.stages[0].paths, run.stages[0].plan, rules.golden_qrels
    last, old, last_run = run_before(storage, paths), None, None
    new = top_documents(paths, ranked.ranked_files)
    if last is not None and (manifest := read_manifest(storage, paths.output, last)) is not None:
        old = top_documents(RunPaths(paths.output, last), manifest["ranked_files"])
        last_run = _last_run(spark, manifest, old, new, run.rule.depth)
    lost, logits, errors = plan.dropped_from, ranked.golden, None
    if golden is not None:
        errors = {pair: abs(logits[pair] - logit) if pair in logits else None for pair, logit in golden.items()}
    return last, Findings(
        rejects=ranked.reasons,
        last=last_run,
        lost_pairs=None if lost is None else LostPairs(lost["run_id"], plan.dropped, lost["candidates"]),
        golden_errors=errors,
        golden_quality=_golden_quality(spark, storage, qrels, new, old) if qrels else None,
        stages=[(sum(counts.values()) - counts.get("", 0), sum(counts.values())) for counts in ranked.by_stage],
    )


def read_ranked(spark: SparkSession, storage: Storage, files: Sequence[str], depth: int | None = None) -> DataFrame:
    """Rows of some files of ranked/, down to a rank. Columns: RANKED."""
    return scatter(spark, files, lambda file: ranked_batches(storage, file, depth), RANKED, 4 * parallelism(spark))


def _report(storage: Storage, paths: RunPaths, checks: Sequence[Check]) -> list[str]:
    """Write the audit to the run's folder and to the log; the names of what failed."""
    failed = [check.name for check in checks if check.passed is False]
    report = {"run_id": paths.run_id, "passed": not failed, "checks": [check.as_dict() for check in checks]}
    encoded = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode()
    storage.replace(join(paths.folder, "audit.json"), encoded)
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
        for _, _, batch in read_table_file(storage, fragment.file.uri, GOLDEN):
            golden |= {(row["query_id"], row["doc_id"]): row["logit"] for row in batch.to_pylist()}
    return golden


def _last_run(
    spark: SparkSession, manifest: Mapping[str, Any], old: DataFrame, new: DataFrame, depth: int | None
) -> LastRun:
    """How far the tops of the lists have moved since the run of a manifest. `old` and `new` are top documents.

    Lists are compared down to the lesser of the two depths: what the other run was cut at is no change.
    """
    describe_job(spark, f"audit: churn since run {manifest['run_id']}")
    counts, histogram = manifest["counts"], tuple(manifest["histogram"])
    top = min(TOP, depth or TOP, manifest["ranking"]["depth"] or TOP)
    old, new = (tops.filter(F.col("rank") <= top) for tops in (old, new))
    seen = old.select("query_id", "doc_id", F.lit(1).alias("old"), F.lit(0).alias("new")).unionAll(
        new.select("query_id", "doc_id", F.lit(0).alias("old"), F.lit(1).alias("new"))
    )
    pairs = seen.groupBy("query_id", "doc_id").agg(F.max("old").alias("old"), F.max("new").alias("new"))
    queries = pairs.groupBy("query_id").agg(
        F.sum("old").alias("old"), F.sum("new").alias("new"), F.sum(F.col("old") * F.col("new")).alias("both")
    )
    changed = F.when(F.col("new") > 0, 1 - F.col("both") / F.greatest("old", "new"))
    row = (
        queries.filter(F.col("old") > 0)
        .agg(F.count(F.lit(1)).alias("queries"), F.count(changed).alias("shared"), F.avg(changed).alias("churn"))
        .collect()[0]
    )
    # Manifests of earlier versions count only logits within the depth.
    whole = sum(histogram) == counts["ranked"] + counts["beyond_depth"]
    shared, churn = int(row["shared"]), float(row["churn"] or 0.0)
    return LastRun(manifest["run_id"], histogram if whole else None, int(row["queries"]), shared, churn, top)


def _golden_quality(
    spark: SparkSession, storage: Storage, address: str, new: DataFrame, old: DataFrame | None
) -> GoldenQuality:
    """Mean nDCG@10 over the judged queries, of the top documents now and of those of the last published run.

    A judged query that has no list counts as 0, as with trec_eval -c.

    Raises:
        DependencyError: ir_measures is not installed here; the workers need it as well.
    """
    if importlib.util.find_spec("ir_measures") is None:
        raise DependencyError("audit.golden_qrels needs ir_measures: pip install 'lakerank[report]', workers included")
    describe_job(spark, "audit: nDCG@10 of the golden queries")
    judged = _qrels(spark, storage, address).persist()
    try:
        rows = judged.join(_lists(judged, new, "now"), "query_id", "left")
        rows = rows.join(_lists(judged, new if old is None else old, "last"), "query_id", "left")
        figures = rows.mapInArrow(_ndcg_batches, from_arrow_schema(_NDCG))
        # The mean of the differences is exactly 0 where no list changed, whatever order they are summed in.
        drop = F.avg(F.col("last") - F.col("now")).alias("drop")
        row = figures.agg(F.count(F.lit(1)).alias("queries"), F.avg("now").alias("now"), drop).collect()[0]
    finally:
        judged.unpersist()
    return GoldenQuality(
        int(row["queries"]), float(row["now"] or 0.0), None if old is None else float(row["drop"] or 0.0)
    )


def _qrels(spark: SparkSession, storage: Storage, address: str) -> DataFrame:
    """Judgements by query. Columns: query_id, judged (a list of doc_id and relevance)."""
    files = [fragment.file.uri for fragment in fragments(storage, address, QRELS)]
    rows = scatter(
        spark, files, lambda file: (b for *_, b in read_table_file(storage, file, QRELS)), QRELS, 4 * parallelism(spark)
    )
    distinct = rows.groupBy("query_id", "doc_id").agg(F.max("relevance").alias("relevance"))
    return distinct.groupBy("query_id").agg(F.collect_list(F.struct("doc_id", "relevance")).alias("judged"))


def _lists(judged: DataFrame, tops: DataFrame, name: str) -> DataFrame:
    """The lists of the judged queries. Columns: query_id, and under the given name a list of rank and doc_id."""
    lists = tops.join(judged.select("query_id"), "query_id", "left_semi").groupBy("query_id")
    return lists.agg(F.sort_array(F.collect_list(F.struct("rank", "doc_id"))).alias(name))


def _ndcg_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    from lakerank.evaluation.metrics.measures import NAMES, list_figures  # needs ir_measures: not in a scoring image

    for batch in batches:
        rows = batch.to_pylist()
        judgements = [{qrel["doc_id"]: qrel["relevance"] for qrel in row["judged"]} for row in rows]
        columns = {}
        for name in _NDCG.names:
            lists = [[document["doc_id"] for document in row[name] or ()] for row in rows]
            columns[name] = list_figures(lists, judgements)[:, NAMES.index("nDCG@10")]
        yield pa.RecordBatch.from_pydict(columns, schema=_NDCG)
