"""What a table is, whatever keeps it: its files at one moment, and how the rows of each are read."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lakerank.lake import path_values
from lakerank.ranking import Int64

_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class TableFile:
    """One Parquet file of a table, and how its rows are read.

    `version` changes with the file's content; "" for a file that is never written again, as those of table formats.
    `columns` are dotted paths in the file by the table's names, where these differ; "": the table has no such column,
    whatever the file has. `values` are of columns that only metadata has, as text. `deleted`: packed row positions.
    """

    uri: str
    size: int = 0
    version: str = ""
    columns: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    values: Mapping[str, str | None] = field(default_factory=lambda: _NOTHING)
    deleted: bytes | None = None

    @property
    def constants(self) -> dict[str, str | None]:
        """Values, as text, of columns that all rows share: the path's, and those of metadata."""
        return {**path_values(self.uri), **self.values}

    def deleted_rows(self) -> Int64:
        """Positions of deleted rows in the file, from 0, rising: (D,)."""
        return np.cumsum(np.frombuffer(zlib.decompress(self.deleted), "<i8")) if self.deleted else np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """A table at one moment.

    `rows`: how many, where metadata says so. `identity`: what the manifest says of it. `passed_over`: how many files
    are below its folder that are no part of it.
    """

    address: str
    files: Sequence[TableFile]
    rows: int | None = None
    identity: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    passed_over: int = 0


def packed(positions: Int64) -> bytes:
    """Rising row positions (D,), from 0, as `TableFile.deleted`."""
    return zlib.compress(np.diff(positions, prepend=0).astype("<i8").tobytes())
