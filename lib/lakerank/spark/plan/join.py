"""What a plan is made from, as blocks of keys: candidates and documents, spread by document id."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from lakerank.lake.storage import Storage
from lakerank.lake.tables import Fragment, read_table_file
from lakerank.schemas import CANDIDATES
from lakerank.spark.plan.index import PLACE_BITS, TableIndex
from lakerank.spark.plan.queries import QueryList
from lakerank.spark.runtime.frames import parallelism, scatter
from lakerank.spark.runtime.shuffle import BATCHES, key_hash, pack, part_of

logger = logging.getLogger(__name__)

#: Candidates that a task turns into blocks at a time.
ROWS_AT_ONCE = 2**20

#: Stands for "no first-stage rank", after every real one.
NO_RANK = 2**31 - 1

#: A document id and the queries that list it, by number, each with its first-stage rank.
LISTED = pa.schema([("doc_id", pa.string()), ("queries", pa.list_(pa.int32())), ("ranks", pa.list_(pa.int32()))])

#: A candidate whose query is not in the lake (`number` -1), or whose document has no id.
LOOSE = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("number", pa.int32())])

#: A row of the documents table: `content` is a hash of its content hash.
PLACED = pa.schema(
    [
        ("doc_id", pa.string()),
        ("document", pa.int64()),
        ("content", pa.uint64()),
        ("empty", pa.bool_()),
    ]
)

_KEYS = ("query_id", "doc_id", "first_stage_rank")

LISTED_KIND, LOOSE_KIND, PLACED_KIND = 0, 1, 2
KINDS = {LISTED_KIND: LISTED, LOOSE_KIND: LOOSE, PLACED_KIND: PLACED}


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of a table file: some whole row groups, or part of one that is too large for one task."""

    file: str
    first_group: int
    end_group: int
    first_row: int
    end_row: int | None


def read_candidates(spark: SparkSession, storage: Storage, files: Sequence[Fragment]) -> DataFrame:
    """Every listed pair. Columns: CANDIDATES."""

    def read(piece: Slice) -> Iterator[pa.RecordBatch]:
        yield from _read_slice(storage, piece, CANDIDATES.names)

    schema = pa.schema([field.with_nullable(True) for field in CANDIDATES])
    return scatter(spark, _slices(files, 2 * parallelism(spark)), read, schema)


def candidate_blocks(
    spark: SparkSession, storage: Storage, files: Sequence[Fragment], queries: QueryList, bits: int
) -> DataFrame:
    """Every listed pair as blocks for 2^bits parts, by document id."""

    def read(piece: Slice) -> Iterator[pa.RecordBatch]:
        for rows in _rows_at_once(_read_slice(storage, piece, _KEYS)):
            yield from _listed_blocks(rows, queries, bits)

    return scatter(spark, _slices(files, 2 * parallelism(spark)), read, BATCHES)


def document_blocks(spark: SparkSession, index: TableIndex, bits: int) -> DataFrame:
    """Every row of the documents table as blocks for 2^bits parts, by document id."""

    def read(chunk: int) -> Iterator[pa.RecordBatch]:
        rows = index.read(chunk, ["id", "hash", "empty"])
        hashes = key_hash(rows["id"].combine_chunks())
        order = np.argsort(hashes, kind="stable")
        placed = pa.Table.from_arrays(
            [
                rows["id"],
                pa.array((chunk << PLACE_BITS) + np.arange(rows.num_rows)),
                pa.array(key_hash(rows["hash"].combine_chunks())),
                rows["empty"],
            ],
            schema=PLACED,
        )
        yield from pack(PLACED_KIND, part_of(hashes[order], bits), placed.take(pa.array(order)))

    return scatter(spark, range(len(index.chunks)), read, BATCHES)


