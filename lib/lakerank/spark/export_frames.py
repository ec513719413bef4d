"""The rows of one or two runs, brought together list by list for an export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from lakerank.export.format import Format
from lakerank.lake.storage import Storage
from lakerank.lake.tables import decode_text, fragments, read_table_file
from lakerank.schemas import CANDIDATES, QUERIES, RANKED
from lakerank.spark.plan.join import read_candidates
from lakerank.spark.rank.frame import read_ranked
from lakerank.spark.rank.lists import file_of
from lakerank.spark.runtime.frames import gather, parallelism, scatter

_COUNTS = pa.schema([("file", pa.int64()), ("first", pa.string()), ("queries", pa.int64())])
_TEXTS = pa.schema([("query_id", pa.string()), ("query_text", pa.string())])


@dataclass(frozen=True, slots=True)
class Sources:
    """Files of ranked/ of the run and of the older one; where asked for, the tables that further columns come from."""

    new: Sequence[str]
    old: Sequence[str] | None
    queries: str | None
    candidates: str | None


@dataclass(frozen=True, slots=True)
class ListsFrame:
    """Rows by `part`, sorted so that each list stands together; the number of each part's first query where asked."""

    frame: DataFrame
    first_numbers: Sequence[int] | None


@dataclass(frozen=True, slots=True)
class QueryCounts:
    """Of each file of ranked/, its first query and the number of that, counted from 1 over all files."""

    first_queries: list[str]
    first_numbers: list[int]


def frame_of_lists(
    spark: SparkSession,
    storage: Storage,
    sources: Sources,
    form: Format,
    depth: int | None,
    rows_per_part: int,
    pairs: int | None,
) -> ListsFrame:
    """All rows of the lists of two runs (or one), a list in one part. Columns: RANKED, is_old, part, what is needed.

    Parts depend on the runs alone: those of lists by query are the files of the newer run, those of lists by document
    are cut by a hash.
    """
    rows = read_ranked(spark, storage, sources.new, depth).withColumn("is_old", F.lit(False))
    if sources.old is not None:
        rows = rows.unionAll(read_ranked(spark, storage, sources.old, depth).withColumn("is_old", F.lit(True)))
    if pairs is not None:
        # By hash: the same pairs each time, spread over the whole run.
        rows = rows.orderBy(F.xxhash64("query_id", "doc_id"), "query_id", "doc_id").limit(pairs)
    if sources.queries is not None:
        rows = rows.join(_texts(spark, storage, sources.queries), "query_id", "left")
    if sources.candidates is not None:
        rows = rows.join(_scores(spark, storage, sources.candidates), ["query_id", "doc_id"], "left")
    if form.by == "doc_id":
        count = max(1, -(-_row_count(storage, sources.new) // rows_per_part))
        part: Column = F.pmod(F.xxhash64("doc_id"), F.lit(count)).cast("int")
        return ListsFrame(_parted(rows, part, count, ["doc_id", "is_old", "query_id"]), None)
    counts = query_counts(spark, storage, sources.new)
    parted = _parted(rows, file_of(counts.first_queries[1:]), len(sources.new), ["query_id", "is_old", "rank"])
    return ListsFrame(parted, counts.first_numbers)


def query_counts(spark: SparkSession, storage: Storage, files: Sequence[str]) -> QueryCounts:
    """Where in the order of queries each file begins; a query is in one file, and no file is empty."""

    def count(number: int) -> Iterator[pa.RecordBatch]:
        first = last = None
        total = 0
        for _, _, batch in read_table_file(storage, files[number], RANKED, ["query_id"]):
            found = batch.column(0).unique().to_pylist()
            if found:
                total += len(found) - (found[0] == last)  # a query may go on from one batch to the next
                first, last = found[0] if first is None else first, found[-1]
        yield pa.RecordBatch.from_pydict({"file": [number], "first": [first], "queries": [total]}, _COUNTS)

    rows = gather(spark, range(len(files)), count, _COUNTS).sort_by("file")
    numbers = [1]
    for queries in rows["queries"].to_pylist():
        numbers.append(numbers[-1] + queries)
    return QueryCounts(rows["first"].to_pylist(), numbers)


def _parted(rows: DataFrame, part: Column, count: int, order: Sequence[str]) -> DataFrame:
    return rows.withColumn("part", part).repartitionById(max(1, count), "part").sortWithinPartitions(*order)


def _row_count(storage: Storage, files: Sequence[str]) -> int:
    return sum(fragment.rows for file in files for fragment in fragments(storage, file, RANKED))


def _texts(spark: SparkSession, storage: Storage, address: str) -> DataFrame:
    """The text of every query that has one; of a query that stands twice, one of its texts, always the same."""

    def read(file: str) -> Iterator[pa.RecordBatch]:
        for _, _, batch in read_table_file(storage, file, QUERIES, ["query_id", "text"]):
            texts = [_text(raw) for raw in batch["text"].to_pylist()]
            yield pa.RecordBatch.from_arrays([batch["query_id"], pa.array(texts, pa.string())], schema=_TEXTS)

    files = [fragment.file.uri for fragment in fragments(storage, address, QUERIES)]
    rows = scatter(spark, files, read, _TEXTS, tasks=4 * parallelism(spark))
    return rows.groupBy("query_id").agg(F.min("query_text").alias("query_text"))


def _text(raw: bytes | None) -> str | None:
    try:
        return decode_text(raw) or None
    except UnicodeDecodeError:
        return None


def _scores(spark: SparkSession, storage: Storage, address: str) -> DataFrame:
    rows = read_candidates(spark, storage, fragments(storage, address, CANDIDATES))
    return rows.groupBy("query_id", "doc_id").agg(F.max("first_stage_score").alias("first_stage_score"))
