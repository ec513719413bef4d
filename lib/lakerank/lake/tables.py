"""Input tables: the files and columns of a table, checked against its schema, read in batches of the schema's types."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lakerank.fingerprint import fingerprint
from lakerank.lake.backends import storage_errors
from lakerank.lake.checksums import sealed
from lakerank.lake.columns import Located, is_list, locate, named
from lakerank.lake.formats import resolve
from lakerank.lake.snapshot import TableFile, TableSnapshot
from lakerank.lake.storage import Storage, join
from lakerank.ranking import Int64
from lakerank.schemas import DOCUMENTS, GROUP_IDS, QUERIES

#: A batch has at most about this many bytes of decoded columns, whatever `batch_rows` is: pages can be megabytes.
BATCH_BYTES = 64 * 2**20

#: Columns of a row group that take more bytes than this in the file are streamed, not fetched together.
STREAM_BYTES = 128 * 2**20

_FOOTER_THREADS = 16

#: How the name of an index file of several chunks begins, and the key of its metadata.
SHARED_INDEX = "shared-"

#: Columns that an index is made of.
_INDEXED = frozenset({*DOCUMENTS.names, *QUERIES.names, *GROUP_IDS.names})
_LATER = {"images": "-images", "image_uri": "-images", "instruction": "-instructions"}


@dataclass(frozen=True, slots=True)
class Fragment:
    """One Parquet file of a table, with its numbers of row groups (0: read whole) and rows, deleted ones included,
    and the type of the ids in its first column. `indexed_as`: what the name of its index ends with, for columns that
    plain tables' earlier indexes left out."""

    file: TableFile
    row_groups: int
    rows: int
    id_type: pa.DataType
    indexed_as: str = ""

    @property
    def live_rows(self) -> int:
        """Rows that are not deleted."""
        return self.rows - len(self.file.deleted_rows())


def index_key(file: TableFile) -> str:
    """Name of the index of a file's content: a file that changes gets another, an unchanged one keeps it."""
    columns = {name: path for name, path in file.columns.items() if name in _INDEXED}
    paths = {columns.get(name, name).casefold() for name in _INDEXED}
    paths |= {f"{path}.{inner}" for path in paths for inner in ("bytes", "path")}
    reading = {
        "columns": columns,
        "values": {path: value for path, value in file.values.items() if path.casefold() in paths},
        "deleted": file.deleted and file.deleted.hex(),
        "fields": {path: [*field] for path, field in (file.fields or {}).items() if path.casefold() in paths},
    }
    identity = {"uri": file.uri, "size": file.size, "version": file.version}
    return fingerprint(identity | {name: value for name, value in reading.items() if value}, length=32)


def files_key(index_keys: Iterable[str]) -> str:
    """Name of what is made of all files of a table, given their index keys."""
    return fingerprint({"files": sorted({*index_keys})})


class IndexPlace(NamedTuple):
    """Where a chunk of a table is indexed: an index file, the first of its rows there, and how many (None: all)."""

    file: str
    first: int = 0
    rows: int | None = None


def index_places(storage: Storage, folder: str) -> dict[str, IndexPlace]:
    """Where each chunk of a table is indexed, by the chunk's name.

    An index file of one chunk has its name. Chunks of small files share one, whose metadata says which and how many
    rows of each.
    """

    def places(name: str) -> list[tuple[str, IndexPlace]]:
        if not name.startswith(SHARED_INDEX):
            return [(name, IndexPlace(name))]
        with storage.open_parquet(join(folder, name)) as parquet:
            counts = json.loads(parquet.metadata.metadata[SHARED_INDEX.encode()])
        firsts = accumulate(counts.values(), initial=0)
        return [(chunk, IndexPlace(name, first, counts[chunk])) for chunk, first in zip(counts, firsts, strict=False)]

    with ThreadPoolExecutor(_FOOTER_THREADS, "footers") as pool:
        return dict(chain.from_iterable(pool.map(places, storage.list_names(folder))))


