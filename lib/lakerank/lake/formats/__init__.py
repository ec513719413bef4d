"""Tables by address: the files of one moment, whichever format keeps them. The one door for every input table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lakerank.errors import DependencyError
from lakerank.lake import DELTA, ICEBERG
from lakerank.lake.formats import delta, iceberg, plain, planned
from lakerank.lake.snapshot import TableSnapshot
from lakerank.lake.storage import Storage

SPARK_TABLE = "spark-table://"


def _without_spark(storage: Storage, address: str) -> TableSnapshot:
    raise DependencyError(f"{address}: only Spark can read this table, and this is no job that starts it")


#: By the beginning of an address. Tables of Spark's catalogs are read by what a job puts here until it ends.
READERS: dict[str, Callable[[Storage, str], TableSnapshot]] = {
    ICEBERG: iceberg.snapshot,
    DELTA: delta.snapshot,
    planned.PREFIX: planned.snapshot,
    SPARK_TABLE: _without_spark,
}


def resolve(storage: Storage, address: str) -> TableSnapshot:
    """A table's files, sorted by URI, with the columns that the config maps.

    A table of a format that has snapshots is at one of them whenever it is resolved with the same storage.

    Raises:
        ConfigError: it is no address of its format.
        DependencyError: the format's library is not installed, or it needs Spark, and none can be started.
        StorageError: nothing is there, it cannot be listed, or it is another format's folder.
    """
    known: TableSnapshot | None = storage.snapshots.get(address)
    if known is not None:
        return known
    pinned = storage.pins.get(address, address)
    read = next((read for prefix, read in READERS.items() if pinned.startswith(prefix)), plain.snapshot)
    snapshot = read(storage, pinned)
    if columns := storage.columns.get(address):
        snapshot = replace(snapshot, files=[replace(file, columns=columns) for file in snapshot.files])
    if snapshot.schema is not None:
        storage.pins[address], storage.snapshots[address] = snapshot.address, snapshot
    return snapshot
