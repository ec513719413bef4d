"""Scores that are in the lake already, found by content: an index of them, kept beside the unit files.

A unit file is read once for planning: its scores then stand in an index file with many others', sorted by document
content. Index files only ever come to be, named by the units they cover, so they need no locks and no pointer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession

from lakerank.fingerprint import sequence_hash
from lakerank.lake.scores import CorruptScoreFile, finished_units, read_unit
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import opened, parquet_bytes, read_table_file
from lakerank.records import TRANSIENT_REASONS
from lakerank.spark.plan.index import PLACE_BITS, TableIndex
from lakerank.spark.plan.queries import QueryList
from lakerank.spark.plan.ranges import Stripes
from lakerank.spark.runtime.frames import describe_job, gather, parallelism, scatter
from lakerank.spark.runtime.shuffle import BATCHES, exchange, key_hash, pack, part_of

logger = logging.getLogger(__name__)

_RESULT = [
    ("logit", pa.float32()),
    ("truncated", pa.bool_()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("unit", pa.string()),
]

#: A stored score, keyed by what it is the score of.
STORED = pa.schema([("doc_hash", pa.string()), ("query_hash", pa.string()), *_RESULT])

#: The same on its way to the documents of that content: the query by the number of the first of its content.
_SENT = pa.schema([("doc_hash", pa.string()), ("query", pa.int32()), *_RESULT])
_WANTED = pa.schema([("doc_hash", pa.string()), ("document", pa.int64())])

#: A stored score of a document by its number.
FOUND = pa.schema([("document", pa.int64()), ("query", pa.int32()), *_RESULT])

#: Unit files that one index file covers.
UNITS_A_FILE = 256

_UNITS_KEY = b"lakerank.units"
_ROW_GROUP_ROWS = 100_000
_INDEXED = pa.schema([("file", pa.string())])
_SENT_KIND, _WANTED_KIND = 0, 1


@dataclass(frozen=True, slots=True)
class ScoreIndex:
    """The index files of one scorer, and units that they cover but that are no longer in the lake."""

    storage: Storage
    folder: str
    names: tuple[str, ...]
    gone: frozenset[str]

    def read(self, name: str) -> pa.Table:
        """The rows of an index file whose units are still there, as STORED."""
        address = join(self.folder, name)
        batches = [batch for *_, batch in read_table_file(self.storage, address, STORED, batch_rows=65_536)]
        rows = pa.Table.from_batches(batches, schema=STORED)
        if self.gone:
            rows = rows.filter(pc.invert(pc.is_in(rows["unit"], value_set=pa.array(sorted(self.gone)))))
        return rows


def score_index(spark: SparkSession, storage: Storage, output: str, scorer: str) -> ScoreIndex:
    """The index of a scorer's scores; what is missing of it is made first. Torn unit files do not count."""
    folder = join(output, "index", "scores", f"scorer={scorer}")
    units = finished_units(storage, output, scorer)
    names = storage.list_names(folder)
    covered = {unit for name in names for unit in _covered(storage, join(folder, name))}
    missing = sorted(units - covered)
    pieces = [missing[first : first + UNITS_A_FILE] for first in range(0, len(missing), UNITS_A_FILE)]

    def build(piece: Sequence[str]) -> Iterator[pa.RecordBatch]:
        name = _build(storage, output, scorer, folder, piece)
        yield pa.RecordBatch.from_pydict({"file": [name]}, schema=_INDEXED)

    if pieces:
        describe_job(spark, f"plan: index the scores of {len(missing)} units")
        built = gather(spark, pieces, build, _INDEXED)
        names = sorted({*names, *built["file"].drop_null().to_pylist()})
    return ScoreIndex(storage, folder, tuple(names), frozenset(covered - units))


def stored_blocks(
    spark: SparkSession,
    scores: ScoreIndex,
    documents: TableIndex,
    queries: QueryList,
    stripes: Stripes,
    edges: npt.NDArray[np.int64],
    kind: int,
    bits: int,
) -> DataFrame:
    """Stored scores as FOUND blocks of a kind, each sent to the bins of the documents that have its content now.

    Args:
        edges: first stripes of all bins but the first.
        bits: contents meet in 2^bits parts.
    """

    def send(name: str) -> Iterator[pa.RecordBatch]:
        yield from _sent_blocks(scores.read(name), queries, bits)

    def want(chunk: int) -> Iterator[pa.RecordBatch]:
        rows = documents.read(chunk, ["hash"])
        places = pa.array((chunk << PLACE_BITS) + np.arange(rows.num_rows))
        yield from _spread(_WANTED_KIND, pa.Table.from_arrays([rows["hash"], places], schema=_WANTED), bits)

    def meet(_: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        found = _meet(tables[_SENT_KIND], tables[_WANTED_KIND])
        bins = np.searchsorted(edges, stripes.of(found["document"].to_numpy()), side="right")
        order = np.argsort(bins, kind="stable")
        yield from pack(kind, bins[order], found.take(pa.array(order)))

    sent = scatter(spark, scores.names, send, BATCHES, tasks=8 * parallelism(spark))
    wanted = scatter(spark, range(len(documents.chunks)), want, BATCHES)
    return exchange([sent, wanted], 2**bits, {_SENT_KIND: _SENT, _WANTED_KIND: _WANTED}, meet, BATCHES)


def best_found(found: pa.Table, documents: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], pa.Table]:
    """One stored score a document and query: a logit goes before a reject, one that lasts before one that may not.

    Args:
        documents: rising document numbers (D,); others are left out.

    Returns:
        Rising keys (N,) `position in documents << 32 | query`, and their rows of FOUND with `lasting`.
    """
    if not found.num_rows or not len(documents):
        empty = found.slice(0, 0).append_column("lasting", pa.array([], pa.bool_()))
        return np.zeros(0, np.int64), empty
    numbers = found["document"].to_numpy()
    position = np.minimum(np.searchsorted(documents, numbers), len(documents) - 1)
    kept = documents[position] == numbers
    found, position = found.filter(pa.array(kept)).combine_chunks(), position[kept]
    keys = (position.astype(np.int64) << 32) | found["query"].to_numpy()
    transient = pc.is_in(found["reason"], value_set=pa.array(sorted(reason.value for reason in TRANSIENT_REASONS)))
    standing = transient.to_numpy().astype(np.int8) * 2 + pc.is_valid(found["reason"]).to_numpy()
    order = np.lexsort((_ordinals(found["unit"]), standing, keys))
    first = order[np.concatenate([[True], keys[order][1:] != keys[order][:-1]])] if len(order) else order
    rows = found.append_column("lasting", pc.invert(transient)).take(pa.array(first))
    return keys[first], rows