def fragments(
    storage: Storage,
    table: TableSnapshot | str,
    expected: pa.Schema,
    whole: Callable[[TableFile], bool] = lambda file: False,
) -> list[Fragment]:
    """A table's files, in the order of their URIs, each one's schema checked; only footers are read.

    A table is given by its address, or resolved. Footers are passed over of files that are read `whole`, where metadata
    has the table's schema and the file's number of rows. That of a plain table's file is read once by a storage.

    Raises:
        StorageError: nothing is there, or a file cannot be read.
        SchemaError: a file lacks a column or has one of the wrong type.
    """

    def inspect(file: TableFile) -> Fragment:
        if snapshot.schema is not None and file.rows is not None and whole(file):
            return Fragment(file, 0, file.rows, id_type)
        key = file.uri, file.version, *file.columns.items(), *expected.names
        known: Fragment | None = storage.footers.get(key)
        if known is not None:
            return replace(known, file=file)
        with storage.open_parquet(file) as parquet:
            with storage_errors(file.uri, "read"):  # a damaged footer has names that are not UTF-8
                located = locate(file, parquet.schema_arrow, expected, needs_content=snapshot.schema is None)
            own_type = id_type or _id_type(located)
            ending = next((_LATER[n] for n in located.fields if n in _LATER and snapshot.schema is None), "")
            of_file = Fragment(file, parquet.metadata.num_row_groups, parquet.metadata.num_rows, own_type, ending)
        if snapshot.schema is None and file.version:
            storage.footers[key] = of_file
        return of_file

    snapshot = resolve(storage, table) if isinstance(table, str) else table
    files = snapshot.files
    id_type = None
    if snapshot.schema is not None and files:
        of_table = TableFile(snapshot.address, columns=files[0].columns)
        id_type = _id_type(locate(of_table, snapshot.schema, expected, needs_content=True))
    with ThreadPoolExecutor(max(1, min(_FOOTER_THREADS, len(files))), "footers") as pool:
        return list(pool.map(inspect, files))


def _id_type(located: Located) -> pa.DataType:
    """The type of the ids in a table's first column; null where it has none."""
    name = located.schema.names[0]
    constant = pa.null() if named(located.file.constants, name) is None else pa.string()
    return located.fields[name].type if name in located.fields else constant


