"""Columns of input files: checked against a table's schema, and cast to its types."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from lakerank.credentials import redacted
from lakerank.errors import SchemaError
from lakerank.lake import path_values
from lakerank.schemas import CONTENT, LARGEST, OPTIONAL

_TEXT = "text"
_TEXT_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES_KINDS = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
_SHOWN_BYTES = 40


def check_columns(uri: str, actual: pa.Schema, expected: pa.Schema, needs_content: bool = False) -> None:
    """Check that a file has a table's columns, of types that can be cast to the table's; other columns are ignored.

    A column may also be in the file's path, as Hive and Spark write partitions (`column=value/`). Of documents and
    queries `needs_content` asks for one of the columns of content: without any, all rows would be empty.

    Raises:
        SchemaError: names the file, the columns and the actual columns.
    """
    in_path, faults = path_values(uri), []
    for field in expected:
        positions = actual.get_all_field_indices(field.name)
        if not positions and (field.name in OPTIONAL or field.name in in_path):
            continue
        if len(positions) != 1:
            problem = "no column" if not positions else f"{len(positions)} columns are called"
            faults.append(f"{problem} {field.name!r}{'' if positions else _similar(field.name, actual.names)}")
        elif not _accepts(kind := actual.field(positions[0]).type, field.type):
            faults.append(f"column {field.name!r} should be {field.type} (found: {kind})")
    if needs_content and {*CONTENT} <= {*expected.names} and not {*CONTENT} & {*actual.names, *in_path}:
        faults.append(" and ".join(f"no column {name!r}{_similar(name, actual.names)}" for name in CONTENT))
    if faults:
        found = f"found: {', '.join(actual.names)}"
        raise SchemaError(f"{redacted(uri)}: {'; '.join(faults)} ({found}); see README, 'Input and output'")


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


def conform(place: str, uri: str, batch: pa.RecordBatch | None, rows: int, schema: pa.Schema) -> pa.RecordBatch:
    """A batch with exactly the schema's columns; what the file lacks is taken from its path, or null.

    `place` says which rows these are, for messages.
    """
    columns = dict(zip(batch.schema.names, batch.columns, strict=True)) if batch is not None else {}
    in_path = path_values(uri)
    fields, arrays = [], []
    for field in schema:
        kind = pa.binary() if field.name == _TEXT and pa.types.is_string(field.type) else field.type
        column = columns.get(field.name)
        if column is None:
            column = pa.repeat(pa.scalar(in_path.get(field.name), pa.string()), rows)
        fields.append(pa.field(field.name, kind))
        try:
            arrays.append(_cast(column, field.name, kind))
        except pa.ArrowInvalid as error:
            raise SchemaError(f"{redacted(uri)}: {_fault(column, field.name, kind)} {place})") from error
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


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
