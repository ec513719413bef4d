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

from lakerank.audit import TOP, Bounds, Check, GoldenQuality, LastRun, RunCounts, audit
from lakerank.errors import DependencyError
from lakerank.lake.runs import RunPaths, current_run, publish, read_manifest, write_manifest
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, read_table_file
from lakerank.logs import about
from lakerank.plan.index import ranked_files
from lakerank.rerank.rank.lists import ranked_batches, write_lists
from lakerank.rerank.rank.write import ListFolders
from lakerank.rerank.stage import Ranked, ScoredRun, manifest_of
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
) -> tuple[dict[str, Any], bool]:
    """Rank the run's scores, audit the lists and publish them if they pass or there is an override.

    The audit is written to `audit.json` in the run's folder whether it passes or not.

    Returns:
        The manifest, and whether the run is published. Of two drivers at one run, one writes the manifest and the
        other returns that one's.
    """
    started, paths = time.monotonic(), run.stages[0].paths
    golden = _read_golden_pairs(storage, rules.golden_pairs) if rules.golden_pairs else None
    with about(stage="rank"):
        ranked = _rank(spark, storage, run, golden or {})
    ranked_at = time.monotonic()
    with about(stage="audit"):
        checks = _audit(spark, storage, paths, ranked, rules, golden)
        passed = _report(storage, paths, checks)
    seconds = {"rank": ranked_at - started, "audit": time.monotonic() - ranked_at}
    manifest = manifest_of(storage, run, ranked, checks, seconds)
    if not passed:
        if rules.override is None:
            return manifest, False
        logger.warning("published despite the failed audit by %s: %s", rules.override.by, rules.override.reason)
        failed = [check.name for check in checks if not check.passed]
        manifest["published_anyway"] = {**asdict(rules.override), "failed_audits": failed}
    return settle(storage, paths, manifest), True


def settle(storage: Storage, paths: RunPaths, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest unless the run has one, then move the pointer; returns the manifest in effect."""
    if not write_manifest(storage, paths, manifest):
        logger.warning("run %s was published by another driver meanwhile: its manifest is kept", paths.run_id)
        manifest = read_manifest(storage, paths.output, paths.run_id) or manifest
    publish(storage, paths, manifest["published_at"])
    return manifest


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


def _audit(
    spark: SparkSession,
    storage: Storage,
    paths: RunPaths,
    ranked: Ranked,
    rules: AuditRules,
    golden: Mapping[tuple[str, str], float] | None,
) -> list[Check]:
    def top_documents(paths: RunPaths, files: Iterable[Mapping[str, Any]]) -> DataFrame:
        return read_ranked(spark, storage, [join(paths.ranked, file["file"]) for file in files], TOP)

    current, old, last_run = current_run(storage, paths.output), None, None
    new = top_documents(paths, ranked.ranked_files)
    if current and (last := read_manifest(storage, paths.output, current["run_id"])) is not None:
        old = top_documents(RunPaths(paths.output, last["run_id"]), last["ranked_files"])
        last_run = _last_run(spark, last, old, new)
    qrels, logits, errors = rules.golden_qrels, ranked.golden, None
    if golden is not None:
        errors = {pair: abs(logits[pair] - logit) if pair in logits else None for pair, logit in golden.items()}
    quality = _golden_quality(spark, storage, qrels, new, old) if qrels else None
    results = [(sum(counts.values()) - counts.get("", 0), sum(counts.values())) for counts in ranked.by_stage]
    return audit(ranked.counts, rules.bounds, ranked.reasons, last_run, errors, quality, results)


def read_ranked(spark: SparkSession, storage: Storage, files: Sequence[str], depth: int | None = None) -> DataFrame:
    """Rows of some files of ranked/, down to a rank. Columns: RANKED."""
    return scatter(spark, files, lambda file: ranked_batches(storage, file, depth), RANKED, 4 * parallelism(spark))


def _report(storage: Storage, paths: RunPaths, checks: Sequence[Check]) -> bool:
    """Write the audit to the run's folder and to the log; whether all of it passed."""
    passed = all(check.passed for check in checks)
    report = {"run_id": paths.run_id, "passed": passed, "checks": [check.as_dict() for check in checks]}
    encoded = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode()
    storage.replace(join(paths.folder, "audit.json"), encoded)
    for check in checks:
        value = "unknown" if check.value is None else f"{check.value:.4g}"
        bound = "not bounded" if check.bound is None else f"at most {check.bound:g}"
        level, verdict = (logging.INFO, "passed") if check.passed else (logging.ERROR, "FAILED")
        logger.log(level, "audit: %s  %s = %s (%s); %s", verdict, check.name, value, bound, check.detail)
    return passed


def _read_golden_pairs(storage: Storage, address: str) -> dict[tuple[str, str], float]:
    """The golden pairs and their logits. They are few."""
    golden: dict[tuple[str, str], float] = {}
    for fragment in fragments(storage, address, GOLDEN):
        for _, _, batch in read_table_file(storage, fragment.file.uri, GOLDEN):
            golden |= {(row["query_id"], row["doc_id"]): row["logit"] for row in batch.to_pylist()}
    return golden


def _last_run(spark: SparkSession, manifest: dict[str, Any], old: DataFrame, new: DataFrame) -> LastRun:
    """How far the tops of the lists have moved since the run of a manifest. `old` and `new` are top documents."""
    describe_job(spark, f"audit: churn since run {manifest['run_id']}")
    seen = old.select("query_id", "doc_id", F.lit(1).alias("old"), F.lit(0).alias("new")).unionAll(
        new.select("query_id", "doc_id", F.lit(0).alias("old"), F.lit(1).alias("new"))
    )
    pairs = seen.groupBy("query_id", "doc_id").agg(F.max("old").alias("old"), F.max("new").alias("new"))
    queries = pairs.groupBy("query_id").agg(
        F.sum("old").alias("old"), F.sum("new").alias("new"), F.sum(F.col("old") * F.col("new")).alias("both")
    )
    changed = 1 - F.col("both") / F.greatest("old", "new")
    shared = queries.filter((F.col("old") > 0) & (F.col("new") > 0))
    row = shared.agg(F.count(F.lit(1)).alias("queries"), F.avg(changed).alias("churn")).collect()[0]
    return LastRun(manifest["run_id"], tuple(manifest["histogram"]), int(row["queries"]), float(row["churn"] or 0.0))


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