@dataclass(frozen=True, slots=True)
class TableReader:
    """An open file of a table, read by row groups as batches of a schema's columns."""

    storage: Storage
    parquet: pq.ParquetFile
    located: Located

    def bytes(self, group: int) -> tuple[int, int]:
        """Bytes of the columns of a row group, by the footer: compressed and decompressed."""
        metadata, columns = self.parquet.metadata.row_group(group), self.located.columns
        chunks = [metadata.column(index) for index in range(metadata.num_columns)]
        sizes = [
            (chunk.total_compressed_size, chunk.total_uncompressed_size)
            for chunk in chunks
            if is_in(chunk.path_in_schema, columns)
        ]
        return sum(stored for stored, _ in sizes), sum(decoded for _, decoded in sizes)

    def batches(self, groups: Sequence[int], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of some row groups, deleted ones too, read together, in batches as of `read_table_file`."""
        columns = self.located.columns
        rows = sum(self.parquet.metadata.row_group(group).num_rows for group in groups)
        sizes = [self.bytes(group) for group in groups]
        stored, decoded = (sum(size[kind] for size in sizes) for kind in (0, 1))
        size = max(1, min(batch_rows, BATCH_BYTES * rows // max(1, decoded)))
        if not columns:
            for first in range(0, rows, size):
                yield self.located.conform(None, min(size, rows - first), f"row group {groups[0]}")
            return
        largest = max(self._largest_repeated(group, size) for group in groups)
        size = max(1, min(size, BATCH_BYTES // max(1, largest)))
        streams, file = stored > STREAM_BYTES, self.located.file
        with self.storage.open_parquet(file, True) if streams else nullcontext(self.parquet) as source:
            yield from self._batches(source, groups, size, stored)

    def rows(self, group: int, batch_rows: int) -> Iterator[tuple[Int64, pa.RecordBatch]]:
        """The rows of a row group that are not deleted: their numbers (N,) in it, and the batch."""
        deleted, metadata = self.located.file.deleted_rows(), self.parquet.metadata
        start = sum(metadata.row_group(before).num_rows for before in range(group)) if len(deleted) else 0
        first = 0
        for batch in self.batches([group], batch_rows):
            numbers = np.arange(first, first + batch.num_rows)
            first += batch.num_rows
            if len(deleted) and (gone := np.isin(numbers + start, deleted)).any():
                batch, numbers = batch.filter(pa.array(~gone)), numbers[~gone]
            yield numbers, batch

    def _largest_repeated(self, group: int, rows: int) -> int:
        """Bytes of the largest value that a dictionary of a row group may repeat in each of a batch's rows.

        The footer counts such a value once, so a batch could be thousands of times what it says. 0 where that is too
        little to matter: dictionaries are only read where it is not.
        """
        metadata, suspects = self.parquet.metadata.row_group(group), []
        for chunk in map(metadata.column, range(metadata.num_columns)):
            worst = chunk.total_uncompressed_size * min(rows, metadata.num_rows)
            is_bytes = chunk.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY") and chunk.has_dictionary_page
            if is_bytes and worst > 2 * BATCH_BYTES and is_in(chunk.path_in_schema, self.located.columns):
                suspects.append(chunk.path_in_schema)
        if not suspects:
            return 0
        file = self.located.file
        how: dict[str, Any] = {"batch_size": 1, "row_groups": [group], "columns": suspects}
        with self.storage.open_parquet(file, True, suspects) as parquet:
            first = next(self.storage.batches(file, parquet, None, suspects, **how), None)
        values = [value for column in (first.columns if first else ()) for value in _dictionaries(column)]
        return sum(pc.max(pc.binary_length(value)).as_py() or 0 for value in values)

    def _batches(
        self, parquet: pq.ParquetFile, groups: Sequence[int], size: int, stored: int
    ) -> Iterator[pa.RecordBatch]:
        """Batches of `size` rows of row groups whose columns take `stored` bytes in the file."""
        how: dict[str, Any] = {"batch_size": size, "row_groups": list(groups), "columns": self.located.columns}
        place, first = f"row group {', '.join(map(str, groups))}", 0
        for batch in self.storage.batches(self.located.file, parquet, stored, **how):
            yield self.located.conform(batch, batch.num_rows, f"{place}, counted from row {first}")
            first += batch.num_rows


def table_reader(storage: Storage, file: TableFile, parquet: pq.ParquetFile, schema: pa.Schema) -> TableReader:
    """The reader of an open file. Raises SchemaError: it lacks a column, or has one of the wrong type."""
    return TableReader(storage, parquet, locate(file, parquet.schema_arrow, schema))


def read_table_file(
    storage: Storage,
    file: TableFile | str,
    expected: pa.Schema,
    columns: Sequence[str] | None = None,
    batch_rows: int = 8192,
    row_groups: Sequence[int] | None = None,
) -> Iterator[tuple[int, Int64, pa.RecordBatch]]:
    """Read one file of a table, or one of ours by its URI: (row group, its rows (N,) in that, batch), in file order.

    `row_groups` are those to read (all by default). Batches have `columns` (all of `expected` by default), in that
    order, with the types of `expected`, except that `text` is binary, for `decode_text`. A missing optional column is
    null. Deleted rows are left out. A batch is smaller where rows are large: about BATCH_BYTES whatever the
    encoding, and a few times that in memory while it is decoded.

    Raises:
        SchemaError: a column is missing, of the wrong type, or has a value that its type cannot hold.
        StorageError: the file cannot be read.
    """
    file = TableFile(file) if isinstance(file, str) else file
    schema = expected if columns is None else pa.schema([expected.field(name) for name in columns])
    with storage.open_parquet(file) as parquet:
        reader = table_reader(storage, file, parquet, schema)
        for group in range(parquet.metadata.num_row_groups) if row_groups is None else row_groups:
            for rows, batch in reader.rows(group, batch_rows):
                yield group, rows, batch


def is_in(leaf: str, columns: Collection[str]) -> bool:
    """Whether a leaf column of a file, by its dotted path, is one of some columns or in one."""
    return leaf in columns or any(leaf.startswith(f"{column}.") for column in columns)


def _dictionaries(column: pa.Array) -> Iterator[pa.Array]:
    """The dictionaries of a column, and of those inside of it."""
    if pa.types.is_dictionary(column.type):
        yield column.dictionary
    elif is_list(column.type):
        yield from _dictionaries(column.values)
    elif pa.types.is_struct(column.type):
        for inner in column.flatten():
            yield from _dictionaries(inner)


def parquet_bytes(table: pa.Table, row_group_rows: int, metadata: Mapping[str, str] | None = None) -> bytes:
    """A sealed Parquet file: zstd, `metadata` as its key-value metadata. Same rows, same bytes."""
    plain = table.replace_schema_metadata(dict(sorted((metadata or {}).items()))).combine_chunks()
    sink = pa.BufferOutputStream()
    pq.write_table(plain, sink, row_group_size=row_group_rows, compression="zstd", write_page_checksum=True)
    return sealed(sink.getvalue().to_pybytes())
