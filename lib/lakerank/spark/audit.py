"""What an audit holds a run against: the last published run, golden pairs, golden judgements. Measured in Spark."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.audit import TOP, GoldenQuality, LastRun
from lakerank.errors import DependencyError
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, read_table_file
from lakerank.schemas import GOLDEN, QRELS
from lakerank.spark.rank.frame import read_ranked
from lakerank.spark.runtime.frames import describe_job, parallelism, scatter

_FIGURES = pa.schema([("now", pa.float64()), ("last", pa.float64())])


def top_documents(spark: SparkSession, storage: Storage, output: str, manifest: dict[str, Any]) -> DataFrame:
    """The first TOP documents of every list of a published run."""
    folder = RunPaths(output, manifest["run_id"]).ranked
    return read_ranked(spark, storage, [join(folder, one["file"]) for one in manifest["ranked_files"]], TOP)


def last_run(spark: SparkSession, manifest: dict[str, Any], old: DataFrame, new: DataFrame) -> LastRun:
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
    row = _only_row(shared.agg(F.count(F.lit(1)).alias("queries"), F.avg(changed).alias("churn")))
    return LastRun(manifest["run_id"], tuple(manifest["histogram"]), int(row["queries"]), float(row["churn"] or 0.0))


def golden_pairs(storage: Storage, address: str) -> dict[tuple[str, str], float]:
    """The golden pairs and their logits. They are few."""
    expected: dict[tuple[str, str], float] = {}
    for fragment in fragments(storage, address, GOLDEN):
        for _, _, batch in read_table_file(storage, fragment.file.uri, GOLDEN):
            expected |= {(row["query_id"], row["doc_id"]): row["logit"] for row in batch.to_pylist()}
    return expected


def golden_errors(
    expected: Mapping[tuple[str, str], float], found: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], float | None]:
    """|logit − expected| of every golden pair, None where the run has no logit for it."""
    return {pair: abs(found[pair] - logit) if pair in found else None for pair, logit in expected.items()}


def golden_quality(
    spark: SparkSession, storage: Storage, address: str, new: DataFrame, old: DataFrame | None
) -> GoldenQuality:
    """Mean nDCG@10 over the judged queries, of the top documents now and of those of the last published run.

    A judged query that has no list counts as 0, as trec_eval -c has it.

    Raises:
        DependencyError: ir_measures is not installed here; the workers need it as well.
    """
    if importlib.util.find_spec("ir_measures") is None:
        raise DependencyError("audit.golden_qrels needs ir_measures: pip install 'lakerank[report]', workers included")
    describe_job(spark, "audit: nDCG@10 of the golden queries")
    judged = _judgements(spark, storage, address).persist()
    try:
        rows = judged.join(_shown(judged, new, "now"), "query_id", "left")
        rows = rows.join(_shown(judged, new if old is None else old, "last"), "query_id", "left")
        figures = rows.mapInArrow(_figure_batches, from_arrow_schema(_FIGURES))
        # The mean of the differences is exactly 0 where no list changed, whatever order they are summed in.
        drop = F.avg(F.col("last") - F.col("now")).alias("drop")
        row = _only_row(figures.agg(F.count(F.lit(1)).alias("queries"), F.avg("now").alias("now"), drop))
    finally:
        judged.unpersist()
    return GoldenQuality(
        int(row["queries"]), float(row["now"] or 0.0), None if old is None else float(row["drop"] or 0.0)
    )


def _judgements(spark: SparkSession, storage: Storage, address: str) -> DataFrame:
    """Columns: query_id, judged (a list of doc_id and relevance)."""
    files = [fragment.file.uri for fragment in fragments(storage, address, QRELS)]

    def read(file: str) -> Iterator[pa.RecordBatch]:
        for _, _, batch in read_table_file(storage, file, QRELS):
            yield batch

    rows = scatter(spark, files, read, QRELS, tasks=4 * parallelism(spark))
    distinct = rows.groupBy("query_id", "doc_id").agg(F.max("relevance").alias("relevance"))
    return distinct.groupBy("query_id").agg(F.collect_list(F.struct("doc_id", "relevance")).alias("judged"))


def _shown(judged: DataFrame, tops: DataFrame, name: str) -> DataFrame:
    """The lists of the judged queries. Columns: query_id, and under the name given a list of rank and doc_id."""
    lists = tops.join(judged.select("query_id"), "query_id", "left_semi").groupBy("query_id")
    return lists.agg(F.sort_array(F.collect_list(F.struct("rank", "doc_id"))).alias(name))


def _figure_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        rows = batch.to_pylist()
        yield pa.RecordBatch.from_pydict({name: _ndcg(rows, name) for name in _FIGURES.names}, schema=_FIGURES)


def _ndcg(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    from lakerank.evaluation.metrics.lists import QueryLists, measure  # needs ir_measures, which a scoring image lacks

    lists = [
        QueryLists(
            row["query_id"],
            (),
            tuple(one["doc_id"] for one in row[name] or ()),
            {one["doc_id"]: one["relevance"] for one in row["judged"]},
        )
        for row in rows
    ]
    return [result.reranked["nDCG@10"] for result in measure(lists, ordered=False)] if lists else []


def _only_row(frame: DataFrame) -> Row:
    return frame.collect()[0]
