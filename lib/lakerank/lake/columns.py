"""Columns of input files: checked against a table's schema, and cast to its types."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from lakerank.credentials import redacted
from lakerank.errors import SchemaError
from lakerank.lake.ids import advice, as_text, is_text, plain
from lakerank.lake.snapshot import TableFile, nested_fields
from lakerank.schemas import CONTENT, IDS, LARGEST, OPTIONAL

#: Columns that are read as they are stored, for a row to be rejected that is not UTF-8.
_TEXTS = ("text", "instruction")
_BYTES_KINDS = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
_LIST_KINDS = (types.is_list, types.is_large_list, types.is_fixed_size_list)
_SHOWN_BYTES = 40
_FIELD_ID = b"PARQUET:field_id"


def locate(file: TableFile, actual: pa.Schema, expected: pa.Schema, needs_content: bool = False) -> Located:
    """The columns of a table that a file has; others are ignored.

    Names match in any case where that is unambiguous. A column that is left out is in the file's path, as Hive and
    Spark write partitions (`column=value/`), in metadata, or null: it is optional, or the table got it later. Of
    documents and queries `needs_content` asks for one of the columns of content: without any, all rows would be empty.

    Raises:
        SchemaError: names the file, the columns that are missing or of a type that cannot be cast, and the actual ones.
    """
    columns: dict[str, pa.Field] = {}
    elsewhere, faults = set(), []
    for field in expected:
        try:
            column = _stored(file, actual, field.name)
            if column is not None and types.is_binary(field.type) and types.is_struct(plain(column.type)):
                # As the datasets library has images: bytes, or the path of a file.
                address = _stored(file, actual, field.name, ".path")
                columns |= {"image_uri": address} if address is not None and "image_uri" in expected.names else {}
                column = _stored(file, actual, field.name, ".bytes") or column
            elsewhere |= {field.name} if column is None and _is_elsewhere(file, field.name) else set()
        except ValueError as error:
            faults.append(str(error))
            continue
        if column is not None:
            columns[field.name] = column
            faults += [] if (fault := _type_fault(field, column)) is None else [fault]
        elif field.name not in OPTIONAL and field.name not in elsewhere:
            faults.append(f"no column {field.name!r}{_similar(field.name, actual.names)}")
    if needs_content and {*CONTENT[:2]} <= {*expected.names} and not {*CONTENT} & {*columns, *elsewhere}:
        faults.append(" and ".join(f"no column {name!r}{_similar(name, actual.names)}" for name in CONTENT[:2]))
    if faults:
        found = f"found: {', '.join(actual.names)}"
        raise SchemaError(
            f"{redacted(file.uri)}: {'; '.join(faults)} ({found}); name other columns in lake.columns, see "
            "docs/tables.md, 'Columns'"
        )
    return Located(file, expected, columns)


def extra_fields(file: TableFile, actual: pa.Schema, names: Iterable[str]) -> list[pa.Field]:
    """Those of some columns that a table has beside its schema, of the types that they have in a file."""
    columns = {name: _stored(file, actual, name) for name in names}
    kinds = {name: pa.string() for name in names if constant_of(file, name) is not None}
    kinds |= {name: plain(column.type) for name, column in columns.items() if column is not None}
    return [pa.field(name, kind) for name, kind in kinds.items()]


def named(names: Iterable[str], name: str) -> str | None:
    """The one of some names that is a name, or else is in another case; None where none is.

    Raises:
        ValueError: there are several.
    """
    exact = [other for other in names if other == name]
    found = exact or [other for other in names if other.casefold() == name.casefold()]
    if len(exact) > 1:
        raise ValueError(f"{len(exact)} columns are called {name!r}")
    if len(found) > 1:
        raise ValueError(f"columns {' and '.join(map(repr, found))} differ only by case: say which is {name!r}")
    return found[0] if found else None


def constant_of(file: TableFile, name: str) -> str | None:
    """What a table's column is called among the values that all rows of a file share; None where it is not there."""
    return named(file.constants, _path(file, name))


