"""The score lookup: scores that are in the lake already, by content.

A unit file is read once for planning: its scores are then in an index file with those of other units, sorted by
document content. Index files are only ever added, named by the units they cover: they need no locks and no pointer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.fingerprint import sequence_hash
from lakerank.lake.scores import CorruptScoreFile, finished_units, read_unit
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import opened, parquet_bytes, read_table_file
from lakerank.plan.index import QueryList, TableIndex, row_numbers
from lakerank.records import TRANSIENT_REASONS

logger = logging.getLogger(__name__)

#: A stored score, or the reason why there is none, and the unit it is in.
RESULT = [
    ("logit", pa.float32()),
    ("truncated", pa.bool_()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("unit", pa.string()),
]

#: A score in an index file, keyed by the contents it is the score of.
_INDEXED_SCORES = pa.schema([("doc_hash", pa.string()), ("query_hash", pa.string()), *RESULT])

#: A score on its way to the documents of that content: the query by the number of the first of its content.
CONTENT_SCORES = pa.schema([("doc_hash", pa.string()), ("query", pa.int32()), *RESULT])

#: A document by its number, and its content.
DOCUMENT_CONTENTS = pa.schema([("doc_hash", pa.string()), ("document", pa.int64())])

#: A score of a document by its number.
DOCUMENT_SCORES = pa.schema([("document", pa.int64()), ("query", pa.int32()), *RESULT])

#: Unit files that one index file covers.
UNITS_A_FILE = 256

_UNITS_KEY = b"lakerank.units"
_ROW_GROUP_ROWS = 100_000

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ScoreLookup:
    """The score index files of one scorer, and units that they cover but that are no longer in the lake."""

    storage: Storage
    folder: str
    names: tuple[str, ...]
    gone: frozenset[str]

    def read(self, name: str, queries: QueryList) -> pa.Table:
        """The scores of an index file for contents that some query has, as CONTENT_SCORES."""
        rows = self._read(name)
        coded = rows["query_hash"].combine_chunks().dictionary_encode()
        known = pc.index_in(coded.dictionary, value_set=queries.column("hash")).fill_null(-1).to_numpy()
        numbers = known[coded.indices.to_numpy()] if len(known) else np.zeros(0, np.int32)
        columns: dict[str, Any] = {"query": pa.array(numbers.astype(np.int32))}
        arrays = [columns[name] if name in columns else rows[name] for name in CONTENT_SCORES.names]
        return pa.Table.from_arrays(arrays, schema=CONTENT_SCORES).filter(pa.array(numbers >= 0))

    def _read(self, name: str) -> pa.Table:
        address = join(self.folder, name)
        batches = [batch for *_, batch in read_table_file(self.storage, address, _INDEXED_SCORES, batch_rows=65_536)]
        rows = pa.Table.from_batches(batches, schema=_INDEXED_SCORES)
        if self.gone:
            rows = rows.filter(pc.invert(pc.is_in(rows["unit"], value_set=pa.array(sorted(self.gone)))))
        return rows


@dataclass(frozen=True, slots=True)
class ScoreIndexer:
    """Writes what is missing of a scorer's score index."""

    storage: Storage
    output: str
    scorer: str

    @property
    def folder(self) -> str:
        return join(self.output, "index", "scores", f"scorer={self.scorer}")

    def missing(self) -> tuple[ScoreLookup, list[Sequence[str]]]:
        """The lookup by the index files there are, and units that they do not cover, UNITS_A_FILE together."""
        units = finished_units(self.storage, self.output, self.scorer)
        names = self.storage.list_names(self.folder)
        covered = {unit for name in names for unit in self._covered(name)}
        missing = sorted(units - covered)
        batches = [missing[first : first + UNITS_A_FILE] for first in range(0, len(missing), UNITS_A_FILE)]
        return ScoreLookup(self.storage, self.folder, tuple(sorted(names)), frozenset(covered - units)), list(batches)

    def write(self, units: Sequence[str]) -> str | None:
        """Index the scores of some units; returns the index file's name, or None when all unit files are corrupt."""
        tables, names = [], []
        for unit in units:
            try:
                rows = read_unit(self.storage, self.output, self.scorer, unit)
            except CorruptScoreFile as error:
                logger.warning("%s: its pairs are scored again", error)
                continue
            names.append(unit)
            truncated = pc.or_kleene(rows["query_truncated"], rows["document_truncated"])
            columns = {"truncated": truncated, "unit": pa.array([unit] * rows.num_rows, pa.string())}
            arrays = [columns[name] if name in columns else rows[name] for name in _INDEXED_SCORES.names]
            tables.append(pa.Table.from_arrays(arrays, schema=_INDEXED_SCORES))
        if not names:
            return None
        file = f"{sequence_hash((unit,) for unit in names)}.parquet"
        rows = pa.concat_tables(tables).sort_by([("doc_hash", "ascending"), ("query_hash", "ascending")])
        metadata = {_UNITS_KEY.decode(): ",".join(names)}
        self.storage.create(join(self.folder, file), parquet_bytes(rows, _ROW_GROUP_ROWS, metadata))
        return file

    def _covered(self, name: str) -> list[str]:
        with opened(self.storage, join(self.folder, name)) as parquet:
            units = (parquet.schema_arrow.metadata or {}).get(_UNITS_KEY, b"")
        return [unit for unit in units.decode().split(",") if unit]


