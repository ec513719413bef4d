"""Clusters of near duplicates as the lake keeps them, by content; and the pure steps that find them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.errors import StorageError
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import read_table_file

#: A content and the first content of its cluster, which has no row of its own; contents without duplicates have none.
CLUSTERS = pa.schema([("hash", pa.string()), ("cluster", pa.string())])

#: Two contents that are near duplicates.
EDGES = pa.schema([("one", pa.string()), ("other", pa.string())])

#: The file that says that a folder has all of its clusters.
DONE = "done.json"


@dataclass(frozen=True, slots=True)
class Clusters:
    """The clusters in a folder of the lake. Crosses to workers small; each reads them once, some 80 bytes a content
    that has a duplicate."""

    storage: Storage
    folder: str

    #: Those that this process has read, of one folder.
    _read: ClassVar[dict[str, pa.Table]] = {}

    def of(self, hashes: pa.ChunkedArray) -> pa.Array:
        """The cluster of each content (N,); that of a content without duplicates is itself."""
        if self.folder not in self._read:
            if not self.storage.exists(join(self.folder, DONE)):
                raise StorageError(f"{self.folder}: deleted since the run was planned; use another --run-id")
            self._read.clear()
            names = self.storage.list_names(self.folder)
            files = [join(self.folder, name) for name in names if name.endswith(".parquet")]
            batches = [batch for file in files for *_, batch in read_table_file(self.storage, file, CLUSTERS)]
            self._read[self.folder] = pa.Table.from_batches(batches, schema=CLUSTERS).combine_chunks()
        rows, whole = self._read[self.folder], hashes.combine_chunks()
        found = pc.index_in(whole, value_set=rows["hash"].combine_chunks())
        return pc.coalesce(rows["cluster"].combine_chunks().take(found), whole)


def clusters_of(edges: pa.Table) -> pa.Table:
    """The CLUSTERS that some EDGES make: their connected components, each named by the least of its contents.

    All that an edge ties take the least parent of either's parent, until nothing changes: some log N rounds (Zhang,
    Azad, Buluç, Parallel Algorithms for Finding Connected Components using Linear Algebra, JPDC 144, 2020).
    """
    names = pc.unique(pa.chunked_array([*edges["one"].chunks, *edges["other"].chunks], pa.string())).sort()
    one, other = (pc.index_in(edges[name], value_set=names).to_numpy() for name in EDGES.names)
    parent, before = np.arange(len(names)), np.full(len(names), -1)
    while (parent != before).any():
        before, grandparent = parent, parent[parent]
        parent = grandparent.copy()
        for content, neighbour in ((one, other), (other, one)):
            np.minimum.at(parent, before[content], grandparent[neighbour])
            np.minimum.at(parent, content, grandparent[neighbour])
    later = np.flatnonzero(parent != np.arange(len(names)))
    return pa.Table.from_arrays([names.take(pa.array(at)) for at in (later, parent[later])], schema=CLUSTERS)


def chunk_parts(groups: list[list[int]]) -> npt.NDArray[np.int32]:
    """The group that each chunk is in: (C,)."""
    parts = np.zeros(sum(map(len, groups)), np.int32)
    for number, chunks in enumerate(groups):
        parts[chunks] = number
    return parts