def _is_elsewhere(file: TableFile, name: str) -> bool:
    """Whether a table has a column that a file lacks: one of the path or of metadata, or one that it got later."""
    return constant_of(file, name) is not None or named(file.fields or (), _path(file, name)) is not None


def _path(file: TableFile, name: str) -> str:
    """The dotted path in a table of one of its columns."""
    mapped = named(file.columns, name)
    return name if mapped is None else file.columns[mapped]


def _stored(file: TableFile, actual: pa.Schema, name: str, inner: str = "") -> pa.Field | None:
    """A table's column in a file, or what is at `inner` in it, called by its dotted path; None where the file has none.

    Raises:
        ValueError: several have the name, or the one that it is mapped to is not there.
    """
    path = f"{_path(file, name)}{inner}"
    column = _at([*actual], path) if file.fields is None else _of_format(file, actual, path)
    if column is None and path not in ("", name) and not inner and not _is_elsewhere(file, name):
        raise ValueError(f"no column {path!r}, which is to be {name!r}{_similar(path, actual.names)}")
    return column


def _of_format(file: TableFile, actual: pa.Schema, path: str) -> pa.Field | None:
    """What a file has of a column of a table format, by field id, or in a file without ids by name.

    Raises:
        ValueError: several have the name, or the file does not say which columns it has.
    """
    fields, nested = file.fields or {}, nested_fields(actual)
    if (name := named(fields, path)) is None:
        return None
    ids = {int(field.metadata[_FIELD_ID]): at for at, field in nested.items() if _FIELD_ID in (field.metadata or ())}
    if (number := fields[name].id) is not None and ids:
        place = ids.get(number)
    elif not fields[name].paths:
        raise ValueError("no field ids, and the table has no schema.name-mapping.default: set that property")
    else:
        place = next((at for at in (named(nested, path) for path in fields[name].paths) if at is not None), None)
    return None if place is None else nested[place].with_name(place)


def _at(fields: Sequence[pa.Field], path: str) -> pa.Field | None:
    """The field at a dotted path, called by its path as the file writes it; None where there is none."""
    names = [field.name for field in fields]
    if (name := named(names, path)) is not None:
        return fields[names.index(name)]
    parent, _, rest = path.partition(".")
    if not rest or (name := named(names, parent)) is None:
        return None
    return _nested(fields[names.index(name)], rest)


def _nested(parent: pa.Field, path: str) -> pa.Field | None:
    """The field at a dotted path in a struct."""
    inner = _at([*parent.type], path) if types.is_struct(parent.type) else None
    return None if inner is None else inner.with_name(f"{parent.name}.{inner.name}")


def _similar(name: str, names: Sequence[str]) -> str:
    """A column that is probably the one, as part of a message."""
    lower = {other.casefold(): other for other in names}
    close = difflib.get_close_matches(name, lower, 1, 0.5)
    return f", did you mean {lower[close[0]]!r}?" if close else ""


def decode_text(raw: bytes | None) -> str | None:
    """The text of a row; raises UnicodeDecodeError when it is not UTF-8."""
    return None if raw is None else raw.decode("utf-8")


def _type_fault(field: pa.Field, column: pa.Field) -> str | None:
    """What is wrong with the type of a column, and what to do."""
    actual = column.type
    if field.name in IDS:
        cast = advice(column.name, actual)
        kinds = "text, a whole number or a UUID"
        return None if cast is None else f"column {field.name!r} should be {kinds} (found: {actual}): write {cast}"
    return (
        None
        if _accepts(plain(actual), field.type)
        else (f"column {field.name!r} should be {field.type} (found: {actual})")
    )


