"""The keys of a run's tables: the key index of documents and queries, and the run's queries sorted and numbered.

The index of a table file has each row's id, content hash, size and location; text and pixels stay in the table. It is
itself a file, or a part of one, named by the table file's address and version: a table file that changes gets a new
index and an unchanged one is never read again.
"""

from __future__ import annotations

import io
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from lakerank.cost import Sizing, input_cost
from lakerank.duplicates.sketch import SKETCHES, sketches
from lakerank.fingerprint import content_hash, fingerprint
from lakerank.lake.blobs import check_unchanged
from lakerank.lake.images.files import ImageFiles, UnreadableImage, address_hash, read_ahead, row_images
from lakerank.lake.runs import RunPaths
from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import SHARED_INDEX, Fragment, IndexPlace, index_key, parquet_bytes, read_table_file
from lakerank.limits import IMAGE_FORMATS, Limits
from lakerank.model.preprocess.images import MOST_FRAMES, count_frames
from lakerank.plan.plan import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    ROW_GROUP_ROWS,
    Plan,
    part_name,
    plan_folder,
    read_part,
    with_columns,
)
from lakerank.records import RejectReason
from lakerank.schemas import CONTENT, DOCUMENTS, GROUP_IDS, QUERIES

TableName = Literal["documents", "queries", "groups", "sketches"]

#: Where a row's content is.
LOCATION = [("file", pa.string()), ("row_group", pa.int32()), ("row", pa.int32())]

#: What the forecast needs of a row's content. Width and height are of one image, the mean of several; null without a
#: readable image header. `images` are as many as there are, `frames` those of all their files; null in older indexes.
SIZES = [("text_bytes", pa.int64()), ("image_bytes", pa.int64()), ("width", pa.int32()), ("height", pa.int32())]
SIZES += [("images", pa.int32()), ("frames", pa.int32())]

#: A row of a table without its content. `instruction`: a query has one; null in older indexes.
INDEX = pa.schema([("id", pa.string()), ("hash", pa.string()), *LOCATION, *SIZES, ("empty", pa.bool_())])
INDEX = INDEX.append(pa.field("instruction", pa.bool_()))

_COST = [("cost", pa.int64()), ("bytes", pa.int64()), ("has_image", pa.bool_())]
_CHECKED = [("reason", pa.string()), ("same_as", pa.int32())]

#: A query by its number, which is its row. `same_as` is the first query with the same content. `reason` is a code.
QUERY_LIST = pa.schema([("query_id", pa.string()), ("hash", pa.string()), *LOCATION, *_COST, *_CHECKED])

#: Rows in memory at once while a table is indexed: documents may be megabytes each.
_ROWS_AT_ONCE = 1024

#: Rows of a file of the query list.
_LIST_FILE_ROWS = 2**20

_COST_COLUMNS = ("text_bytes", "width", "height", "images", "frames")

#: Bytes and pixels a side of an image that is not read while its document is indexed.
_UNREAD_BYTES, _UNREAD_SIDE = 200_000, 1024
_ROW_BITS = 32

#: Sizes of a row without an image.
_NO_IMAGE = (0, None, None, 0, 0)

#: A given hash, a text, and images or their addresses.
_Content = tuple[str | None, bytes | None, Sequence[bytes | str]]

Int64 = npt.NDArray[np.int64]


def row_numbers(chunk: int, rows: int) -> Int64:
    """Numbers of a chunk's rows (rows,): the chunk in the upper 32 bits, the row in the lower."""
    return np.asarray((chunk << _ROW_BITS) + np.arange(rows, dtype=np.int64))


def chunks_and_rows(numbers: Int64) -> tuple[Int64, Int64]:
    """Chunks of row numbers and rows in them: (N,) -> (N,) each."""
    return numbers >> _ROW_BITS, numbers & ((1 << _ROW_BITS) - 1)


