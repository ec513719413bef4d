"""Columns of input files: checked against a table's schema, and cast to its types."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from lakerank.credentials import redacted
from lakerank.errors import SchemaError
from lakerank.lake.formats.snapshot import TableFile
from lakerank.schemas import CONTENT, LARGEST, OPTIONAL

_TEXT = "text"
_TEXT_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES_KINDS = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
_SHOWN_BYTES = 40


def locate(file: TableFile, actual: pa.Schema, expected: pa.Schema, needs_content: bool = False) -> dict[str, str]:
    """Where a file has a table's columns: the dotted path in the file, by name. Other columns are ignored.

    A column that is left out is in the file's path, as Hive and Spark write partitions (`column=value/`), in metadata,
    or is optional and null. Of documents and queries `needs_content` asks for one of the columns of content: without
    any, all rows would be empty.

    Raises:
        SchemaError: names the file, the columns that are missing or of a type that cannot be cast, and the actual ones.
    """
    constants, paths, faults = file.constants, {}, []
    for field in expected:
        path = file.columns.get(field.name, field.name)
        try:
            column = _column(actual, path) if path else None
        except ValueError as error:
            faults.append(str(error))
            continue
        if column is not None:
            paths[field.name] = column.name
            if not _accepts(column.type, field.type):
                faults.append(f"column {field.name!r} should be {field.type} (found: {column.type})")
        elif path not in ("", field.name):
            faults.append(f"no column {path!r} for {field.name!r}{_similar(path, actual.names)}")
        elif field.name not in OPTIONAL and field.name not in constants:
            faults.append(f"no column {field.name!r}{_similar(field.name, actual.names)}")
    if needs_content and {*CONTENT} <= {*expected.names} and not {*CONTENT} & {*paths, *constants}:
        faults.append(" and ".join(f"no column {name!r}{_similar(name, actual.names)}" for name in CONTENT))
    if faults:
        found = f"found: {', '.join(actual.names)}"
        raise SchemaError(f"{redacted(file.uri)}: {'; '.join(faults)} ({found}); see README, 'Input and output'")
    return paths


def extra_fields(file: TableFile, actual: pa.Schema, names: Iterable[str]) -> list[pa.Field]:
    """Those of some columns that a table has beside its schema, of the types that they have in a file."""
    columns = {name: _column(actual, file.columns.get(name, name)) for name in names}
    kinds = {name: pa.string() for name in file.constants}
    kinds |= {name: _plain(column.type) for name, column in columns.items() if column is not None}
    return [pa.field(name, kinds[name]) for name in columns if name in kinds]


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, which may be dictionary-encoded."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _column(fields: Iterable[pa.Field], path: str) -> pa.Field | None:
    """The field at a dotted path, called by its path in the file; None where there is none."""
    fields = list(fields)
    for name in (path, path.partition(".")[0]):
        named = [field for field in fields if field.name == name]
        if len(named) > 1:
            raise ValueError(f"{len(named)} columns are called {name!r}")
        if not named:
            continue
        if name == path:
            return named[0]
        if pa.types.is_struct(named[0].type):
            inner = _column(named[0].type, path[len(name) + 1 :])
            return inner and inner.with_name(f"{named[0].name}.{inner.name}")
    return None


def _similar(name: str, names: Sequence[str]) -> str:
    """A column that is probably the one, as part of a message."""
    lower = {other.casefold(): other for other in names}
    close = difflib.get_close_matches(name, lower, 1, 0.5)
    return f", did you mean {lower[close[0]]!r}?" if close else ""


def decode_text(raw: bytes | None) -> str | None:
    """The text of a row; raises UnicodeDecodeError when it is not UTF-8."""
    return None if raw is None else raw.decode("utf-8")


def _accepts(actual: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column of one type can be read as another. A column of only nulls has the null type."""
    actual = _plain(actual)
    if actual == expected or pa.types.is_null(actual):
        return True
    if pa.types.is_string(expected) and any(is_kind(actual) for is_kind in _TEXT_KINDS):
        return True
    if pa.types.is_string(expected) or pa.types.is_binary(expected):
        return any(is_kind(actual) for is_kind in _BYTES_KINDS)
    numeric = pa.types.is_integer(expected) or pa.types.is_floating(expected)
    return bool(numeric and (pa.types.is_integer(actual) or pa.types.is_floating(actual)))


@dataclass(frozen=True, slots=True)
class Located:
    """A file's columns of a schema: where each is in the file, as of `locate`."""

    file: TableFile
    schema: pa.Schema
    paths: Mapping[str, str]

    @property
    def columns(self) -> list[str]:
        """The paths to read, in the schema's order."""
        return [self.paths[name] for name in self.schema.names if name in self.paths]

    def conform(self, batch: pa.RecordBatch | None, rows: int, place: str) -> pa.RecordBatch:
        """A batch with exactly the schema's columns; what the file lacks is its constant, or null.

        `place` says which rows these are, for messages.
        """
        constants, fields, arrays = self.file.constants, [], []
        for field in self.schema:
            kind = pa.binary() if field.name == _TEXT and pa.types.is_string(field.type) else field.type
            if field.name in self.paths and batch is not None:
                column = values_at(batch, self.paths[field.name])
            else:
                column = pa.repeat(pa.scalar(constants.get(field.name), pa.string()), rows)
            fields.append(pa.field(field.name, kind))
            try:
                arrays.append(_cast(column, field.name, kind))
            except pa.ArrowInvalid as error:
                fault = _fault(column, field.name, kind)
                raise SchemaError(f"{redacted(self.file.uri)}: {fault} {place})") from error
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def values_at(batch: pa.RecordBatch, path: str) -> pa.Array:
    """The values at a dotted path of a batch."""
    if path in batch.schema.names:
        return batch[path]
    parent, _, names = path.partition(".")
    return pc.struct_field(batch[parent], names.split("."))


def _cast(column: pa.Array, name: str, kind: pa.DataType) -> pa.Array:
    """A column of a type; raises pa.ArrowInvalid when it has a value that the type or the column cannot hold."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(kind):
        return column.cast(pa.binary()).cast(kind)  # Parquet readers do not check that a string is UTF-8
    values = column.cast(kind)
    if name in LARGEST and pc.any(pc.greater(values, LARGEST[name])).as_py():
        raise pa.ArrowInvalid(f"over {LARGEST[name]}")
    return values


def _fault(column: pa.Array, name: str, kind: pa.DataType) -> str:
    """Which value cannot be cast, and what to do. The row is found by bisection."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _cast(column.slice(low, middle - low), name, kind)
            low = middle
        except pa.ArrowInvalid:
            high = middle
    value = column[low : low + 1]
    value = value.dictionary_decode() if pa.types.is_dictionary(value.type) else value
    if pa.types.is_string(kind):
        shown = value.cast(pa.binary())[0].as_py()[:_SHOWN_BYTES]
        advice = "write ids as strings, UUIDs as their canonical text"
        return f"column {name!r} holds {shown!r}, which is not UTF-8; {advice} (row {low} of"
    bound = f"; the largest is {LARGEST[name]}" if name in LARGEST else ""
    return f"column {name!r} holds {value[0].as_py()!r}, which does not fit {kind}{bound} (row {low} of"
