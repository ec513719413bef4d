"""What a table is, whatever keeps it: its files at one moment, and how the rows of each are read."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lakerank.lake import path_values
from lakerank.ranking import Int64

_NOTHING: Mapping[str, Any] = {}


class Field(NamedTuple):
    """A column of a table format in its files: by field id, or in files that have none by one of some dotted paths."""

    id: int | None
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableFile:
    """One Parquet file of a table, and how its rows are read.

    `version` changes with the file's content; "" for a file that is never written again, as those of table formats.
    `columns` are dotted paths in the table by the contract's names, where these differ. `fields`: all columns of a
    table format, by dotted path; the file may have others, and not all; None where columns are called as in the file.
    `values` are of columns that only metadata has, as text. `deleted`: packed row positions. `rows`: how many, deleted
    ones included, where metadata says so.
    """

    uri: str
    size: int = 0
    version: str = ""
    columns: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    values: Mapping[str, str | None] = field(default_factory=lambda: _NOTHING)
    deleted: bytes | None = None
    fields: Mapping[str, Field] | None = None
    rows: int | None = None

    def __str__(self) -> str:
        return self.uri

    @property
    def is_of_snapshot(self) -> bool:
        """Whether a table format has it, and deletes it once no snapshot does."""
        return self.fields is not None and not self.version

    @property
    def constants(self) -> dict[str, str | None]:
        """Values, as text, of columns that all rows share: the path's, and those of metadata."""
        return {**path_values(self.uri), **self.values} if self.fields is None else dict(self.values)

    def deleted_rows(self) -> Int64:
        """Positions of deleted rows in the file, from 0, rising: (D,)."""
        return np.cumsum(np.frombuffer(zlib.decompress(self.deleted), "<i8")) if self.deleted else np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """A table at one moment.

    `identity`: what the manifest says of it. `passed_over`: how many files are below its folder that are no part of it.
    `schema`: a table format's.
    """

    address: str
    files: Sequence[TableFile]
    identity: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    passed_over: int = 0
    schema: pa.Schema | None = None


def packed(positions: Int64) -> bytes:
    """Rising row positions (D,), from 0, as `TableFile.deleted`."""
    return zlib.compress(np.diff(positions, prepend=0).astype("<i8").tobytes())


def nested_fields(fields: Iterable[pa.Field], parent: str = "") -> dict[str, pa.Field]:
    """Columns, and the fields inside of structs, by dotted path."""
    nested: dict[str, pa.Field] = {}
    for column in fields:
        nested[f"{parent}{column.name}"] = column
        if pa.types.is_struct(column.type):
            nested |= nested_fields(column.type, f"{parent}{column.name}.")
    return nested
