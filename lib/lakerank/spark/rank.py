"""Turn the small scores query-major: ranked, labelled lists and rejects, in sorted files that repeat bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import TaskContext
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.audit import HISTOGRAM_EDGES
from lakerank.lake.score_files import read_unit
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.ranking import labels, ranks, relevance
from lakerank.schemas import RANKED, REJECTED
from lakerank.spark.frames import describe_job, parallelism, scatter

#: A stored score, keyed by what it is the score of.
SCORE_KEYS = pa.schema(
    [
        ("query_hash", pa.string()),
        ("doc_hash", pa.string()),
        ("logit", pa.float32()),
        ("truncated", pa.bool_()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("unit", pa.string()),
    ]
)

#: One row a written file.
FILE_REPORT = pa.schema(
    [
        ("file", pa.string()),
        ("rows", pa.int64()),
        ("queries", pa.int64()),
        ("beyond_depth", pa.int64()),
        ("truncated", pa.int64()),
        ("histogram", pa.list_(pa.int64())),
        ("counts", pa.map_(pa.string(), pa.int64())),
    ]
)

#: Rows of a row group in ranked/: a reader looking up one query reads little.
ROW_GROUP_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class RankRule:
    """How logits become relevance, labels and ranks."""

    logit_bias: float
    thresholds: tuple[float, ...]
    depth: int | None


def read_scores(spark: SparkSession, storage: Storage, output: str, scorer: str, units: Sequence[str]) -> DataFrame:
    """The stored scores of some units, one row for each pair of contents. Columns: SCORE_KEYS."""

    def read(unit: str) -> Iterator[pa.RecordBatch]:
        rows = read_unit(storage, output, scorer, unit)
        truncated = pc.or_kleene(rows["query_truncated"], rows["document_truncated"])
        columns = {"truncated": truncated, "unit": pa.array([unit] * rows.num_rows, pa.string())}
        table = pa.table(
            {name: columns.get(name, rows[name] if name in rows.column_names else None) for name in SCORE_KEYS.names}
        )
        yield from table.cast(SCORE_KEYS).to_batches()

    rows = scatter(spark, units, read, SCORE_KEYS, tasks=4 * parallelism(spark))
    # Equal contents may have been scored under several ids; a logit goes before a reject, then the order is fixed.
    best = F.max(F.struct("logit", "truncated", "reason", "detail", "unit"))
    return rows.groupBy("query_hash", "doc_hash").agg(best.alias("best")).select("query_hash", "doc_hash", "best.*")


def outcomes(pairs: DataFrame, scores: DataFrame) -> DataFrame:
    """Every candidate with its logit, or its reason, or neither (lost: the audit will say so)."""
    stored = scores.withColumnsRenamed({"reason": "score_reason"})
    joined = pairs.join(stored, ["query_hash", "doc_hash"], "left")
    planned = F.col("reason").isNotNull()
    return joined.select(
        "query_id",
        "doc_id",
        "first_stage_rank",
        F.when(~planned, F.col("logit")).alias("logit"),
        "truncated",
        F.coalesce("reason", "score_reason").alias("reason"),
        F.when(~planned, F.col("detail")).alias("detail"),
        "unit",
    )


def write_ranked(
    spark: SparkSession, storage: Storage, folder: str, results: DataFrame, boundaries: Sequence[str], rule: RankRule
) -> pa.Table:
    """Write ranked/: sorted by query, logit descending and doc_id; a query is never split. Returns FILE_REPORT."""
    scored = results.filter(F.col("logit").isNotNull()).select(
        "query_id", "doc_id", "logit", "first_stage_rank", "truncated", file_of(boundaries).alias("part")
    )
    ordered = scored.repartitionById(len(boundaries) + 1, "part").sortWithinPartitions(
        "query_id", F.desc("logit"), "doc_id"
    )

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        table, beyond_depth = _rank(batches, rule)
        yield _write_part(storage, folder, _partition(), table, beyond_depth)

    describe_job(spark, "rank: write ranked lists")
    report = ordered.mapInArrow(write, from_arrow_schema(FILE_REPORT)).toArrow()
    return _completed(storage, folder, report, len(boundaries) + 1, RANKED)


def write_rejected(
    spark: SparkSession, storage: Storage, folder: str, results: DataFrame, boundaries: Sequence[str]
) -> pa.Table:
    """Write rejected/: every pair without a score, sorted by query and document. Returns FILE_REPORT."""
    rejected = results.filter(F.col("logit").isNull() & F.col("reason").isNotNull()).select(
        *REJECTED.names, file_of(boundaries).alias("part")
    )
    ordered = rejected.repartitionById(len(boundaries) + 1, "part").sortWithinPartitions("query_id", "doc_id")

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = [batch.select(REJECTED.names).cast(REJECTED) for batch in batches]
        yield _write_part(storage, folder, _partition(), pa.Table.from_batches(rows, schema=REJECTED), 0)

    describe_job(spark, "rank: write rejects")
    report = ordered.mapInArrow(write, from_arrow_schema(FILE_REPORT)).toArrow()
    return _completed(storage, folder, report, len(boundaries) + 1, REJECTED)


def file_of(boundaries: Sequence[str]) -> Column:
    """The number of the file that a query's rows go to: how many boundaries its id has reached."""
    if not boundaries:
        return F.lit(0)
    edges = F.array(*(F.lit(edge) for edge in boundaries))
    return F.coalesce(F.size(F.filter(edges, lambda edge: edge <= F.col("query_id"))), F.lit(0))


