"""Clusters of near duplicates, distributed: sketches by chunk, buckets, and comparisons where the sketches are."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakerank.duplicates.clusters import DONE, EDGES, Clusters, chunk_parts, clusters_of
from lakerank.duplicates.sketch import BUCKETS, IMAGE_SIZE, SKETCHES, Likeness, bucket_pairs, buckets
from lakerank.fingerprint import fingerprint
from lakerank.lake.checksums import json_bytes
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import files_key, index_key, parquet_bytes
from lakerank.plan.index import TableIndex, chunks_and_rows
from lakerank.plan.pairs import key_hash
from lakerank.plan.plan import CHUNK_ROWS, ROW_GROUP_ROWS, part_name
from lakerank.runner import BATCHES, COUNTS, Rows, Runner, pack, total_of, totals

logger = logging.getLogger(__name__)

_BUCKET = _PAIR = _EDGE = 0

#: Two documents to compare, by number; then the second one's content and sketch with the first.
_PAIRS = pa.schema([("one", pa.int64()), ("other", pa.int64())])
_COMPARED = pa.schema(
    [("one", pa.int64()), ("hash", pa.string()), *SKETCHES, *((name, pa.int32()) for name in IMAGE_SIZE)]
)

#: Sketches compared at once.
_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Clustering:
    """Finds the clusters of a documents table: by its index, the sketches of the same chunks, and a likeness."""

    storage: Storage
    output: str
    documents: TableIndex
    sketches: TableIndex
    likeness: Likeness

    def ensure(self, runner: Runner) -> Clusters:
        """The clusters of these documents, stored by an earlier run or found now."""
        chunks = [chunk.index_name for chunk in self.documents.chunks]
        key = fingerprint({"chunks": chunks, **asdict(self.likeness)}, length=32)
        files = files_key(index_key(chunk.file) for chunk in self.documents.chunks)
        folder = join(self.output, "index", "clusters", f"{files}-{key}")
        if not self.storage.exists(join(folder, DONE)):
            runner.describe("plan: cluster near duplicates")
            contents = self._stars(runner, folder)
            self.storage.create(join(folder, DONE), json_bytes({"contents": contents}))
            logger.info("plan: %d contents are near duplicates of another", contents)
        return Clusters(self.storage, folder)

    @property
    def _bits(self) -> int:
        rows = sum(chunk.rows for chunk in self.documents.chunks)
        return int(np.ceil(np.log2(max(1, 4 * rows // CHUNK_ROWS))))

    def _edges(self, runner: Runner) -> Rows:
        """EDGES of near duplicates, for one task."""
        by_file = self.sketches.by_file()
        part_of = chunk_parts(by_file)

        def fill(chunks: list[int]) -> Iterator[pa.RecordBatch]:
            for chunk in chunks:
                rows = self._rows(np.array([chunk]))
                for first in range(0, rows.num_rows, _AT_ONCE):
                    some = rows.slice(first, _AT_ONCE)
                    content, number = key_hash(some["hash"].combine_chunks()), some["number"].to_numpy()
                    for bucket, chosen in buckets(some, self.likeness):
                        columns = [pa.array(column) for column in (bucket, content[chosen], number[chosen])]
                        part = (bucket & np.uint64(2**self._bits - 1)).astype(np.int32)
                        yield from pack(_BUCKET, part, pa.Table.from_arrays(columns, schema=BUCKETS))

        def pair(_: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
            one, other = bucket_pairs(records[_BUCKET])
            table = pa.Table.from_arrays([pa.array(one), pa.array(other)], schema=_PAIRS)
            yield from pack(_PAIR, part_of[chunks_and_rows(other)[0]], table)

        def attach(_: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
            pairs = records[_PAIR].group_by(_PAIRS.names).aggregate([])
            for some, others in self._looked_up(pairs, "other"):
                table = others.append_column("one", some["one"]).select(_COMPARED.names)
                yield from pack(_PAIR, part_of[chunks_and_rows(some["one"].to_numpy())[0]], table)

        def compare(_: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
            for some, ones in self._looked_up(records[_PAIR], "one"):
                alike = pa.array(self.likeness.alike(ones, some))
                edges = pa.Table.from_arrays([ones["hash"], some["hash"]], schema=EDGES).filter(alike)
                yield from pack(_EDGE, np.zeros(edges.num_rows, np.int32), edges)

        filled = runner.scatter(by_file, fill, BATCHES, self.sketches.tasks(runner.parallelism))
        paired = runner.exchange([filled], 2**self._bits, {_BUCKET: BUCKETS}, pair, BATCHES)
        attached = runner.exchange([paired], len(by_file), {_PAIR: _PAIRS}, attach, BATCHES)
        return runner.exchange([attached], len(by_file), {_PAIR: _COMPARED}, compare, BATCHES)

    def _stars(self, runner: Runner, folder: str) -> int:
        """Write the clusters' file; returns how many contents are not the first of their cluster."""

        def join_edges(_: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
            rows = clusters_of(records[_EDGE])
            self.storage.replace(join(folder, part_name(0)), parquet_bytes(rows, ROW_GROUP_ROWS))
            yield totals({"contents": rows.num_rows})

        joined = runner.exchange([self._edges(runner)], 1, {_EDGE: EDGES}, join_edges, COUNTS)
        return total_of(runner.summed(joined), "contents")

    def _rows(self, chunks: npt.NDArray[np.int64]) -> pa.Table:
        """Number, content, sketch and size of the rows of chunks, rising."""
        numbers = chunks.tolist()
        sketches = pa.concat_tables(
            self.sketches.stored(of_file, SKETCHES) for of_file in self.sketches.by_file(numbers)
        )
        known = pa.concat_tables(self.documents.read(numbers, ["number", "hash", *IMAGE_SIZE])).sort_by("number")
        rows = sketches.sort_by("number")
        for name in ("hash", *IMAGE_SIZE):
            rows = rows.append_column(name, known[name])
        return rows

    def _looked_up(self, pairs: pa.Table, name: str) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Some pairs at once, and the rows of the documents that a column of theirs numbers."""
        rows = self._rows(np.unique(chunks_and_rows(pairs[name].to_numpy())[0]))
        at = np.searchsorted(rows["number"].to_numpy(), pairs[name].to_numpy())
        for first in range(0, len(at), _AT_ONCE):
            yield pairs.slice(first, _AT_ONCE).combine_chunks(), rows.take(pa.array(at[first : first + _AT_ONCE]))
