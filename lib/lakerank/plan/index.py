"""The keys of a run's tables: the key index of documents and queries, and the run's queries sorted and numbered.

The index of a table file has each row's id, content hash, size and location; text and pixels stay in the table. It is
itself a file, named by the table file's address and version: a table file that changes gets a new index and an
unchanged one is never read again.
"""

from __future__ import annotations

import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from lakerank.cost import Sizing, input_cost
from lakerank.fingerprint import content_hash
from lakerank.lake.blobs import check_unchanged
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, index_key, parquet_bytes, read_table_file
from lakerank.records import RejectReason
from lakerank.schemas import DOCUMENTS, QUERIES

TableName = Literal["documents", "queries"]

#: Where a row's content is.
LOCATION = [("file", pa.string()), ("row_group", pa.int32()), ("row", pa.int32())]

#: A row of a table without its content. Width and height are null without a readable image header.
INDEX = pa.schema(
    [
        ("id", pa.string()),
        ("hash", pa.string()),
        *LOCATION,
        ("text_bytes", pa.int64()),
        ("image_bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("empty", pa.bool_()),
    ]
)

#: A query by its number, which is its row. `same_as` is the first query with the same content. `reason` is a code.
QUERY_LIST = pa.schema(
    [
        ("query_id", pa.string()),
        ("hash", pa.string()),
        *LOCATION,
        ("cost", pa.int64()),
        ("bytes", pa.int64()),
        ("has_image", pa.bool_()),
        ("reason", pa.string()),
        ("same_as", pa.int32()),
    ]
)

#: Bytes and rows of a table file that one task indexes, about.
CHUNK_BYTES = 128 * 2**20
CHUNK_ROWS = 2**18

#: Rows in memory at once while a table is indexed: documents may be megabytes each.
_ROWS_AT_ONCE = 1024
_INDEX_ROW_GROUP_ROWS = 100_000

#: Rows of a file of the query list, and of its row groups.
_LIST_FILE_ROWS = 2**20
_LIST_ROW_GROUP_ROWS = 65_536

_SIZES = ("text_bytes", "width", "height")
_ROW_BITS = 32

Int64 = npt.NDArray[np.int64]


def row_numbers(chunk: int, rows: int) -> Int64:
    """Numbers of a chunk's rows (rows,): the chunk in the upper 32 bits, the row in the lower."""
    return np.asarray((chunk << _ROW_BITS) + np.arange(rows, dtype=np.int64))


def chunks_and_rows(numbers: Int64) -> tuple[Int64, Int64]:
    """Chunks of row numbers and rows in them: (N,) -> (N,) each."""
    return numbers >> _ROW_BITS, numbers & ((1 << _ROW_BITS) - 1)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some neighbouring row groups of a table file, about how many rows they have, and the name of their index."""

    file: str
    first_group: int
    end_group: int
    rows: int
    index_name: str


@dataclass(frozen=True, slots=True)
class TableIndex:
    """A table's index, complete. A row's number is its chunk's, then its row in the chunk: numbers rise in the order
    of the table's files."""

    storage: Storage
    folder: str
    chunks: tuple[Chunk, ...]
    sizing: Sizing

    def read(self, chunk: int, columns: Sequence[str] = INDEX.names) -> pa.Table:
        """The rows of a chunk, in file order. Columns: those asked for, and `cost` in tokens."""
        address = join(self.folder, self.chunks[chunk].index_name)
        names = list(dict.fromkeys([*columns, *_SIZES]))
        batches = [batch for *_, batch in read_table_file(self.storage, address, INDEX, names, 65_536)]
        rows = pa.Table.from_batches(batches, schema=pa.schema([INDEX.field(name) for name in names]))
        return rows.select(list(columns)).append_column("cost", _cost(rows, self.sizing))


def table_chunks(files: Sequence[Fragment]) -> tuple[Chunk, ...]:
    """A table's files in chunks of about CHUNK_BYTES or CHUNK_ROWS, whichever is less."""
    chunks = []
    for fragment in files:
        count = max(-(-fragment.file.size // CHUNK_BYTES), -(-fragment.rows // CHUNK_ROWS))
        parts = max(1, min(fragment.row_groups, count))
        key = index_key(fragment.file)
        for part in range(parts):
            first, end = part * fragment.row_groups // parts, (part + 1) * fragment.row_groups // parts
            name = f"{key}-{first:05d}.parquet"
            chunks.append(Chunk(fragment.file.uri, first, end, fragment.rows // parts + 1, name))
    return tuple(chunks)


def write_chunk_index(
    storage: Storage, folder: str, table: TableName, chunk: Chunk, versions: Mapping[str, str]
) -> int:
    """Index a chunk and return its number of rows.

    Raises:
        ChangedFile: the table file no longer has the version listed: its index would have rows of another version.
    """
    rows = pa.Table.from_batches(_index_rows(storage, table, chunk), schema=INDEX)
    check_unchanged(storage, versions, [chunk.file])
    storage.create(join(folder, chunk.index_name), parquet_bytes(rows, _INDEX_ROW_GROUP_ROWS))
    return int(rows.num_rows)


def _index_rows(storage: Storage, table: TableName, chunk: Chunk) -> Iterator[pa.RecordBatch]:
    schema, id_column = (DOCUMENTS, "doc_id") if table == "documents" else (QUERIES, "query_id")
    row_groups = range(chunk.first_group, chunk.end_group)
    batches = read_table_file(storage, chunk.file, schema, batch_rows=_ROWS_AT_ONCE, row_groups=row_groups)
    for row_group, first_row, batch in batches:
        ids, texts, images = (batch.column(name).to_pylist() for name in (id_column, "text", "image"))
        known = batch.column("content_hash").to_pylist() if "content_hash" in schema.names else [None] * len(ids)
        sizes = [_image_size(image) for image in images]
        yield pa.RecordBatch.from_pydict(
            {
                "id": ids,
                "hash": [given or content_hash(t, i) for given, t, i in zip(known, texts, images, strict=True)],
                "file": [chunk.file] * len(ids),
                "row_group": [row_group] * len(ids),
                "row": range(first_row, first_row + len(ids)),
                "text_bytes": [len(text or b"") for text in texts],
                "image_bytes": [len(image or b"") for image in images],
                "width": [size[0] for size in sizes],
                "height": [size[1] for size in sizes],
                "empty": [i is None and not (t or b"").strip() for t, i in zip(texts, images, strict=True)],
            },
            schema=INDEX,
        )


def _cost(rows: pa.Table, sizing: Sizing) -> pa.Array:
    text, width, height = (rows[name].fill_null(0).to_numpy().astype(np.int64) for name in _SIZES)
    return pa.array(input_cost(text, width, height, sizing))


def _image_size(image: bytes | None) -> tuple[int, int] | tuple[None, None]:
    """Size from the header alone, for the cost estimate; the limits are checked where images are decoded."""
    if not image:
        return None, None
    try:
        with Image.open(io.BytesIO(image)) as header:
            return header.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None, None


@dataclass(frozen=True, slots=True)
class QueryList:
    """A list of queries in a folder of the lake. Small enough to cross to workers; each reads what columns it needs."""

    storage: Storage
    folder: str
    count: int

    #: Columns that this process has read, of one list at a time.
    _columns: ClassVar[dict[tuple[str, str], pa.Array]] = {}

    def column(self, name: str) -> pa.Array:
        """One column of all queries (count,), read once a process."""
        key = (self.folder, name)
        if key not in self._columns:
            for other in [cached for cached in self._columns if cached[0] != self.folder]:
                del self._columns[other]
            parts = [pa.array([], QUERY_LIST.field(name).type)]
            for file in range(-(-self.count // _LIST_FILE_ROWS)):
                parts += (batch.column(0) for *_, batch in self._read(file, [name]))
            self._columns[key] = pa.concat_arrays(parts)
        return self._columns[key]

    def ids(self, first: int, last: int) -> pa.Array:
        """The ids of queries numbered from `first` up to `last`, exclusive, reading no more than their row groups."""
        parts = [pa.array([], pa.string())]
        for file in range(first // _LIST_FILE_ROWS, -(-last // _LIST_FILE_ROWS)):
            low, high = max(0, first - file * _LIST_FILE_ROWS), min(_LIST_FILE_ROWS, last - file * _LIST_FILE_ROWS)
            groups = range(low // _LIST_ROW_GROUP_ROWS, -(-high // _LIST_ROW_GROUP_ROWS))
            rows = [batch.column(0) for *_, batch in self._read(file, ["query_id"], list(groups))]
            start = groups.start * _LIST_ROW_GROUP_ROWS
            parts.append(pa.concat_arrays(rows).slice(low - start, high - low))
        return pa.concat_arrays(parts)

    def numbers(self, ids: pa.Array) -> Int64:
        """The number of each id (N,) -> (N,), -1 where there is no such query.

        Looks among the queries from the smallest to the largest id asked for: candidates mostly come query by query,
        and a hash table of all queries for every batch of them would cost more than the look-ups.
        """
        known = self.column("query_id")
        least, most = (bound.as_py() for bound in pc.min_max(ids).values())
        if least is None:
            return np.full(len(ids), -1, np.int64)
        # Python orders strings by code points, Arrow by UTF-8 bytes: the order is the same.
        first = bisect_left(known, least, key=pa.StringScalar.as_py)
        end = bisect_right(known, most, lo=first, key=pa.StringScalar.as_py)
        positions = pc.index_in(ids, value_set=known[first:end])
        return np.asarray(pc.add(positions, first).fill_null(-1).to_numpy(), dtype=np.int64)

    def _read(
        self, file: int, columns: list[str], row_groups: list[int] | None = None
    ) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        address = _list_file(self.folder, file)
        return read_table_file(self.storage, address, QUERY_LIST, columns, _LIST_ROW_GROUP_ROWS, row_groups)


def write_query_list(index: TableIndex, folder: str) -> int:
    """Sort, number and store the queries of an index, all in memory; returns how many there are."""
    rows = number_queries(pa.concat_tables([index.read(chunk) for chunk in range(len(index.chunks))]))
    for first in range(0, rows.num_rows, _LIST_FILE_ROWS):
        content = parquet_bytes(rows.slice(first, _LIST_FILE_ROWS), _LIST_ROW_GROUP_ROWS)
        index.storage.replace(_list_file(folder, first // _LIST_FILE_ROWS), content)
    return int(rows.num_rows)


def number_queries(rows: pa.Table) -> pa.Table:
    """An index's rows, in file order, as QUERY_LIST: one row an id, at its first location, sorted by id."""
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
    columns: dict[str, Any] = {
        "query_id": first["id"],
        "reason": pa.array(reasons.astype(object), pa.string(), mask=reasons == ""),
        "same_as": pa.array(where[same].astype(np.int32)),
        "bytes": pc.add(first["text_bytes"], first["image_bytes"]),
        "has_image": pc.greater(first["image_bytes"], 0),
    }
    arrays = [columns[name] if name in columns else first[name] for name in QUERY_LIST.names]
    return pa.Table.from_arrays(arrays, schema=QUERY_LIST)


def _list_file(folder: str, number: int) -> str:
    return join(folder, f"part-{number:05d}.parquet")
