"""Input tables: the files and columns of a table, checked against its schema, read in batches of the schema's types."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lakerank.fingerprint import fingerprint
from lakerank.lake.backends import storage_errors
from lakerank.lake.checksums import sealed
from lakerank.lake.columns import check_columns, conform
from lakerank.lake.storage import FileInfo, Storage

#: A batch has at most about this many bytes of decoded columns, whatever `batch_rows` is: pages can be megabytes.
BATCH_BYTES = 64 * 2**20

#: Columns of a row group that take more bytes than this in the file are streamed, not fetched together.
STREAM_BYTES = 128 * 2**20

_FOOTER_THREADS = 16


@dataclass(frozen=True, slots=True)
class Fragment:
    """One Parquet file of a table, with its numbers of row groups and rows."""

    file: FileInfo
    row_groups: int
    rows: int


def index_key(file: FileInfo) -> str:
    """Name of the index of a file's content: a file that changes gets another, an unchanged one keeps it."""
    return fingerprint({"uri": file.uri, "size": file.size, "version": file.version}, length=32)


def fragments(storage: Storage, uri: str, expected: pa.Schema) -> list[Fragment]:
    """Resolve a table to its files, in the order of their URIs, and check each one's schema. Reads only footers.

    Raises:
        StorageError: nothing is there, or a file cannot be read.
        SchemaError: a file lacks a column or has one of the wrong type.
    """

    def inspect(file: FileInfo) -> Fragment:
        with opened(storage, file.uri) as parquet:
            with storage_errors(file.uri, "read"):  # a damaged footer has names that are not UTF-8
                check_columns(file.uri, parquet.schema_arrow, expected, needs_content=True)
            return Fragment(file, parquet.metadata.num_row_groups, parquet.metadata.num_rows)

    files = storage.list_parquet(uri)
    with ThreadPoolExecutor(min(_FOOTER_THREADS, len(files)), "footers") as pool:
        return list(pool.map(inspect, files))


def read_table_file(
    storage: Storage,
    uri: str,
    expected: pa.Schema,
    columns: Sequence[str] | None = None,
    batch_rows: int = 8192,
    row_groups: Sequence[int] | None = None,
) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """Read one file of a table: (row group, the batch's first row in it, batch), in file order.

    `row_groups` are those to read (all by default). Batches have `columns` (all of `expected` by default), in that
    order, with the types of `expected`, except that `text` is binary, for `decode_text`. A missing optional column is
    null. A batch is smaller where rows are large: about BATCH_BYTES whatever the
    encoding, and a few times that in memory while it is decoded.

    Raises:
        SchemaError: a column is missing, of the wrong type, or has a value that its type cannot hold.
        StorageError: the file cannot be read.
    """
    schema = expected if columns is None else pa.schema([expected.field(name) for name in columns])
    with opened(storage, uri) as parquet:
        check_columns(uri, parquet.schema_arrow, schema)
        for group in range(parquet.metadata.num_row_groups) if row_groups is None else row_groups:
            first = 0
            for batch in read_row_groups(storage, uri, parquet, [group], schema, batch_rows):
                yield group, first, batch
                first += batch.num_rows


