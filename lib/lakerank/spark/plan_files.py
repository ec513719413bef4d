"""The files of a plan: every candidate as judged, and one file of document groups for each work unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from lakerank.cost import even_bins
from lakerank.lake.score_files import unit_name
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, parquet_bytes, read_table_file
from lakerank.spark.frames import describe_job, parallelism, scatter
from lakerank.spark.pairs import is_new
from lakerank.spark.units import UNIT_GROUPS, Unit, cut_units, document_groups

#: A candidate as the rank stage needs it.
PAIRS = pa.schema(
    [
        ("query_id", pa.string()),
        ("doc_id", pa.string()),
        ("first_stage_rank", pa.int32()),
        ("query_hash", pa.string()),
        ("doc_hash", pa.string()),
        ("reason", pa.string()),
    ]
)

UNITS = pa.schema(
    [("bin", pa.int32()), ("unit", pa.string()), ("groups", pa.int64()), ("pairs", pa.int64()), ("cost", pa.int64())]
)

_FILES = pa.schema([("file", pa.string()), ("rows", pa.int64())])

#: Row groups of a document file that are binned together.
STRIPE = 256


#: The tables' files as they were when the run was planned: what is fetched later must be of the same versions.
SOURCES = pa.schema([("uri", pa.string()), ("version", pa.string())])


def write_sources(storage: Storage, address: str, files: Sequence[Fragment]) -> None:
    """Write down the versions of the files that a plan's places lead to. Columns: SOURCES."""
    rows = {"uri": [file.file.uri for file in files], "version": [file.file.version for file in files]}
    storage.replace(address, parquet_bytes(pa.table(rows, SOURCES), row_group_rows=100_000))


def read_sources(storage: Storage, address: str) -> dict[str, str]:
    """Version of each file that a plan's places lead to, by its URI."""
    versions: dict[str, str] = {}
    for _, _, batch in read_table_file(storage, address, SOURCES):
        versions |= zip(*(column.to_pylist() for column in batch.columns), strict=True)
    return versions


def write_pairs(storage: Storage, folder: str, pairs: DataFrame) -> None:
    """Write every candidate as judged. Columns: PAIRS."""

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        rows = pa.Table.from_batches(list(batches), schema=PAIRS)
        if rows.num_rows and context:
            name = join(folder, f"part-{context.partitionId():05d}.parquet")
            storage.replace(name, parquet_bytes(rows, row_group_rows=100_000))
            yield pa.RecordBatch.from_pydict({"file": [name], "rows": [rows.num_rows]}, schema=_FILES)

    pairs.select(*PAIRS.names).mapInArrow(write, from_arrow_schema(_FILES)).toArrow()


def read_pairs(spark: SparkSession, storage: Storage, folder: str) -> DataFrame:
    """Every candidate of the run, as planned. Columns: PAIRS."""
    names = storage.list_names(folder)

    def read(name: str) -> Iterator[pa.RecordBatch]:
        for _, _, batch in read_table_file(storage, join(folder, name), PAIRS):
            yield batch

    return scatter(spark, names, read, PAIRS)


def write_units(
    spark: SparkSession, storage: Storage, folder: str, pairs: DataFrame, max_queries: int, unit_tokens: int
) -> pa.Table:
    """Cut the new pairs into units of about `unit_tokens`, one plan file each; returns UNITS in file order."""
    new = pairs.filter(is_new()).withColumn("stripe", (F.col("d_row_group") / STRIPE).cast("int"))
    describe_job(spark, "plan: cost of each stripe of the document files")
    stripes = _stripe_costs(new, max_queries)
    if not stripes:
        return UNITS.empty_table()
    total = sum(cost for *_, cost in stripes)
    target = max(1, min(unit_tokens, total // (2 * parallelism(spark))))
    bins = even_bins([cost for *_, cost in stripes], 8 * target)
    bin_costs = np.bincount(bins, weights=[cost for *_, cost in stripes]).tolist()
    numbered = spark.createDataFrame(
        [(file, stripe, number) for (file, stripe, _), number in zip(stripes, bins, strict=True)],
        "d_file string, stripe int, bin int",
    )
    order = ["d_file", "d_row_group", "d_row", "query_id"]
    places = ["doc_id", "doc_hash", "query_id", "query_hash", "tried", "d_file", "d_row_group", "d_row", "d_cost"]
    columns = ["bin", *places, "q_file", "q_row_group", "q_row", "q_cost"]
    ordered = new.join(F.broadcast(numbered), ["d_file", "stripe"]).select(*columns)
    ordered = ordered.repartitionById(len(bin_costs), "bin").sortWithinPartitions(*order)

    def cut(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from _cut_bin(batches, storage, folder, bin_costs, target, max_queries)

    describe_job(spark, f"plan: cut {len(bin_costs)} bins into units")
    return ordered.mapInArrow(cut, from_arrow_schema(UNITS)).toArrow().sort_by("bin").combine_chunks()


def _stripe_costs(new: DataFrame, max_queries: int) -> list[tuple[str, int, int]]:
    documents = new.groupBy("d_file", "stripe", "d_row_group", "d_row").agg(
        F.count(F.lit(1)).alias("pairs"), F.sum("q_cost").alias("q_cost"), F.first("d_cost").alias("d_cost")
    )
    cost = F.col("d_cost") * F.ceil(F.col("pairs") / max_queries) + F.col("q_cost")
    stripes = documents.groupBy("d_file", "stripe").agg(F.sum(cost).alias("cost")).collect()
    return sorted((row["d_file"], row["stripe"], int(row["cost"])) for row in stripes)


def _cut_bin(
    batches: Iterable[pa.RecordBatch],
    storage: Storage,
    folder: str,
    bin_costs: list[float],
    target: int,
    max_queries: int,
) -> Iterator[pa.RecordBatch]:
    rows = (row for batch in batches for row in batch.to_pylist())
    first = next(rows, None)
    if first is None:
        return
    number = first["bin"]
    groups = document_groups(_chain(first, rows), max_queries)
    for unit in cut_units(groups, int(bin_costs[number]), target):
        name = unit_name(_pair_keys(unit))
        table = pa.Table.from_pylist(unit.groups, schema=UNIT_GROUPS)
        storage.replace(join(folder, f"{name}.parquet"), parquet_bytes(table, row_group_rows=max(1, table.num_rows)))
        yield pa.RecordBatch.from_pylist(
            [{"bin": number, "unit": name, "groups": len(unit.groups), "pairs": unit.pairs, "cost": unit.cost}],
            schema=UNITS,
        )


def _chain(first: dict[str, Any], rest: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _pair_keys(unit: Unit) -> Iterator[tuple[str, str, str, str]]:
    """What a unit's name is made from. A pair tried before in vain gives the unit a new name."""
    for group in unit.groups:
        for query in group["queries"]:
            query_hash = query["query_hash"] + (f" again after {query['tried']}" if query["tried"] else "")
            yield query["query_id"], group["doc_id"], query_hash, group["doc_hash"]