def _rank(batches: Iterable[pa.RecordBatch], rule: RankRule) -> tuple[pa.Table, int]:
    """Rows sorted by query and logit as RANKED, cut at the depth, and how many fell beyond it."""
    kept: list[pa.RecordBatch] = []
    beyond_depth, last_query, last_rank = 0, None, 0
    for batch in batches:
        if not batch.num_rows:
            continue
        query_ids = np.asarray(batch["query_id"].to_pylist(), dtype=object)
        starts = np.concatenate([[query_ids[0] != last_query], query_ids[1:] != query_ids[:-1]]).astype(bool)
        rank = ranks(starts, carried=last_rank)
        last_query, last_rank = query_ids[-1], int(rank[-1])
        logits = batch["logit"].to_numpy()
        relevances = relevance(logits, rule.logit_bias)
        ranked = pa.RecordBatch.from_pydict(
            {
                "query_id": batch["query_id"],
                "doc_id": batch["doc_id"],
                "rank": rank,
                "logit": batch["logit"],
                "relevance": relevances,
                "label": labels(relevances, rule.thresholds),
                "first_stage_rank": batch["first_stage_rank"],
                "truncated": batch["truncated"],
            },
            schema=RANKED,
        )
        within = ranked if rule.depth is None else ranked.filter(pa.array(rank <= rule.depth))
        beyond_depth += ranked.num_rows - within.num_rows
        kept.append(within)
    return pa.Table.from_batches(kept, schema=RANKED), beyond_depth


def _partition() -> int:
    context = TaskContext.get()
    return context.partitionId() if context else 0


def _completed(storage: Storage, folder: str, report: pa.Table, files: int, schema: pa.Schema) -> pa.Table:
    """Spark runs no task for what it knows to be empty: write the files that are missing for it."""
    written = set(report["file"].to_pylist())
    missing = [number for number in range(files) if _part_name(number) not in written]
    empty = [_write_part(storage, folder, number, schema.empty_table(), 0) for number in missing]
    return pa.concat_tables([report.cast(FILE_REPORT), pa.Table.from_batches(empty, schema=FILE_REPORT)]).sort_by(
        "file"
    )


def _part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _write_part(storage: Storage, folder: str, number: int, table: pa.Table, beyond_depth: int) -> pa.RecordBatch:
    name = _part_name(number)
    storage.replace(join(folder, name), parquet_bytes(table, row_group_rows=ROW_GROUP_ROWS))
    is_ranked = "logit" in table.column_names
    inner = np.asarray(HISTOGRAM_EDGES[1:-1])
    bins = np.searchsorted(inner, table["logit"].to_numpy(), side="right") if is_ranked else np.zeros(0, int)
    counted = pc.value_counts(table["label" if is_ranked else "reason"].cast(pa.string()).combine_chunks())
    return pa.RecordBatch.from_pylist(
        [
            {
                "file": name,
                "rows": table.num_rows,
                "queries": len(pc.unique(table["query_id"])),
                "beyond_depth": beyond_depth,
                "truncated": pc.sum(table["truncated"]).as_py() or 0 if is_ranked else 0,
                "histogram": np.bincount(bins, minlength=len(HISTOGRAM_EDGES) - 1).tolist(),
                "counts": [(item["values"], item["counts"]) for item in counted.to_pylist()],
            }
        ],
        schema=FILE_REPORT,
    )