def _slices(files: Sequence[Fragment], least: int) -> list[Slice]:
    """Slices of about ROWS_AT_ONCE rows, or fewer where that makes less than `least` of them.

    Rows before a slice of a row group are decoded and passed over, so one row group is cut into `least` at most.
    """
    total = sum(file.rows for file in files)
    target = max(1, min(ROWS_AT_ONCE, -(-total // least)))
    slices: list[Slice] = []
    for file in (file for file in files if file.rows):
        rows_of_group = -(-file.rows // file.row_groups)
        if rows_of_group <= target * 2:
            parts = min(file.row_groups, max(1, round(file.rows / target)))
            edges = [file.row_groups * part // parts for part in range(parts + 1)]
            slices += (Slice(file.file.uri, a, b, 0, None) for a, b in pairwise(edges))
            continue
        size = max(target, -(-rows_of_group // least))
        if rows_of_group > ROWS_AT_ONCE * least:
            logger.warning("%s: %d rows a row group; smaller row groups are read faster", file.file.uri, rows_of_group)
        for group in range(file.row_groups):
            # The last slice has no end: a group may be larger than the file's mean.
            starts = range(0, rows_of_group, size)
            ends = [*starts[1:], None]
            slices += (Slice(file.file.uri, group, group + 1, a, b) for a, b in zip(starts, ends, strict=True))
    return slices


def _read_slice(storage: Storage, piece: Slice, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a slice, batch by batch."""
    groups = range(piece.first_group, piece.end_group)
    for _, first, batch in read_table_file(storage, piece.file, CANDIDATES, columns, 65_536, groups):
        skip = max(0, piece.first_row - first)
        stop = batch.num_rows if piece.end_row is None else min(batch.num_rows, piece.end_row - first)
        if stop <= 0:
            return
        if skip < stop:
            yield batch.slice(skip, stop - skip)


def _rows_at_once(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches put together, some ROWS_AT_ONCE rows at a time."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(rows.num_rows for rows in held) >= ROWS_AT_ONCE:
            yield pa.Table.from_batches(held).combine_chunks()
            held = []
    if held:
        yield pa.Table.from_batches(held).combine_chunks()


def _listed_blocks(rows: pa.Table, queries: QueryList, bits: int) -> Iterator[pa.RecordBatch]:
    """Candidates grouped by document, so that an id is named once a block."""
    listed = rows["query_id"].combine_chunks().dictionary_encode()
    numbers = np.append(queries.numbers(listed.dictionary), -1)[listed.indices.fill_null(-1).to_numpy()]
    wanted = rows["doc_id"].combine_chunks().dictionary_encode()
    codes = wanted.indices.fill_null(-1).to_numpy().astype(np.int64)
    loose = (numbers < 0) | (codes < 0)
    if loose.any():
        yield from _loose_blocks(rows, numbers, loose, bits)
    hashes = key_hash(wanted.dictionary)
    by_hash = np.argsort(hashes)
    place = np.empty(len(by_hash), np.int64)
    place[by_hash] = np.arange(len(by_hash))
    keys = (place[codes[~loose]] << 32) | numbers[~loose]
    order = np.argsort(keys)
    keys = keys[order]
    ranks = rows["first_stage_rank"].fill_null(NO_RANK).to_numpy()[~loose][order]
    documents, starts = np.unique(keys >> 32, return_index=True)
    offsets = pa.array(np.append(starts, len(keys)).astype(np.int32))
    chosen = by_hash[documents]
    grouped = [
        wanted.dictionary.take(pa.array(chosen)),
        pa.ListArray.from_arrays(offsets, pa.array((keys & 0xFFFFFFFF).astype(np.int32))),
        pa.ListArray.from_arrays(offsets, pa.array(ranks)),
    ]
    yield from pack(LISTED_KIND, part_of(hashes[chosen], bits), pa.Table.from_arrays(grouped, schema=LISTED))


def _loose_blocks(
    rows: pa.Table, numbers: npt.NDArray[np.int64], loose: npt.NDArray[np.bool_], bits: int
) -> Iterator[pa.RecordBatch]:
    pairs = rows.select(["query_id", "doc_id"]).append_column("number", pa.array(numbers.astype(np.int32)))
    pairs = pairs.filter(pa.array(loose)).combine_chunks()
    hashes = key_hash(pairs["doc_id"].combine_chunks())
    order = np.argsort(hashes)
    yield from pack(LOOSE_KIND, part_of(hashes[order], bits), pairs.take(pa.array(order)).cast(LOOSE))