def _accepts(actual: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column of one type can be read as another. A column of only nulls has the null type."""
    if actual == expected or types.is_null(actual):
        return True
    if types.is_list(expected):
        return is_list(actual) and (_is_file(actual.value_type) or _accepts(actual.value_type, pa.string()))
    if types.is_string(expected) or types.is_binary(expected):
        return any(is_kind(actual) for is_kind in _BYTES_KINDS) or (types.is_string(expected) and is_text(actual))
    numeric = types.is_integer(expected) or types.is_floating(expected)
    return bool(numeric and (types.is_integer(actual) or types.is_floating(actual) or types.is_decimal(actual)))


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists, of whatever kind."""
    return any(is_kind(kind) for is_kind in _LIST_KINDS)


def _is_file(kind: pa.DataType) -> bool:
    """Whether values are files as Hugging Face's datasets keep them."""
    return types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}


@dataclass(frozen=True, slots=True)
class Located:
    """A file's columns of a schema; `fields` are those that it has, by name, each called by its dotted path."""

    file: TableFile
    schema: pa.Schema
    fields: Mapping[str, pa.Field]

    @property
    def columns(self) -> list[str]:
        """The paths to read, in the schema's order."""
        return [self.fields[name].name for name in self.schema.names if name in self.fields]

    def conform(self, batch: pa.RecordBatch | None, rows: int, place: str) -> pa.RecordBatch:
        """A batch with exactly the schema's columns; what the file lacks is its constant, or null.

        `place` says which rows these are, for messages.
        """
        constants, fields, arrays = self.file.constants, [], []
        for field in self.schema:
            kind = pa.binary() if field.name in _TEXTS and types.is_string(field.type) else field.type
            constant = constant_of(self.file, field.name)
            if field.name in self.fields and batch is not None:
                column = _values(batch, self.fields[field.name].name)
            elif constant is not None:
                column = pa.repeat(pa.scalar(constants[constant], pa.string()), rows)
            else:
                column = pa.nulls(rows, kind)
            if is_list(column.type) and not types.is_binary(column.type.value_type):
                kind = column.type  # of addresses, or structs with one
            fields.append(pa.field(field.name, kind))
            try:
                arrays.append(_cast(column, field.name, kind))
            except pa.ArrowInvalid as error:
                fault = _fault(column, field.name, kind)
                raise SchemaError(f"{redacted(self.file.uri)}: {fault} {place})") from error
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _values(batch: pa.RecordBatch, path: str) -> pa.Array:
    """The values at a dotted path of a batch."""
    if path in batch.schema.names:
        return batch[path]
    parent, _, names = path.partition(".")
    return pc.struct_field(batch[parent], names.split("."))


def _cast(column: pa.Array, name: str, kind: pa.DataType) -> pa.Array:
    """A column of a type; raises pa.ArrowInvalid when it has a value that the type or the column cannot hold."""
    if name in IDS:
        return as_text(column)
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    column = column.dictionary_decode() if types.is_dictionary(column.type) else column
    if types.is_string(kind):
        return column.cast(pa.binary()).cast(kind)  # Parquet readers do not check that a string is UTF-8
    values = column.cast(kind)
    if name in LARGEST and pc.any(pc.greater(values, LARGEST[name])).as_py():
        raise pa.ArrowInvalid(f"over {LARGEST[name]}")
    return values


def _fault(column: pa.Array, name: str, kind: pa.DataType) -> str:
    """Which value cannot be cast, and what to do. The row is found by bisection."""
    column = column.dictionary_decode() if types.is_dictionary(column.type) else column
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _cast(column.slice(low, middle - low), name, kind)
            low = middle
        except pa.ArrowInvalid:
            high = middle
    value = column[low : low + 1]
    if types.is_string(kind) and not types.is_decimal(value.type):
        shown = value.cast(pa.binary())[0].as_py()[:_SHOWN_BYTES]
        how = "write ids as strings, UUIDs as their canonical text"
        return f"column {name!r} holds {shown!r}, which is not UTF-8; {how} (row {low} of"
    bound = f"; the largest is {LARGEST[name]}" if name in LARGEST else ""
    kinds = "no whole number; an id has no fraction" if name in IDS else f"which does not fit {kind}{bound}"
    return f"column {name!r} holds {value[0].as_py()}, {kinds} (row {low} of"
