"""Files of tables as a plan stores them: for workers, and for later readers of a table that only Spark could list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakerank.lake.snapshot import Field, TableFile, TableSnapshot
from lakerank.lake.storage import Storage

PREFIX = "planned+"

#: How a file is read, as JSON.
_READING = ("columns", "values", "fields")

#: A file of a table, and how it is read.
SOURCES = pa.schema([
    ("table", pa.string()), ("file", pa.string()), ("size", pa.int64()), ("version", pa.string()),
    *((name, pa.string()) for name in _READING), ("rows", pa.int64()), ("deleted", pa.binary()),
])  # fmt: skip


def planned_address(sources: str, table: str) -> str:
    """The address of a table whose files are in a plan's file of SOURCES."""
    return f"{PREFIX}{sources}#{table}"


def snapshot(storage: Storage, address: str) -> TableSnapshot:
    """The table of an address as of `planned_address`. Raises StorageError: the plan's file is gone."""
    sources, _, table = address.removeprefix(PREFIX).rpartition("#")
    rows = pa.Table.from_batches(storage.batches(sources), SOURCES)
    return TableSnapshot(address, [file for _, file in table_files(rows.filter(pc.field("table") == table))])


def source_rows(table: str, files: Sequence[TableFile]) -> list[dict[str, Any]]:
    """Rows of SOURCES."""
    return [
        {"table": table, "file": file.uri, "size": file.size, "version": file.version}
        | {name: json.dumps(getattr(file, name)) for name in _READING}
        | {"rows": file.rows, "deleted": file.deleted}
        for file in files
    ]


def table_files(rows: pa.Table) -> Iterator[tuple[str, TableFile]]:
    """Each file of some rows of SOURCES, after the name of its table; deleted rows only where these are a column."""
    for row in rows.to_pylist():
        reading = {name: _parsed(row[name]) for name in _READING}
        kept = {"rows": row["rows"], "deleted": row.get("deleted")}
        yield row["table"], TableFile(row["file"], row["size"], row["version"], **reading, **kept)


@lru_cache(maxsize=64)
def _parsed(reading: str) -> Any:
    """How a file is read, or an aspect of it. Of most tables all files are read alike."""
    return json.loads(
        reading, object_hook=lambda record: {n: Field(*v) if isinstance(v, list) else v for n, v in record.items()}
    )
