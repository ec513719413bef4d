"""The candidates of the last published run, held against this run's: how many of them are still listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import read_table_file
from lakerank.spark.plan.pairs import PAIRS, REJECTS, Judged, flat
from lakerank.spark.plan.queries import QueryList
from lakerank.spark.runtime.shuffle import key_hash, part_of

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LastPairs:
    """The plan of an earlier run: its pairs lie in files by document id, like this run's, so none need move."""

    storage: Storage
    folder: str
    bits: int
    candidates: int
    queries: QueryList

    #: Numbers in this run of the earlier run's queries, one plan at a time.
    _numbers: ClassVar[dict[str, Int64]] = {}

    def still_listed(self, part: int, bits: int, judged: Judged, queries: QueryList) -> int:
        """How many of this part's pairs were candidates of the earlier run."""
        documents, numbers, names = self._read(part, bits, queries)
        rows, own, _ = flat(judged.pairs)
        rejects = judged.rejects
        known = queries.numbers(rejects["query_id"].combine_chunks())
        own_documents = pa.concat_arrays([_taken(judged.pairs["doc_id"], rows), rejects["doc_id"].combine_chunks()])
        own_names = pa.concat_arrays([pa.nulls(len(rows), pa.string()), rejects["query_id"].combine_chunks()])
        codes = pa.concat_arrays([documents, own_documents]).dictionary_encode().indices.fill_null(-1)
        unknown = pa.concat_arrays([names, own_names]).dictionary_encode().indices.fill_null(-1)
        query = np.concatenate([numbers, own, known])
        # A query that is not in the lake has no number: its id tells it from others, as negative numbers.
        query = np.where(query >= 0, query, -2 - unknown.to_numpy().astype(np.int64))
        keys = (codes.to_numpy().astype(np.int64) << 33) + query
        return len(np.intersect1d(keys[: len(documents)], keys[len(documents) :]))

    def _read(self, part: int, bits: int, queries: QueryList) -> tuple[pa.Array, Int64, pa.Array]:
        """Pairs of the earlier run that belong to this part: document ids, query numbers now, query ids."""
        pairs = self._part("pairs", PAIRS, part, bits)
        rejects = self._part("rejects", REJECTS, part, bits)
        rows, old, _ = flat(pairs)
        documents = pa.concat_arrays([_taken(pairs["doc_id"], rows), rejects["doc_id"].combine_chunks()])
        rejected = rejects["query_id"].combine_chunks()
        numbers = np.concatenate([self._translated(queries)[old], queries.numbers(rejected)])
        names = pa.concat_arrays([self.queries.column("query_id").take(pa.array(old)), rejected])
        return documents, numbers, names

    def _translated(self, queries: QueryList) -> Int64:
        key = f"{self.folder} {queries.folder}"
        if key not in self._numbers:
            self._numbers.clear()
            self._numbers[key] = queries.numbers(self.queries.column("query_id"))
        return self._numbers[key]

    def _part(self, name: str, schema: pa.Schema, part: int, bits: int) -> pa.Table:
        """Rows of the earlier run's files that fall in this part: it may have had more parts, or fewer."""
        finer = max(0, self.bits - bits)
        numbers = range(part << finer, (part + 1) << finer) if finer else [part >> (bits - self.bits)]
        there = set(self.storage.list_names(join(self.folder, name)))
        batches = [
            batch
            for file in (f"part-{number:05d}.parquet" for number in numbers)
            if file in there
            for *_, batch in read_table_file(self.storage, join(self.folder, name, file), schema)
        ]
        rows = pa.Table.from_batches(batches, schema=schema)
        if bits <= self.bits or not rows.num_rows:
            return rows
        return rows.filter(pa.array(part_of(key_hash(rows["doc_id"].combine_chunks()), bits) == part))


def _taken(column: pa.ChunkedArray, rows: Int64) -> pa.Array:
    taken: Any = column.combine_chunks().take(pa.array(rows))
    return pc.cast(taken, pa.string())
