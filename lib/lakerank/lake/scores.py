"""Scores in the lake: one immutable file a work unit, named by the pairs it holds, and the lists of a plan's units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lakerank.errors import SchemaError
from lakerank.lake.checksums import CorruptFile, damage, open_parquet
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes, read_table_file
from lakerank.schemas import SCORES

_SUFFIX = ".parquet"
_UNIT_KEY = "lakerank.unit"
_SCORER_KEY = "lakerank.scorer"
_ROWS_KEY = "lakerank.rows"
_SCORES_ROW_GROUP = 65_536
#: Columns of files that were written before documents had several images.
_FIRST_SCORES = pa.schema(list(SCORES)[:-3])
_ORDER = ("doc_id", "query_id", "doc_hash", "query_hash")

#: A unit of a plan: its groups, pairs, and cost in tokens.
UNITS = pa.schema([("unit", pa.string()), ("groups", pa.int64()), ("pairs", pa.int64()), ("cost", pa.int64())])

_REUSED_UNITS = pa.schema([("unit", pa.string())])
_LIST_ROW_GROUP = 100_000

#: Lists of units that this process has read, of one plan at a time, by plan folder and number.
_names_cache: dict[tuple[str, int], list[str]] = {}


class CorruptScoreFile(CorruptFile):
    """A unit file is incomplete, or its content does not match its name."""


def scores_folder(output: str, scorer: str) -> str:
    """The folder of one scorer's unit files."""
    return join(output, "scores", f"scorer={scorer}")


def unit_address(output: str, scorer: str, unit: str) -> str:
    """The file that holds a unit's scores."""
    return join(scores_folder(output, scorer), f"{unit}{_SUFFIX}")


def write_unit(storage: Storage, output: str, scorer: str, unit: str, rows: pa.Table) -> bool:
    """Write a unit's scores (schemas.SCORES, in any order) unless they exist; False when they do.

    Same rows, same bytes: a duplicate task that comes second changes nothing.

    Raises:
        SchemaError: the rows are not of schemas.SCORES.
    """
    uri = unit_address(output, scorer, unit)
    try:
        table = rows.select(SCORES.names).cast(SCORES)
    except (KeyError, ValueError, pa.ArrowNotImplementedError) as error:
        raise SchemaError(f"{uri}: rows to be written are not scores: {error}") from error
    ordered = table.sort_by([(name, "ascending") for name in _ORDER])
    metadata = {_UNIT_KEY: unit, _SCORER_KEY: scorer, _ROWS_KEY: str(ordered.num_rows)}
    return storage.create(uri, parquet_bytes(ordered, _SCORES_ROW_GROUP, metadata))


def read_unit(storage: Storage, output: str, scorer: str, unit: str) -> pa.Table:
    """A unit's scores, (doc_id, query_id) ascending, as schemas.SCORES.

    Raises:
        CorruptScoreFile: the file is truncated or damaged, or has another schema, unit or scorer.
        StorageError: the file cannot be read.
    """
    uri = unit_address(output, scorer, unit)
    data = storage.read_bytes(uri)
    try:
        with open_parquet(uri, pa.BufferReader(data)) as parquet:
            table = parquet.read()
    except CorruptFile as error:
        raise CorruptScoreFile(str(error)) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorruptScoreFile(damage(uri, f"not a whole Parquet file: {error}")) from error
    metadata = {key.decode(): value.decode("utf-8", "replace") for key, value in (table.schema.metadata or {}).items()}
    for key, expected in ((_UNIT_KEY, unit), (_SCORER_KEY, scorer), (_ROWS_KEY, str(table.num_rows))):
        if metadata.get(key) != expected:
            raise CorruptScoreFile(damage(uri, f"{key} should be {expected} (found: {metadata.get(key)})"))
    table = table.replace_schema_metadata(None)
    if table.schema.equals(_FIRST_SCORES):
        return pa.concat_tables([table, SCORES.empty_table()], promote_options="default").select(SCORES.names)
    if not table.schema.equals(SCORES):
        names = ", ".join(table.schema.names)
        raise CorruptScoreFile(damage(uri, f"columns are not those of a score file (found: {names})"))
    return table


def finished_units(storage: Storage, output: str, scorer: str) -> set[str]:
    """Names of the units whose scores are in the lake."""
    names = storage.list_names(scores_folder(output, scorer))
    return {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}


@dataclass(frozen=True)
class PlannedUnits(Sequence[str]):
    """Names of a plan's units, in file order: a sequence that holds only addresses and reads lists when needed.

    There may be a million units, so workers are sent this. `folder` is the plan attempt's, `counts` how many units each
    list names.
    """

    storage: Storage
    folder: str
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: Any) -> Any:
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
        """Every unit with its counts (UNITS), for reports."""
        return pa.concat_tables([UNITS.empty_table(), *(self._read(part) for part in range(len(self.counts)))])

    def _names(self, part: int) -> list[str]:
        if (self.folder, part) not in _names_cache:
            for other in [key for key in _names_cache if key[0] != self.folder]:
                del _names_cache[other]
            _names_cache[self.folder, part] = self._read(part)["unit"].to_pylist()
        return _names_cache[self.folder, part]

    def _read(self, part: int) -> pa.Table:
        address = _list_address(self.folder, part)
        return pa.Table.from_batches([b for *_, b in read_table_file(self.storage, address, UNITS)], schema=UNITS)


def write_unit_list(storage: Storage, folder: str, part: int, rows: pa.Table) -> None:
    """Write one list of a plan's units (UNITS)."""
    storage.replace(_list_address(folder, part), parquet_bytes(rows, _LIST_ROW_GROUP))


def write_reused_units(storage: Storage, folder: str, units: Sequence[str]) -> None:
    """Write the names of earlier runs' units whose scores a plan reuses."""
    rows = pa.table({"unit": list(units)}, schema=_REUSED_UNITS)
    storage.replace(_reused_address(folder), parquet_bytes(rows, _LIST_ROW_GROUP))


def read_reused_units(storage: Storage, folder: str) -> list[str]:
    """Names of earlier runs' units whose scores a plan reuses."""
    batches = read_table_file(storage, _reused_address(folder), _REUSED_UNITS)
    return [unit for *_, batch in batches for unit in batch.column(0).to_pylist()]


def _list_address(folder: str, part: int) -> str:
    return join(folder, "unit_lists", f"part-{part:05d}.parquet")


def _reused_address(folder: str) -> str:
    return join(folder, "reused_units.parquet")
