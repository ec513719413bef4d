"""The queries of a run, sorted by id and numbered: pairs then carry a number, and lists sort without strings."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes, read_table_file
from lakerank.records import RejectReason
from lakerank.spark.plan.index import TableIndex
from lakerank.spark.runtime.frames import gather

#: A query by its number, which is its row. `same_as` is the first query with the same content. `reason` is a code.
QUERY_LIST = pa.schema(
    [
        ("query_id", pa.string()),
        ("hash", pa.string()),
        ("file", pa.string()),
        ("row_group", pa.int32()),
        ("row", pa.int32()),
        ("cost", pa.int64()),
        ("bytes", pa.int64()),
        ("has_image", pa.bool_()),
        ("reason", pa.string()),
        ("same_as", pa.int32()),
    ]
)

#: Rows of a file of the list.
PART_ROWS = 2**20

_ROW_GROUP_ROWS = 65_536
_COUNT = pa.schema([("queries", pa.int64())])


@dataclass(frozen=True, slots=True)
class QueryList:
    """A list of queries in a folder of the lake. Small enough to cross to workers; each reads what columns it needs."""

    storage: Storage
    folder: str
    count: int

    #: Columns that this process holds, of one list at a time.
    _held: ClassVar[dict[tuple[str, str], pa.Array]] = {}

    def column(self, name: str) -> pa.Array:
        """One column of all queries (count,), read once a process."""
        key = (self.folder, name)
        if key not in self._held:
            for other in [held for held in self._held if held[0] != self.folder]:
                del self._held[other]
            parts = [pa.array([], QUERY_LIST.field(name).type)]
            for file in range(-(-self.count // PART_ROWS)):
                parts += (batch.column(0) for *_, batch in self._read(file, [name]))
            self._held[key] = pa.concat_arrays(parts)
        return self._held[key]

    def ids(self, first: int, last: int) -> pa.Array:
        """The ids of queries numbered from `first` up to `last`, exclusive, reading no more than their row groups."""
        parts = [pa.array([], pa.string())]
        for file in range(first // PART_ROWS, -(-last // PART_ROWS)):
            low, high = max(0, first - file * PART_ROWS), min(PART_ROWS, last - file * PART_ROWS)
            groups = range(low // _ROW_GROUP_ROWS, -(-high // _ROW_GROUP_ROWS))
            rows = [batch.column(0) for *_, batch in self._read(file, ["query_id"], list(groups))]
            start = groups.start * _ROW_GROUP_ROWS
            parts.append(pa.concat_arrays(rows).slice(low - start, high - low))
        return pa.concat_arrays(parts)

    def numbers(self, ids: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The number of each id (N,) -> (N,), -1 where there is no such query.

        Looks among the queries from the smallest to the largest id asked for: candidates mostly come query by query,
        and a hash table of all queries for every block of them would cost more than the look-ups.
        """
        known = self.column("query_id")
        least, most = (bound.as_py() for bound in pc.min_max(ids).values())
        if least is None:
            return np.full(len(ids), -1, np.int64)
        # Python orders strings by code points, Arrow by UTF-8 bytes: the order is the same.
        first = bisect_left(known, least, key=pa.StringScalar.as_py)
        end = bisect_right(known, most, lo=first, key=pa.StringScalar.as_py)
        found = pc.index_in(ids, value_set=known[first:end])
        return np.asarray(pc.add(found, first).fill_null(-1).to_numpy(), dtype=np.int64)

    def _read(
        self, file: int, columns: list[str], row_groups: list[int] | None = None
    ) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        address = join(self.folder, f"part-{file:05d}.parquet")
        return read_table_file(self.storage, address, QUERY_LIST, columns, _ROW_GROUP_ROWS, row_groups)


def write_query_list(spark: SparkSession, storage: Storage, folder: str, index: TableIndex) -> QueryList:
    """Sort and number the queries of an index in one task: as many as its memory holds, some ten million."""

    def write(_: int) -> Iterator[pa.RecordBatch]:
        rows = number_queries(pa.concat_tables([index.read(chunk) for chunk in range(len(index.chunks))]))
        for first in range(0, rows.num_rows, PART_ROWS):
            address = join(folder, f"part-{first // PART_ROWS:05d}.parquet")
            storage.replace(address, parquet_bytes(rows.slice(first, PART_ROWS), _ROW_GROUP_ROWS))
        yield pa.RecordBatch.from_pydict({"queries": [rows.num_rows]}, schema=_COUNT)

    counted = gather(spark, [0], write, _COUNT)
    return QueryList(storage, folder, counted["queries"][0].as_py())


def number_queries(rows: pa.Table) -> pa.Table:
    """An index's rows, in file order, as QUERY_LIST: one row an id, at its first place, sorted by id."""
    order = pc.sort_indices(
        rows.select(["id"]).append_column("order", pa.array(np.arange(rows.num_rows))),
        sort_keys=[("id", "ascending"), ("order", "ascending")],
    )
    rows = rows.take(order).combine_chunks()
    rows = rows.filter(pc.is_valid(rows["id"]))
    if not rows.num_rows:
        return QUERY_LIST.empty_table()
    ids = rows["id"].combine_chunks()
    new = np.concatenate([[True], pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)])
    starts = np.flatnonzero(new)
    contents = rows["hash"].combine_chunks().dictionary_encode().indices.to_numpy()
    conflict = np.minimum.reduceat(contents, starts) != np.maximum.reduceat(contents, starts)
    first = rows.take(pa.array(starts))
    _, where, same = np.unique(contents[starts], return_index=True, return_inverse=True)
    empty = first["empty"].to_numpy()
    reasons = np.where(
        conflict, RejectReason.DUPLICATE_QUERY_ID.value, np.where(empty, RejectReason.EMPTY_QUERY.value, "")
    )
    columns = {
        "query_id": first["id"],
        "reason": pa.array(reasons.astype(object), pa.string(), mask=reasons == ""),
        "same_as": pa.array(where[same].astype(np.int32)),
        "bytes": pc.add(first["text_bytes"], first["image_bytes"]),
        "has_image": pc.greater(first["image_bytes"], 0),
    }
    arrays = [columns[name] if name in columns else first[name] for name in QUERY_LIST.names]
    return pa.Table.from_arrays(arrays, schema=QUERY_LIST)
