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
            files = [
                join(self.folder, name) for name in self.storage.list_names(self.folder) if name.endswith(".parquet")
            ]
            batches = [batch for file in files for *_, batch in read_table_file(self.storage, file, CLUSTERS)]
            self._read[self.folder] = pa.Table.from_batches(batches, schema=CLUSTERS).combine_chunks()
        rows, whole = self._read[self.folder], hashes.combine_chunks()
        found = pc.index_in(whole, value_set=rows["hash"].combine_chunks())
        return pc.coalesce(rows["cluster"].combine_chunks().take(found), whole)


def contracted(edges: pa.Table) -> tuple[pa.Table, int]:
    """Tie each content of some EDGES, and its neighbours, to the least of them; and how many contents are unsettled.

    All edges of each content in `one` are among these. Repeated until nothing is unsettled, each content has one edge,
    to the least of its component: stars (Kiveris, Lattanzi, Mirrokni, Rastogi, Vassilvitskii, Connected Components in
    MapReduce and Beyond, SoCC 2014).
    """
    both = pa.chunked_array([*edges["one"].chunks, *edges["other"].chunks], pa.string())
    names = pc.unique(both).sort()
    one, other = (pc.index_in(edges[name], value_set=names).to_numpy().astype(np.int64) for name in EDGES.names)
    one, other = np.unique(np.stack([one, other]), axis=1) if len(one) else (one, other)
    starts = np.flatnonzero(np.diff(one, prepend=-1))
    least = np.minimum(np.minimum.reduceat(other, starts), one[starts]) if len(starts) else starts
    sizes = np.diff(starts, append=len(one))
    unsettled = int(((least != one[starts]) & (sizes > 1)).sum())
    tied = np.concatenate([np.stack([one[starts], least]), np.stack([other, np.repeat(least, sizes)])], axis=1)
    tied = np.unique(tied[:, tied[0] != tied[1]], axis=1)
    return pa.Table.from_arrays([names.take(pa.array(row)) for row in tied], schema=EDGES), unsettled


def both_ways(edges: pa.Table) -> pa.Table:
    """EDGES and the same turned round."""
    return pa.concat_tables([edges, edges.select([1, 0]).rename_columns(EDGES.names)]).combine_chunks()


def chunk_parts(groups: list[list[int]]) -> npt.NDArray[np.int32]:
    """The group that each chunk is in: (C,)."""
    parts = np.zeros(sum(map(len, groups)), np.int32)
    for number, chunks in enumerate(groups):
        parts[chunks] = number
    return parts
