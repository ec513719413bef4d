"""The work units that a plan names, in files: there may be a million."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import pyarrow as pa

from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes, read_table_file

#: A unit as planned: its groups, pairs, and cost in tokens.
UNITS = pa.schema([("unit", pa.string()), ("groups", pa.int64()), ("pairs", pa.int64()), ("cost", pa.int64())])

_REUSED = pa.schema([("unit", pa.string())])
_ROW_GROUP_ROWS = 100_000

#: Names that this process has read, of one plan at a time.
_held: dict[tuple[str, int], list[str]] = {}


@dataclass(frozen=True)
class PlannedUnits(Sequence[str]):
    """Names of a plan's units, in file order. Crosses to workers as an address: each reads the lists it needs.

    `folder` is the plan's (an attempt's), `counts` how many units each list names.
    """

    storage: Storage
    folder: str
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index if index >= 0 else index + len(self)
        for part, count in enumerate(self.counts):
            if 0 <= position < count:
                return self._names(part)[position]
            position -= count
        raise IndexError(index)

    def __iter__(self) -> Iterator[str]:
        for part in range(len(self.counts)):
            yield from self._names(part)

    def table(self) -> pa.Table:
        """Every unit with its counts, as UNITS: for reports."""
        return pa.concat_tables([UNITS.empty_table(), *(self._read(part) for part in range(len(self.counts)))])

    def _names(self, part: int) -> list[str]:
        if (self.folder, part) not in _held:
            for other in [key for key in _held if key[0] != self.folder]:
                del _held[other]
            _held[self.folder, part] = self._read(part)["unit"].to_pylist()
        return _held[self.folder, part]

    def _read(self, part: int) -> pa.Table:
        address = _list_address(self.folder, part)
        return pa.Table.from_batches([b for *_, b in read_table_file(self.storage, address, UNITS)], schema=UNITS)


def write_unit_list(storage: Storage, folder: str, part: int, rows: pa.Table) -> None:
    """Write one list of a plan's units (UNITS)."""
    storage.replace(_list_address(folder, part), parquet_bytes(rows, _ROW_GROUP_ROWS))


def write_reused_units(storage: Storage, folder: str, units: Sequence[str]) -> None:
    """Write down the units of earlier runs whose scores a plan uses again."""
    rows = pa.table({"unit": list(units)}, schema=_REUSED)
    storage.replace(join(folder, "reused_units.parquet"), parquet_bytes(rows, _ROW_GROUP_ROWS))


def read_reused_units(storage: Storage, folder: str) -> list[str]:
    """Units of earlier runs whose scores a plan uses again."""
    batches = read_table_file(storage, join(folder, "reused_units.parquet"), _REUSED)
    return [unit for *_, batch in batches for unit in batch.column(0).to_pylist()]


def _list_address(folder: str, part: int) -> str:
    return join(folder, "unit_lists", f"part-{part:05d}.parquet")
