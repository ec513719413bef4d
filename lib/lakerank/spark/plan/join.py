"""Join: candidates and documents meet by document id, each part's pairs are validated and stored."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, read_table_file
from lakerank.plan.dropped import PreviousCandidates
from lakerank.plan.index import QueryList, TableIndex
from lakerank.plan.pairs import (
    JOIN_RECORDS,
    HashedRows,
    flat,
    hashed_candidates,
    hashed_documents,
    part_of,
    validate_pairs,
)
from lakerank.plan.partitions import DocumentRanges
from lakerank.plan.plan import BATCH_ROWS, write_part
from lakerank.schemas import CANDIDATES
from lakerank.spark.plan.counts import COUNTS, Counts, histogram, summed, totals
from lakerank.spark.runtime.frames import parallelism, scatter
from lakerank.spark.runtime.shuffle import BATCHES, exchange, pack

logger = logging.getLogger(__name__)

_KEYS = ("query_id", "doc_id", "first_stage_rank")


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows of a table file: some whole row groups, or part of one that is too large for one task."""

    file: str
    first_group: int
    end_group: int
    first_row: int
    end_row: int | None


@dataclass(frozen=True, slots=True)
class Join:
    """Validates the candidates of a part; pairs to score go to `pairs/`, the others to `rejects/`, a file a part.

    Attributes:
        ranges: document ranges that pairs are counted by.
        bits: there are 2^bits parts.
        bucket_rows: neighbouring queries whose pairs are counted together.
        previous: candidates of the last published run; those that are still listed are counted.
    """

    storage: Storage
    folder: str
    queries: QueryList
    ranges: DocumentRanges
    bits: int
    bucket_rows: int
    previous: PreviousCandidates | None

    def run(self, records: Sequence[DataFrame]) -> Counts:
        """Validate all parts.

        Args:
            records: frames of candidates and documents, packed by document id.

        Returns:
            Totals, and numbers of pairs by document `range` and by `bucket` of queries.
        """
        return summed(exchange(records, 2**self.bits, JOIN_RECORDS, self._validate, COUNTS))

    def _validate(self, part: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        validated = validate_pairs(records, self.queries)
        rows, numbers, _ = flat(validated.pairs)
        for name, table in (("pairs", validated.pairs), ("rejects", validated.rejects)):
            if table.num_rows:
                write_part(self.storage, join(self.folder, name), part, table)
        previous = self.previous
        yield totals(
            {
                "candidates": len(rows) + validated.rejects.num_rows,
                "rejected": validated.rejects.num_rows,
                "duplicates": validated.duplicates,
                "documents": validated.documents,
                "retained": previous.retained(part, self.bits, validated, self.queries) if previous else 0,
            }
        )
        yield histogram("range", self.ranges.of(validated.pairs["document"].to_numpy()[rows]))
        yield histogram("bucket", numbers // self.bucket_rows)


def read_candidates(spark: SparkSession, storage: Storage, files: Sequence[Fragment]) -> DataFrame:
    """Every listed pair. Columns: CANDIDATES."""

    def read(rows: RowRange) -> Iterator[pa.RecordBatch]:
        yield from read_rows(storage, rows, CANDIDATES.names)

    schema = pa.schema([field.with_nullable(True) for field in CANDIDATES])
    return scatter(spark, row_ranges(files, 2 * parallelism(spark)), read, schema)


def candidate_records(
    spark: SparkSession, storage: Storage, files: Sequence[Fragment], queries: QueryList, bits: int, batch_rows: int
) -> DataFrame:
    """Every listed pair, packed for 2^bits parts by document id; `batch_rows` are grouped by document at a time."""

    def read(rows: RowRange) -> Iterator[pa.RecordBatch]:
        for batch in _batches(read_rows(storage, rows, _KEYS), batch_rows):
            for records in hashed_candidates(batch, queries):
                yield from _packed_by_id(records, bits)

    return scatter(spark, row_ranges(files, 2 * parallelism(spark), batch_rows), read, BATCHES)


def document_records(spark: SparkSession, index: TableIndex, bits: int) -> DataFrame:
    """Every row of the documents table, packed for 2^bits parts by document id."""

    def read(chunk: int) -> Iterator[pa.RecordBatch]:
        yield from _packed_by_id(hashed_documents(index, chunk), bits)

    return scatter(spark, range(len(index.chunks)), read, BATCHES)


def row_ranges(files: Sequence[Fragment], least: int, batch_rows: int = BATCH_ROWS) -> list[RowRange]:
    """Row ranges of about `batch_rows`, or fewer rows where that makes less than `least` of them.

    Rows before a range of a row group are decoded and passed over, so one row group is cut into `least` at most.
    """
    target = max(1, min(batch_rows, -(-sum(file.rows for file in files) // least)))
    ranges: list[RowRange] = []
    for file in (file for file in files if file.rows):
        rows_of_group = -(-file.rows // file.row_groups)
        if rows_of_group <= target * 2:
            parts = min(file.row_groups, max(1, round(file.rows / target)))
            edges = [file.row_groups * part // parts for part in range(parts + 1)]
            ranges += (RowRange(file.file.uri, a, b, 0, None) for a, b in pairwise(edges))
            continue
        size = max(target, -(-rows_of_group // least))
        if rows_of_group > batch_rows * least:
            logger.warning("%s: %d rows a row group; smaller row groups are read faster", file.file.uri, rows_of_group)
        for group in range(file.row_groups):
            # The last range has no end: a group may be larger than the file's mean.
            starts = range(0, rows_of_group, size)
            ends = [*starts[1:], None]
            ranges += (RowRange(file.file.uri, group, group + 1, a, b) for a, b in zip(starts, ends, strict=True))
    return ranges


def read_rows(storage: Storage, rows: RowRange, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The candidates in a row range, batch by batch."""
    groups = range(rows.first_group, rows.end_group)
    for _, first, batch in read_table_file(storage, rows.file, CANDIDATES, columns, 65_536, groups):
        skip = max(0, rows.first_row - first)
        stop = batch.num_rows if rows.end_row is None else min(batch.num_rows, rows.end_row - first)
        if stop <= 0:
            return
        if skip < stop:
            yield batch.slice(skip, stop - skip)


def _batches(batches: Iterator[pa.RecordBatch], batch_rows: int) -> Iterator[pa.Table]:
    """Batches put together to `batch_rows` rows or a little more."""
    buffered: list[pa.RecordBatch] = []
    for batch in batches:
        buffered.append(batch)
        if sum(rows.num_rows for rows in buffered) >= batch_rows:
            yield pa.Table.from_batches(buffered).combine_chunks()
            buffered = []
    if buffered:
        yield pa.Table.from_batches(buffered).combine_chunks()


def _packed_by_id(records: HashedRows, bits: int) -> Iterator[pa.RecordBatch]:
    yield from pack(records.record_type, part_of(records.hashes, bits), records.rows)