def document_contents(index: TableIndex, chunk: int) -> pa.Table:
    """A chunk's documents as DOCUMENT_CONTENTS."""
    rows = index.read(chunk, ["hash"])
    return pa.Table.from_arrays([rows["hash"], pa.array(row_numbers(chunk, rows.num_rows))], schema=DOCUMENT_CONTENTS)


def match_contents(scores: pa.Table, documents: pa.Table) -> pa.Table:
    """Every one of CONTENT_SCORES with every one of DOCUMENT_CONTENTS of its content, as DOCUMENT_SCORES."""
    coded = documents["doc_hash"].combine_chunks().dictionary_encode()
    code = coded.indices.to_numpy().astype(np.int64)
    by_code = np.argsort(code, kind="stable")
    count = np.bincount(code, minlength=len(coded.dictionary))
    start = np.cumsum(count) - count
    matches = pc.index_in(scores["doc_hash"].combine_chunks(), value_set=coded.dictionary).fill_null(-1).to_numpy()
    kept = np.flatnonzero(matches >= 0)
    matches = matches[kept]
    repeat = count[matches]
    rows = np.repeat(kept, repeat)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(repeat) - repeat, repeat)
    numbers = pa.array(documents["document"].to_numpy()[by_code[np.repeat(start[matches], repeat) + within]])
    chosen = scores.take(pa.array(rows))
    arrays = [numbers if name == "document" else chosen[name] for name in DOCUMENT_SCORES.names]
    return pa.Table.from_arrays(arrays, schema=DOCUMENT_SCORES)


def best_scores(scores: pa.Table, documents: Int64) -> tuple[Int64, pa.Table]:
    """One stored score a document and query: a logit goes before a reject, one that lasts before one that may not.

    Args:
        scores: DOCUMENT_SCORES.
        documents: rising document numbers (D,); others are left out.

    Returns:
        Rising keys (N,) `position in documents << 32 | query`, and their rows with a column `lasting`.
    """
    if not scores.num_rows or not len(documents):
        empty = scores.slice(0, 0).append_column("lasting", pa.array([], pa.bool_()))
        return np.zeros(0, np.int64), empty
    numbers = scores["document"].to_numpy()
    position = np.minimum(np.searchsorted(documents, numbers), len(documents) - 1)
    kept = documents[position] == numbers
    scores, position = scores.filter(pa.array(kept)).combine_chunks(), position[kept]
    keys = (position.astype(np.int64) << 32) | scores["query"].to_numpy()
    transient = pc.is_in(scores["reason"], value_set=pa.array(sorted(reason.value for reason in TRANSIENT_REASONS)))
    preference = transient.to_numpy().astype(np.int8) * 2 + pc.is_valid(scores["reason"]).to_numpy()
    order = np.lexsort((_ordinals(scores["unit"]), preference, keys))
    first = order[np.concatenate([[True], keys[order][1:] != keys[order][:-1]])] if len(order) else order
    rows = scores.append_column("lasting", pc.invert(transient)).take(pa.array(first))
    return keys[first], rows


def _ordinals(column: pa.ChunkedArray) -> Int64:
    """The rank of each string among the distinct ones."""
    coded = column.combine_chunks().dictionary_encode()
    ordinal = np.empty(len(coded.dictionary), np.int64)
    ordinal[pc.sort_indices(coded.dictionary).to_numpy()] = np.arange(len(coded.dictionary))
    return np.asarray(ordinal[coded.indices.to_numpy()])