def _ordinals(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Where each string stands among the distinct ones, sorted."""
    coded = column.combine_chunks().dictionary_encode()
    place = np.empty(len(coded.dictionary), np.int64)
    place[pc.sort_indices(coded.dictionary).to_numpy()] = np.arange(len(coded.dictionary))
    return np.asarray(place[coded.indices.to_numpy()])


def _covered(storage: Storage, address: str) -> list[str]:
    with opened(storage, address) as parquet:
        named = (parquet.schema_arrow.metadata or {}).get(_UNITS_KEY, b"")
    return [unit for unit in named.decode().split(",") if unit]


def _build(storage: Storage, output: str, scorer: str, folder: str, units: Sequence[str]) -> str | None:
    tables, whole = [], []
    for unit in units:
        try:
            rows = read_unit(storage, output, scorer, unit)
        except CorruptScoreFile as error:
            logger.warning("%s: its pairs are scored again", error)
            continue
        whole.append(unit)
        truncated = pc.or_kleene(rows["query_truncated"], rows["document_truncated"])
        columns = {"truncated": truncated, "unit": pa.array([unit] * rows.num_rows, pa.string())}
        arrays = [columns[name] if name in columns else rows[name] for name in STORED.names]
        tables.append(pa.Table.from_arrays(arrays, schema=STORED))
    if not whole:
        return None
    name = f"{sequence_hash((unit,) for unit in whole)}.parquet"
    rows = pa.concat_tables(tables).sort_by([("doc_hash", "ascending"), ("query_hash", "ascending")])
    metadata = {_UNITS_KEY.decode(): ",".join(whole)}
    storage.create(join(folder, name), parquet_bytes(rows, _ROW_GROUP_ROWS, metadata))
    return name


def _sent_blocks(rows: pa.Table, queries: QueryList, bits: int) -> Iterator[pa.RecordBatch]:
    coded = rows["query_hash"].combine_chunks().dictionary_encode()
    known = pc.index_in(coded.dictionary, value_set=queries.column("hash")).fill_null(-1).to_numpy()
    numbers = known[coded.indices.to_numpy()] if len(known) else np.zeros(0, np.int32)
    columns = {"query": pa.array(numbers.astype(np.int32))}
    arrays = [columns[name] if name in columns else rows[name] for name in _SENT.names]
    yield from _spread(_SENT_KIND, pa.Table.from_arrays(arrays, schema=_SENT).filter(pa.array(numbers >= 0)), bits)


def _spread(kind: int, rows: pa.Table, bits: int) -> Iterator[pa.RecordBatch]:
    """Rows as blocks by the hash of `doc_hash`."""
    rows = rows.combine_chunks()
    if not rows.num_rows:
        return
    coded = rows["doc_hash"].combine_chunks().dictionary_encode()
    parts = part_of(key_hash(coded.dictionary), bits)[coded.indices.to_numpy()]
    order = np.argsort(parts, kind="stable")
    yield from pack(kind, parts[order], rows.take(pa.array(order)))


def _meet(sent: pa.Table, wanted: pa.Table) -> pa.Table:
    """Every stored score with every document that has its content, as FOUND."""
    coded = wanted["doc_hash"].combine_chunks().dictionary_encode()
    code = coded.indices.to_numpy().astype(np.int64)
    by_code = np.argsort(code, kind="stable")
    count = np.bincount(code, minlength=len(coded.dictionary))
    start = np.cumsum(count) - count
    found = pc.index_in(sent["doc_hash"].combine_chunks(), value_set=coded.dictionary).fill_null(-1).to_numpy()
    kept = np.flatnonzero(found >= 0)
    found = found[kept]
    repeat = count[found]
    rows = np.repeat(kept, repeat)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(repeat) - repeat, repeat)
    places = wanted["document"].to_numpy()[by_code[np.repeat(start[found], repeat) + within]]
    chosen = sent.take(pa.array(rows))
    arrays = [pa.array(places) if name == "document" else chosen[name] for name in FOUND.names]
    return pa.Table.from_arrays(arrays, schema=FOUND)
