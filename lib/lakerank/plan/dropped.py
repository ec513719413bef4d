"""Dropped candidates: those of the last published run that this run no longer lists, counted part by part."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.errors import StorageError
from lakerank.lake.runs import RunPaths, current_run
from lakerank.lake.storage import Storage, join
from lakerank.plan.index import QueryList
from lakerank.plan.pairs import PAIRS, REJECTS, ValidatedPairs, flat, key_hash, part_of
from lakerank.plan.plan import load_plan, part_name, plan_folder, query_list, read_part

logger = logging.getLogger(__name__)

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PreviousCandidates:
    """The candidates of the last published run, to count those dropped since: its plan has them in files by document
    id, like this run's, so none need move."""

    storage: Storage
    folder: str
    bits: int
    count: int
    queries: QueryList

    #: Numbers in this run of the earlier run's queries, one plan at a time.
    _numbers: ClassVar[dict[str, Int64]] = {}

    def retained(self, part: int, bits: int, validated: ValidatedPairs, queries: QueryList) -> int:
        """How many of the previous candidates are candidates of this part of 2^bits."""
        old_documents, old_numbers, old_names = self._pairs(part, bits, queries)
        rows, numbers, _ = flat(validated.pairs)
        rejects = validated.rejects
        rejected = rejects["query_id"].combine_chunks()
        new_documents = [_taken(validated.pairs["doc_id"], rows), rejects["doc_id"].combine_chunks()]
        documents = _codes(old_documents, *new_documents)
        names = _codes(old_names, pa.nulls(len(rows), pa.string()), rejected)
        query = np.concatenate([old_numbers, numbers, queries.numbers(rejected)])
        # A query that is not in the lake has no number: its id tells it from others, as negative numbers.
        query = np.where(query >= 0, query, -2 - names)
        keys = (documents << 33) + query
        return len(np.intersect1d(keys[: len(old_documents)], keys[len(old_documents) :]))

    def _pairs(self, part: int, bits: int, queries: QueryList) -> tuple[pa.Array, Int64, pa.Array]:
        """The previous pairs that belong to a part: document ids, query numbers in this run, query ids."""
        pairs = self._part("pairs", PAIRS, part, bits)
        rejects = self._part("rejects", REJECTS, part, bits)
        rows, numbers, _ = flat(pairs)
        documents = pa.concat_arrays([_taken(pairs["doc_id"], rows), rejects["doc_id"].combine_chunks()])
        rejected = rejects["query_id"].combine_chunks()
        renumbered = np.concatenate([self._renumbered(queries)[numbers], queries.numbers(rejected)])
        names = pa.concat_arrays([self.queries.column("query_id").take(pa.array(numbers)), rejected])
        return documents, renumbered, names

    def _renumbered(self, queries: QueryList) -> Int64:
        key = f"{self.folder} {queries.folder}"
        if key not in self._numbers:
            self._numbers.clear()
            self._numbers[key] = queries.numbers(self.queries.column("query_id"))
        return self._numbers[key]

    def _part(self, name: str, schema: pa.Schema, part: int, bits: int) -> pa.Table:
        """Rows of the earlier run's files that fall in this part: it may have had more parts, or fewer."""
        finer = max(0, self.bits - bits)
        numbers = range(part << finer, (part + 1) << finer) if finer else [part >> (bits - self.bits)]
        folder = join(self.folder, name)
        existing = {*self.storage.list_names(folder)}
        files = [part_name(number) for number in numbers if part_name(number) in existing]
        tables = [read_part(self.storage, join(folder, file), schema) for file in files]
        rows = pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
        if bits <= self.bits or not rows.num_rows:
            return rows
        return rows.filter(pa.array(part_of(key_hash(rows["doc_id"].combine_chunks()), bits) == part))


def previous_candidates(storage: Storage, paths: RunPaths) -> PreviousCandidates | None:
    """The candidates of the last published run, if its plan's files still exist."""
    current = current_run(storage, paths.output)
    if current is None:
        return None
    previous = RunPaths(paths.output, current["run_id"])
    try:
        plan = load_plan(storage, previous)
    except StorageError as error:
        logger.warning("%s; candidates dropped since then are not counted", error)
        return None
    if plan is None:
        return None
    folder = plan_folder(previous, plan.attempt)
    if not storage.exists(join(folder, "queries")):
        return None
    return PreviousCandidates(storage, folder, plan.bits, plan.candidates, query_list(storage, previous, plan))


def _codes(*columns: pa.Array) -> Int64:
    """A number for each distinct string of some columns, one after the other; null is -1."""
    codes = pa.concat_arrays(columns).dictionary_encode().indices.fill_null(-1)
    return np.asarray(codes.to_numpy().astype(np.int64))


def _taken(column: pa.ChunkedArray, rows: Int64) -> pa.Array:
    taken: Any = column.combine_chunks().take(pa.array(rows))
    return pc.cast(taken, pa.string())