class Chunk(NamedTuple):
    """Some neighbouring row groups of a table file (to the last one where `end_group` is 0), about how many rows they
    have, and the name of their index."""

    file: TableFile
    first_group: int
    end_group: int
    rows: int
    index_name: str

    def read(
        self, storage: Storage, schema: pa.Schema, columns: Sequence[str] | None = None, batch_rows: int = 65_536
    ) -> Iterator[tuple[int, Int64, pa.RecordBatch]]:
        """The chunk's rows, as of `read_table_file`."""
        row_groups = range(self.first_group, self.end_group) if self.end_group else None
        return read_table_file(storage, self.file, schema, columns, batch_rows, row_groups)


@dataclass(frozen=True, slots=True)
class TableIndex:
    """A table's index, complete. A row's number is its chunk's, then its row in the chunk: numbers rise in the order
    of the table's files. `places` has each chunk's, by name. `groups` is the index of the same rows' group ids, and
    `sketches` of their sketches; None where a run needs none."""

    storage: Storage
    folder: str
    chunks: tuple[Chunk, ...]
    places: Mapping[str, IndexPlace]
    sizing: Sizing
    groups: TableIndex | None = None
    sketches: TableIndex | None = None

    def by_file(self, chunks: Iterable[int] | None = None) -> list[list[int]]:
        """Numbers of chunks, rising, all by default, by the index file that has them."""
        files: dict[str, list[int]] = {}
        for number in range(len(self.chunks)) if chunks is None else chunks:
            files.setdefault(self.places[self.chunks[number].index_name].file, []).append(number)
        return [*files.values()]

    def tasks(self, parallelism: int) -> int:
        """How many tasks read all chunks: the small ones of a table of many small files share one."""
        return max(4 * parallelism, sum(chunk.rows for chunk in self.chunks) // CHUNK_ROWS)

    def read(self, chunks: Iterable[int], columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of some chunks, a table for each index file, which is read once, in the order of their numbers.

        Columns: of INDEX, and `number`, `cost` in tokens, `group_id`.
        """
        schema = pa.schema([f for f in INDEX if f.name in columns or ("cost" in columns and f.name in _COST_COLUMNS)])
        for numbers in self.by_file(chunks):
            rows = self.stored(numbers, schema)
            if "cost" in columns:
                text, width, height = (rows[n].fill_null(0).to_numpy().astype(np.int64) for n in _COST_COLUMNS[:3])
                cost = input_cost(text, width, height, self.sizing, image_counts(rows, self.sizing))
                rows = rows.append_column("cost", pa.array(cost))
            if "group_id" in columns and self.groups is None:
                rows = rows.append_column("group_id", pa.nulls(rows.num_rows, pa.string()))
            elif "group_id" in columns and self.groups is not None:
                ids = pa.concat_tables(self.groups.stored(n, GROUP_IDS) for n in self.groups.by_file(numbers))
                rows = rows.append_column("group_id", ids.sort_by("number")["group_id"])
            yield rows.select(columns)

    def stored(self, chunks: Sequence[int], schema: pa.Schema) -> pa.Table:
        """The rows of chunks of one index file, and their numbers."""
        places = [self.places[self.chunks[chunk].index_name] for chunk in chunks]
        whole = read_part(self.storage, join(self.folder, places[0].file), schema)
        parts = [whole.slice(place.first, place.rows) for place in places]
        numbers = [row_numbers(chunk, part.num_rows) for chunk, part in zip(chunks, parts, strict=True)]
        return pa.concat_tables(parts).combine_chunks().append_column("number", pa.array(np.concatenate(numbers)))


def image_counts(rows: pa.Table, sizing: Sizing) -> Int64:
    """How many images of each row (N,) of an index are read: its images, or all their frames."""
    counts = rows["frames" if sizing.all_frames else "images"]
    return np.asarray(counts.fill_null(1).to_numpy(), dtype=np.int64)


def table_chunks(files: Sequence[Fragment], rows: int = CHUNK_ROWS) -> tuple[Chunk, ...]:
    """A table's files in chunks of about CHUNK_BYTES or so many rows, whichever is less."""
    chunks = []
    for fragment in files:
        count = max(-(-fragment.file.size // CHUNK_BYTES), -(-fragment.rows // rows))
        parts = max(1, min(fragment.row_groups, count))
        key = index_key(fragment.file)
        for first, end in pairwise(part * fragment.row_groups // parts for part in range(parts + 1)):
            name = f"{key}-{first:05d}{fragment.indexed_as}.parquet"
            chunks.append(Chunk(fragment.file, first, end, fragment.rows // parts + 1, name))
    return tuple(chunks)


def shared_chunks(chunks: Iterable[Chunk], most: int) -> list[list[Chunk]]:
    """Neighbouring chunks, up to so many, that share an index file: those of small files."""
    shares: list[list[Chunk]] = []
    rows = size = 0
    for chunk in chunks:
        rows, size = rows + chunk.rows, size + chunk.file.size
        if not shares or rows > CHUNK_ROWS or size > CHUNK_BYTES or len(shares[-1]) == most:
            shares.append([])
            rows, size = chunk.rows, chunk.file.size
        shares[-1].append(chunk)
    return shares


def write_index_file(storage: Storage, folder: str, table: TableName, chunks: Sequence[Chunk]) -> int:
    """Index chunks of documents or queries, or the group ids or sketches of documents, and return their number of rows.

    Raises:
        ChangedFile: a table file no longer has the version listed: its index would have rows of another version.
    """
    parts = [_chunk_rows(storage, table, chunk) for chunk in chunks]
    files = {chunk.file.uri: chunk.file for chunk in chunks}
    check_unchanged(storage, files, files)
    counts = {chunk.index_name: part.num_rows for chunk, part in zip(chunks, parts, strict=True)}
    name, metadata = chunks[0].index_name, {}
    if len(chunks) > 1:
        name, metadata = f"{SHARED_INDEX}{fingerprint(counts, length=32)}.parquet", {SHARED_INDEX: json.dumps(counts)}
    storage.create(join(folder, name), parquet_bytes(pa.concat_tables(parts), ROW_GROUP_ROWS, metadata))
    return sum(counts.values())


def _chunk_rows(storage: Storage, table: TableName, chunk: Chunk) -> pa.Table:
    if table == "sketches":
        files = ImageFiles(storage, Limits().max_source_bytes)
        batches = chunk.read(storage, DOCUMENTS, batch_rows=_ROWS_AT_ONCE)
        return pa.Table.from_batches((sketches(files, batch) for *_, batch in batches), schema=SKETCHES)
    if table != "groups":
        return pa.Table.from_batches(_index_rows(storage, table, chunk), schema=INDEX)
    batches = chunk.read(storage, GROUP_IDS)
    ids = pa.Table.from_batches((batch for *_, batch in batches), schema=GROUP_IDS)["group_id"]
    return pa.table({"group_id": pc.if_else(pc.equal(ids, ""), pa.scalar(None, pa.string()), ids)})


def _index_rows(storage: Storage, table: TableName, chunk: Chunk) -> Iterator[pa.RecordBatch]:
    schema = DOCUMENTS if table == "documents" else QUERIES
    describe = partial(_describe, ImageFiles(storage, Limits().max_source_bytes))
    for row_group, rows, batch in chunk.read(storage, schema, batch_rows=_ROWS_AT_ONCE):
        ids, texts = batch.column(0).to_pylist(), batch.column("text").to_pylist()
        given = batch.column("content_hash").to_pylist() if "content_hash" in schema.names else [None] * len(ids)
        shown = [name for name in CONTENT[1:] if name in schema.names and batch.column(name).null_count < len(ids)]
        if shown:
            images = map(row_images, batch.select([schema.names[0], *shown]).to_pylist())
            described = [row for _, row in read_ahead(zip(given, texts, images, strict=True), _is_fetched, describe)]
        else:
            described = [(name or content_hash(text), *_NO_IMAGE) for name, text in zip(given, texts, strict=True)]
        names, *sizes, counts, frames = zip(*described, strict=True) if described else [()] * 6
        told = [b""] * len(ids)
        if table == "queries" and (stored := batch.column("instruction")).null_count < len(ids):
            told = [*map(stripped, stored.to_pylist())]
        hashes = [instructed_hash(name, own) for name, own in zip(names, told, strict=True)]
        empty = [not count and not (text or b"").strip() for count, text in zip(counts, texts, strict=True)]
        text_bytes = [len(text or b"") + len(own) for text, own in zip(texts, told, strict=True)]
        sizes = [text_bytes, *sizes, counts, frames]
        place = [[chunk.file.uri] * len(ids), [row_group] * len(ids), rows]
        columns = dict(zip(INDEX.names, [ids, hashes, *place, *sizes, empty, [*map(bool, told)]], strict=True))
        yield pa.RecordBatch.from_pydict(columns, schema=INDEX)


def stripped(instruction: bytes | None) -> bytes:
    """An instruction as it counts: a blank one is none."""
    return str(instruction or b"", errors="surrogateescape").strip().encode(errors="surrogateescape")


def instructed_hash(name: str, instruction: bytes) -> str:
    """Names a query by its content's name and its instruction: of three parts, as no content is by itself."""
    return content_hash(name, instruction, b"") if instruction else name


def _is_fetched(content: _Content) -> bool:
    return not content[0] and any(isinstance(image, str) for image in content[2])


def _describe(files: ImageFiles, content: _Content) -> tuple[Any, ...]:
    """Hash and sizes of a row that has images; those at addresses are read where they make the hash."""
    given, text, images = content
    stored: Sequence[bytes] = [image for image in images if isinstance(image, bytes)]
    name = given or address_hash(text, images)
    if _is_fetched(content):
        with suppress(UnreadableImage):  # read again when it is scored, and rejected then
            stored = files.images(images)
            name = content_hash(text, *stored)
    unread = len(images) - len(stored)
    sizes = [size for size in map(_image_size, stored) if size] + [(_UNREAD_SIDE, _UNREAD_SIDE, 1)] * unread
    width, height = (round(sum(size[axis] for size in sizes) / len(sizes)) if sizes else None for axis in (0, 1))
    frames = sum(size[2] for size in sizes) + len(images) - len(sizes)
    return name, sum(map(len, stored)) + _UNREAD_BYTES * unread, width, height, len(images), frames


def _image_size(image: bytes) -> tuple[int, int, int] | None:
    """Width and height from the header alone, and frames, for the cost estimate; the limits are checked where images
    are decoded."""
    if not image:
        return None
    try:
        with Image.open(io.BytesIO(image), formats=IMAGE_FORMATS) as header:
            frames = count_frames(image) if header.format in ("TIFF", "GIF") else getattr(header, "n_frames", 1)
            return *header.size, min(frames, MOST_FRAMES)
    except Exception:  # a damaged header makes decoders raise anything, and the cost is only an estimate
        return None


@dataclass(frozen=True, slots=True)
class QueryList:
    """A list of queries in a folder of the lake. Small enough to cross to workers; each reads what columns it needs."""

    storage: Storage
    folder: str
    count: int

    #: Columns that this process has read: of this run's list, and of the last published run's.
    _columns: ClassVar[dict[tuple[str, str], pa.Array]] = {}

    def column(self, name: str) -> pa.Array:
        """One column of all queries (count,), read once a process."""
        key = (self.folder, name)
        if key not in self._columns:
            if len({folder for folder, _ in self._columns} | {self.folder}) > 2:
                self._columns.clear()
            schema = pa.schema([QUERY_LIST.field(name)])
            files = [part_name(file) for file in range(-(-self.count // _LIST_FILE_ROWS))]
            parts = [read_part(self.storage, join(self.folder, file), schema) for file in files]
            self._columns[key] = pa.concat_tables([schema.empty_table(), *parts])[name].combine_chunks()
        return self._columns[key]

    def numbers(self, ids: pa.Array) -> Int64:
        """The number of each id (N,) -> (N,), -1 where there is no such query.

        Looks among the queries from the smallest to the largest requested id: candidates mostly come query by query,
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


class RankedFiles(NamedTuple):
    """How lists are spread over files: the first query of each file but the first, by number and by id."""

    queries: QueryList
    firsts: tuple[int, ...]
    first_ids: tuple[str, ...]

    def of_numbers(self, numbers: Int64) -> Int64:
        """The file of each query (N,) by its number."""
        return np.asarray(np.searchsorted(np.asarray(self.firsts, dtype=np.int64), numbers, side="right"))

    def of_ids(self, ids: pa.Array) -> Int64:
        """The file of each query (N,) by its id, which need not be in the lake; null goes to the first."""
        return files_of(ids, self.first_ids)

    def ids(self, file: int) -> tuple[int, pa.Array]:
        """The number of a file's first query, and the ids of all its queries."""
        edges = (0, *self.firsts, self.queries.count)
        return edges[file], self.queries.column("query_id")[edges[file] : edges[file + 1]]


def files_of(ids: pa.Array, first_ids: Sequence[str]) -> Int64:
    """The file of each query id (N,) -> (N,), given the first id of each file but the first; null goes to the first."""
    coded = ids.dictionary_encode()
    edges = [edge.encode() for edge in first_ids]
    files = [bisect_right(edges, ident.encode()) for ident in coded.dictionary.to_pylist()]
    return np.asarray(np.asarray([*files, 0], dtype=np.int64)[coded.indices.fill_null(-1).to_numpy()])


def query_list(storage: Storage, paths: RunPaths, plan: Plan) -> QueryList:
    """The plan's queries, numbered."""
    return QueryList(storage, join(plan_folder(paths, plan.attempt), "queries"), plan.queries_listed)


def ranked_files(storage: Storage, paths: RunPaths, plan: Plan) -> RankedFiles:
    """How the run's lists are spread over files."""
    return RankedFiles(query_list(storage, paths, plan), plan.first_queries, plan.boundaries)


def write_query_list(index: TableIndex, folder: str) -> tuple[int, int]:
    """Sort, number and store an index's queries, all in memory: how many there are, and rows with an instruction."""
    columns = ["number", *INDEX.names, "cost"]
    indexed = pa.concat_tables(index.read(range(len(index.chunks)), columns))
    rows = number_queries(indexed)
    for first in range(0, rows.num_rows, _LIST_FILE_ROWS):
        content = parquet_bytes(rows.slice(first, _LIST_FILE_ROWS), ROW_GROUP_ROWS)
        index.storage.replace(join(folder, part_name(first // _LIST_FILE_ROWS)), content)
    return int(rows.num_rows), pc.sum(indexed["instruction"]).as_py() or 0


def number_queries(rows: pa.Table) -> pa.Table:
    """An index's rows as QUERY_LIST: one row an id, at its first location, sorted by id."""
    rows = rows.sort_by([("id", "ascending"), ("number", "ascending")])
    rows = rows.filter(pc.is_valid(rows["id"])).combine_chunks()
    coded = (rows[name].combine_chunks().dictionary_encode() for name in ("id", "hash"))
    ids, contents = (column.indices.to_numpy().astype(np.int64) for column in coded)
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    conflict = np.minimum.reduceat(contents, starts) != np.maximum.reduceat(contents, starts)
    first = rows.take(pa.array(starts))
    _, where, same = np.unique(contents[starts], return_index=True, return_inverse=True)
    reason = np.where(first["empty"].to_numpy(), RejectReason.EMPTY_QUERY.value, "")
    reason = np.where(conflict, RejectReason.DUPLICATE_QUERY_ID.value, reason)
    return with_columns(
        first,
        QUERY_LIST,
        query_id=first["id"],
        reason=pa.array(reason.astype(object), pa.string(), mask=reason == ""),
        same_as=pa.array(where[same].astype(np.int32)),
        bytes=pc.add(first["text_bytes"], first["image_bytes"]),
        has_image=pc.greater(first["image_bytes"], 0),
    )