def read_row_groups(
    storage: Storage, uri: str, parquet: pq.ParquetFile, groups: Sequence[int], schema: pa.Schema, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """The rows of some row groups of an open file, read together, in batches as of `read_table_file`."""
    rows = sum(parquet.metadata.row_group(group).num_rows for group in groups)
    sizes = [row_group_bytes(parquet, group, schema.names) for group in groups]
    stored, decoded = (sum(size[kind] for size in sizes) for kind in (0, 1))
    size = max(1, min(batch_rows, BATCH_BYTES * rows // max(1, decoded)))
    present = [name for name in schema.names if name in parquet.schema_arrow.names]
    if not present:
        for first in range(0, rows, size):
            yield conform(f"row group {groups[0]}", uri, None, min(size, rows - first), schema)
        return
    largest = max(_largest_repeated(storage, uri, parquet, group, (present, size)) for group in groups)
    size = max(1, min(size, BATCH_BYTES // max(1, largest)))
    with opened(storage, uri, streaming=True) if stored > STREAM_BYTES else nullcontext(parquet) as source:
        yield from _batches(uri, source, (groups, schema, size), partial(storage.transfer, uri, stored))


def _largest_repeated(
    storage: Storage, uri: str, parquet: pq.ParquetFile, group: int, batch: tuple[Sequence[str], int]
) -> int:
    """Bytes of the largest value that a dictionary of a row group may repeat in every row of a `batch` (columns, rows).

    The footer counts such a value once, so a batch could be thousands of times what it says. 0 where that is too little
    to matter: dictionaries are only read where it is not.
    """
    columns, rows = batch
    metadata, suspects = parquet.metadata.row_group(group), []
    for chunk in map(metadata.column, range(metadata.num_columns)):
        worst = chunk.total_uncompressed_size * min(rows, metadata.num_rows)
        is_bytes = chunk.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY") and chunk.path_in_schema in columns
        if is_bytes and chunk.has_dictionary_page and worst > 2 * BATCH_BYTES:
            suspects.append(chunk.path_in_schema)
    if not suspects:
        return 0
    with opened(storage, uri, True, suspects) as dictionaries, storage_errors(uri, "read"):
        first = next(dictionaries.iter_batches(1, [group], suspects), None)
    values = [c.dictionary for c in first.columns if pa.types.is_dictionary(c.type)] if first is not None else []
    return sum(pc.max(pc.binary_length(value)).as_py() or 0 for value in values)


def row_group_bytes(parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> tuple[int, int]:
    """Bytes of some columns of a row group, by the footer: compressed and decompressed."""
    metadata = parquet.metadata.row_group(group)
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    sizes = [(c.total_compressed_size, c.total_uncompressed_size) for c in chunks if c.path_in_schema in columns]
    return sum(stored for stored, _ in sizes), sum(decoded for _, decoded in sizes)


@contextmanager
def opened(
    storage: Storage, uri: str, streaming: bool = False, dictionaries: Sequence[str] = ()
) -> Iterator[pq.ParquetFile]:
    """A Parquet file, open during a `with`: pyarrow's own `with` does not close a file object that it was given.

    Columns of `dictionaries` come dictionary-encoded, as they are in the file.
    """
    parquet = storage.open_parquet(uri, streaming, dictionaries)
    try:
        yield parquet
    finally:
        parquet.close(force=True)


def parquet_bytes(table: pa.Table, row_group_rows: int, metadata: Mapping[str, str] | None = None) -> bytes:
    """A sealed Parquet file: zstd, `metadata` as its key-value metadata. Same rows, same bytes."""
    plain = table.replace_schema_metadata(dict(sorted((metadata or {}).items()))).combine_chunks()
    sink = pa.BufferOutputStream()
    pq.write_table(plain, sink, row_group_size=row_group_rows, compression="zstd", write_page_checksum=True)
    return sealed(sink.getvalue().to_pybytes())


def _batches(
    uri: str,
    parquet: pq.ParquetFile,
    wanted: tuple[Sequence[int], pa.Schema, int],
    transfer: Callable[[Callable[[], Any]], Any],
) -> Iterator[pa.RecordBatch]:
    """Batches of row groups, a schema and a size; what reads from the store goes through `transfer`."""
    groups, schema, batch_rows = wanted
    present = [name for name in schema.names if name in parquet.schema_arrow.names]
    place, first = f"row group {', '.join(map(str, groups))}", 0
    with storage_errors(uri, "read"):
        batches = parquet.iter_batches(batch_size=batch_rows, row_groups=list(groups), columns=present)
    while True:
        with storage_errors(uri, "read"):
            batch = transfer(partial(next, batches, None))
        if batch is None:
            return
        yield conform(f"{place}, counted from row {first}", uri, batch, batch.num_rows, schema)
        first += batch.num_rows
