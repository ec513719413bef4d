"""Ids of any type: text inside, by which tables are joined, and of their own type in the lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

_TEXT = pa.string()
_UUID_BYTES = 16
_HEX = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint8).reshape(256, 2)
_GROUPS = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, which may be dictionary-encoded or of a type that stands on another."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


#: Spark, Iceberg and Delta have no unsigned numbers: the types that hold theirs.
SIGNED = {
    pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.decimal128(20, 0),
}  # fmt: skip


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's strings."""
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_uuid(kind: pa.DataType) -> bool:
    """Whether a type is 16 bytes."""
    return bool(types.is_fixed_size_binary(kind) and kind.byte_width == _UUID_BYTES)


def advice(name: str, kind: pa.DataType) -> str | None:
    """The cast to write where a column cannot hold ids; None where it can."""
    kind = plain(kind)
    whole = types.is_integer(kind) or types.is_decimal(kind)
    if whole or is_text(kind) or is_uuid(kind) or types.is_null(kind):
        return None
    if types.is_floating(kind):
        return f"CAST({name} AS BIGINT)"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return f"HEX({name}), or DECODE({name}, 'UTF-8') where the bytes are text"
    return f"HEX({name})" if types.is_fixed_size_binary(kind) else f"CAST({name} AS STRING)"


def as_text(column: pa.Array) -> pa.Array:
    """Ids as strings: whole numbers in digits, 16 bytes as a UUID; raises pa.ArrowInvalid for a value that is no id."""
    if types.is_dictionary(column.type):
        try:
            return as_text(column.dictionary).take(column.indices)
        except pa.ArrowInvalid:  # of a value that perhaps no row has
            return as_text(column.dictionary_decode())
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    if is_uuid(column.type):
        return _uuids(column)
    if types.is_decimal(column.type):
        column = column.cast(pa.decimal256(76, 0))  # fails where there is a fraction
    if types.is_integer(column.type) or types.is_decimal(column.type):
        return column.cast(_TEXT)
    return column.cast(pa.binary()).cast(_TEXT)  # Parquet readers do not check that a string is UTF-8


def _uuids(column: pa.FixedSizeBinaryArray) -> pa.Array:
    """16 bytes as the text of a UUID, 8-4-4-4-12."""
    raw = pa.concat_arrays([column]).fill_null(bytes(_UUID_BYTES))
    digits = _HEX[np.frombuffer(b"".join(raw.to_pylist()), np.uint8)].reshape(len(column), 2 * _UUID_BYTES)
    groups = [pa.array(np.ascontiguousarray(digits[:, a:b]).view(f"S{b - a}")[:, 0].astype(str)) for a, b in _GROUPS]
    return pc.if_else(column.is_valid(), pc.binary_join_element_wise(*groups, "-"), pa.scalar(None, _TEXT))


def written_as(kinds: Iterable[pa.DataType]) -> str:
    """The type of ids in ranked/ where those of a table's files have some types: a whole number's, or string."""
    plain_kinds = [plain(kind) for kind in kinds if not types.is_null(plain(kind))]
    names = {str(kind) if types.is_integer(kind) else "string" for kind in plain_kinds}
    if len(names) > 1 and not names & {"string", "uint64"}:
        return "int64"
    return names.pop() if len(names) == 1 else "string"


def with_types(rows: pa.Table, kinds: Mapping[str, str]) -> pa.Table:
    """Rows whose ids, text, are of the types that the lists have them in."""
    alias = {field.name: kinds[field.name] for field in rows.schema if field.name in kinds}
    fields = [f.with_type(pa.type_for_alias(alias[f.name])) if f.name in alias else f for f in rows.schema]
    return rows.cast(pa.schema(fields))
