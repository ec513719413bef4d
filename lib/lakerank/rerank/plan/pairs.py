"""Index, number and join: the keys of a run's tables, and its validated pairs by document."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lakerank.cost import Sizing
from lakerank.lake.formats.snapshot import TableFile
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, read_table_file
from lakerank.plan.index import (
    Chunk,
    QueryList,
    TableIndex,
    TableName,
    table_chunks,
    write_chunk_index,
    write_query_list,
)
from lakerank.plan.lookup import PreviousCandidates
from lakerank.plan.pairs import JOIN_RECORDS, flat, hashed_candidates, hashed_documents, part_of, validate_pairs
from lakerank.plan.partitions import DocumentRanges
from lakerank.plan.plan import BATCH_ROWS, write_part
from lakerank.runner import BATCHES, COUNTS, Counts, Runner, gather, histogram, pack, totals
from lakerank.schemas import CANDIDATES

logger = logging.getLogger(__name__)

_ROWS = pa.schema([("rows", pa.int64())])
_KEYS = ("query_id", "doc_id", "first_stage_rank")


def table_index(
    runner: Runner, storage: Storage, output: str, table: TableName, files: Sequence[Fragment], sizing: Sizing
) -> TableIndex:
    """The index of a table; missing index files are written first."""
    folder = join(output, "index", table)
    chunks = table_chunks(files)
    existing = set(storage.list_names(folder))
    missing = [chunk for chunk in chunks if chunk.index_name not in existing]

    def write(chunk: Chunk) -> Iterator[pa.RecordBatch]:
        rows = write_chunk_index(storage, folder, table, chunk)
        yield pa.RecordBatch.from_pydict({"rows": [rows]}, schema=_ROWS)

    if missing:
        runner.describe(f"plan: index {table}, {len(missing)} of {len(chunks)} chunks")
        gather(runner, missing, write, _ROWS, tasks=max(4 * runner.parallelism, len(missing) // 8))
    return TableIndex(storage, folder, chunks, sizing)


def number_queries(runner: Runner, index: TableIndex, folder: str) -> QueryList:
    """Sort and number the queries of an index in one task: as many as its memory holds, some ten million."""

    def write(_: int) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"rows": [write_query_list(index, folder)]}, schema=_ROWS)

    runner.describe("plan: sort and number the queries")
    return QueryList(index.storage, folder, gather(runner, [0], write, _ROWS)["rows"][0].as_py())


class RowRange(NamedTuple):
    """Rows of a table file: some whole row groups (all, where `end_group` is 0), or part of one that is too large."""

    file: TableFile
    first_group: int
    end_group: int
    first_row: int
    end_row: int | None


@dataclass(frozen=True, slots=True)
class Join:
    """Validates candidates by document id in 2^bits parts: pairs to score go to `pairs/`, the others to `rejects/`.

    Pairs are counted by document range and by buckets of `bucket_rows` neighbouring queries. Of the last published
    run's candidates (`previous`), those that are still listed are counted.
    """

    storage: Storage
    folder: str
    queries: QueryList
    ranges: DocumentRanges
    bits: int
    bucket_rows: int
    previous: PreviousCandidates | None

    def run(self, runner: Runner, candidates: Sequence[Fragment], documents: TableIndex, batch_rows: int) -> Counts:
        """Validate all candidates; `batch_rows` of them are grouped by document at once.

        Returns:
            Totals, and numbers of pairs by document `range` and by `bucket` of queries.
        """

        def read_batches(rows: RowRange) -> Iterator[pa.RecordBatch]:
            for batch in _batches(read_rows(self.storage, rows, _KEYS), batch_rows):
                for record_type, hashes, records in hashed_candidates(batch, self.queries):
                    yield from pack(record_type, part_of(hashes, self.bits), records)

        def read_documents(chunk: int) -> Iterator[pa.RecordBatch]:
            record_type, hashes, records = hashed_documents(documents, chunk)
            yield from pack(record_type, part_of(hashes, self.bits), records)

        rows = sum(file.rows for file in candidates)
        runner.describe(f"plan: join {rows} candidates with documents and queries")
        ranges = row_ranges(candidates, 2 * runner.parallelism, batch_rows)
        records = [
            runner.scatter(ranges, read_batches, BATCHES, max(4 * runner.parallelism, rows // batch_rows)),
            runner.scatter(range(len(documents.chunks)), read_documents, BATCHES, documents.tasks(runner.parallelism)),
        ]
        return runner.summed(runner.exchange(records, 2**self.bits, JOIN_RECORDS, self._validate, COUNTS))

    def _validate(self, part: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        validated = validate_pairs(records, self.queries)
        rows, numbers, _ = flat(validated.pairs)
        for name, table in (("pairs", validated.pairs), ("rejects", validated.rejects)):
            if table.num_rows:
                write_part(self.storage, join(self.folder, name), part, table)
        retained = self.previous.retained(part, self.bits, validated, self.queries) if self.previous else 0
        rejected, duplicates, documents = validated.rejects.num_rows, validated.duplicates, validated.documents
        yield totals({"candidates": len(rows) + rejected, "rejected": rejected, "duplicates": duplicates})
        yield totals({"documents": documents, "retained": retained})
        yield histogram("range", self.ranges.of(validated.pairs["document"].to_numpy()[rows]))
        yield histogram("bucket", numbers // self.bucket_rows)


def row_ranges(files: Sequence[Fragment], least: int, batch_rows: int = BATCH_ROWS) -> list[RowRange]:
    """Row ranges of about `batch_rows`, or fewer rows where that makes less than `least` of them.

    Rows before a range of a row group are decoded and passed over, so one row group is cut into `least` at most.
    """
    target = max(1, min(batch_rows, -(-sum(file.rows for file in files) // least)))
    ranges: list[RowRange] = []
    for file in (file for file in files if file.rows):
        if not file.row_groups:
            ranges.append(RowRange(file.file, 0, 0, 0, None))
            continue
        rows_of_group = -(-file.rows // file.row_groups)
        if rows_of_group <= target * 2:
            parts = min(file.row_groups, max(1, round(file.rows / target)))
            edges = [file.row_groups * part // parts for part in range(parts + 1)]
            ranges += (RowRange(file.file, a, b, 0, None) for a, b in pairwise(edges))
            continue
        size = max(target, -(-rows_of_group // least))
        if rows_of_group > batch_rows * least:
            logger.warning("%s: %d rows a row group; smaller row groups are read faster", file.file.uri, rows_of_group)
        for group in range(file.row_groups):
            # The last range has no end: a group may be larger than the file's mean.
            starts = range(0, rows_of_group, size)
            ends = [*starts[1:], None]
            ranges += (RowRange(file.file, group, group + 1, a, b) for a, b in zip(starts, ends, strict=True))
    return ranges


def read_rows(storage: Storage, rows: RowRange, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The candidates in a row range, batch by batch."""
    groups = range(rows.first_group, rows.end_group) if rows.end_group else None
    for _, numbers, batch in read_table_file(storage, rows.file, CANDIDATES, columns, 65_536, groups):
        if rows.end_row is not None and len(numbers) and numbers[0] >= rows.end_row:
            return
        skip = int(np.searchsorted(numbers, rows.first_row))
        stop = len(numbers) if rows.end_row is None else int(np.searchsorted(numbers, rows.end_row))
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
