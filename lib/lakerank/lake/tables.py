"""Input tables: the files and columns of a table, checked against its schema, read in batches of the schema's types."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from lakerank.errors import SchemaError
from lakerank.fingerprint import fingerprint
from lakerank.lake import redacted
from lakerank.lake.backends import storage_errors
from lakerank.lake.checksums import sealed
from lakerank.lake.storage import FileInfo, Storage
from lakerank.schemas import OPTIONAL

#: A batch has at most about this many bytes of decoded columns, whatever `batch_rows` is: pages can be megabytes.
BATCH_BYTES = 64 * 2**20

#: Columns of a row group that take more bytes than this in the file are streamed, not fetched together.
STREAM_BYTES = 128 * 2**20

_FOOTER_THREADS = 16
_TEXT = "text"
_TEXT_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES_KINDS = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)


@dataclass(frozen=True, slots=True)
class Fragment:
    """One Parquet file of a table, with its numbers of row groups and rows."""

    file: FileInfo
    row_groups: int
    rows: int


def index_key(file: FileInfo) -> str:
    """Name of the index of a file's content: a file that changes gets another, an unchanged one keeps it."""
    return fingerprint({"uri": file.uri, "size": file.size, "version": file.version}, length=32)


def check_columns(uri: str, actual: pa.Schema, expected: pa.Schema) -> None:
    """Check that a file has a table's columns, of types that can be cast to the table's; other columns are ignored.

    Raises:
        SchemaError: names the file, the column and the actual columns.
    """
    faults = []
    for field in expected:
        positions = actual.get_all_field_indices(field.name)
        if not positions and field.name in OPTIONAL:
            continue
        if len(positions) != 1:
            problem = "no column" if not positions else f"{len(positions)} columns are called"
            faults.append(f"{problem} {field.name!r}{'' if positions else _similar(field.name, actual.names)}")
        elif not _accepts(kind := actual.field(positions[0]).type, field.type):
            faults.append(f"column {field.name!r} should be {field.type} (found: {kind})")
    if faults:
        found = f"found: {', '.join(actual.names)}"
        raise SchemaError(f"{redacted(uri)}: {'; '.join(faults)} ({found}); see README, 'Input and output'")


def _similar(name: str, names: Sequence[str]) -> str:
    """A column that is probably the one, as part of a message."""
    lower = {other.casefold(): other for other in names}
    close = difflib.get_close_matches(name, lower, 1, 0.5)
    return f", did you mean {lower[close[0]]!r}?" if close else ""


def fragments(storage: Storage, uri: str, expected: pa.Schema) -> list[Fragment]:
    """Resolve a table to its files, in the order of their URIs, and check each one's schema. Reads only footers.

    Raises:
        StorageError: nothing is there, or a file cannot be read.
        SchemaError: a file lacks a column or has one of the wrong type.
    """

    def inspect(file: FileInfo) -> Fragment:
        with opened(storage, file.uri) as parquet:
            check_columns(file.uri, parquet.schema_arrow, expected)
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
    null. An id that is not UTF-8 has its invalid bytes replaced, and so matches nothing. A batch is smaller where rows
    are large.

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
    if not set(schema.names) & set(parquet.schema_arrow.names):
        yield from (_conform(uri, None, min(size, rows - first), schema) for first in range(0, rows, size))
    elif stored <= STREAM_BYTES:
        yield from _batches(uri, parquet, groups, schema, size)
    else:
        with opened(storage, uri, streaming=True) as stream:
            yield from _batches(uri, stream, groups, schema, size)


def row_group_bytes(parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> tuple[int, int]:
    """Bytes of some columns of a row group, by the footer: compressed and decompressed."""
    metadata = parquet.metadata.row_group(group)
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    sizes = [(c.total_compressed_size, c.total_uncompressed_size) for c in chunks if c.path_in_schema in columns]
    return sum(stored for stored, _ in sizes), sum(decoded for _, decoded in sizes)


@contextmanager
def opened(storage: Storage, uri: str, streaming: bool = False) -> Iterator[pq.ParquetFile]:
    """A Parquet file, open during a `with`: pyarrow's own `with` does not close a file object that it was given."""
    parquet = storage.open_parquet(uri, streaming)
    try:
        yield parquet
    finally:
        parquet.close(force=True)


def decode_text(raw: bytes | None) -> str | None:
    """The text of a row; raises UnicodeDecodeError when it is not UTF-8."""
    return None if raw is None else raw.decode("utf-8")


def parquet_bytes(table: pa.Table, row_group_rows: int, metadata: Mapping[str, str] | None = None) -> bytes:
    """A sealed Parquet file: zstd, `metadata` as its key-value metadata. Same rows, same bytes."""
    plain = table.replace_schema_metadata(dict(sorted((metadata or {}).items()))).combine_chunks()
    sink = pa.BufferOutputStream()
    pq.write_table(plain, sink, row_group_size=row_group_rows, compression="zstd", write_page_checksum=True)
    return sealed(sink.getvalue().to_pybytes())


def _accepts(actual: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column of one type can be read as another. A column of only nulls has the null type."""
    if pa.types.is_dictionary(actual):
        actual = actual.value_type
    if actual == expected or pa.types.is_null(actual):
        return True
    if pa.types.is_string(expected) and any(is_kind(actual) for is_kind in _TEXT_KINDS):
        return True
    if pa.types.is_string(expected) or pa.types.is_binary(expected):
        return any(is_kind(actual) for is_kind in _BYTES_KINDS)
    numeric = pa.types.is_integer(expected) or pa.types.is_floating(expected)
    return bool(numeric and (pa.types.is_integer(actual) or pa.types.is_floating(actual)))


def _batches(
    uri: str, parquet: pq.ParquetFile, groups: Sequence[int], schema: pa.Schema, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    present = [name for name in schema.names if name in parquet.schema_arrow.names]
    with storage_errors(uri, "read"):
        batches = parquet.iter_batches(batch_size=batch_rows, row_groups=list(groups), columns=present)
    while True:
        with storage_errors(uri, "read"):
            batch = next(batches, None)
        if batch is None:
            return
        yield _conform(uri, batch, batch.num_rows, schema)


def _conform(uri: str, batch: pa.RecordBatch | None, rows: int, schema: pa.Schema) -> pa.RecordBatch:
    """A batch with exactly the schema's columns; nulls where the file has none."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True)) if batch is not None else {}
    fields, arrays = [], []
    for field in schema:
        kind = pa.binary() if field.name == _TEXT and pa.types.is_string(field.type) else field.type
        column = columns.get(field.name)
        fields.append(pa.field(field.name, kind))
        arrays.append(pa.nulls(rows, kind) if column is None else _cast(uri, field.name, column, kind))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _cast(uri: str, name: str, column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(kind):
        return _valid_text(column)
    try:
        return column.cast(kind)
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{redacted(uri)}: column {name!r} has a value that does not fit {kind} ({error})") from error


def _valid_text(column: pa.Array) -> pa.Array:
    """A string column with invalid UTF-8 replaced: Parquet readers do not check, and Python would fail later."""
    raw = column.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        values = raw.to_pylist()
        return pa.array([None if value is None else value.decode("utf-8", "replace") for value in values], pa.string())
