"""Tables by address: the files of one moment, whichever format keeps them. The one door for every input table."""

from __future__ import annotations

from dataclasses import replace

from lakerank.lake import DELTA, ICEBERG
from lakerank.lake.formats import delta, iceberg, plain
from lakerank.lake.formats.snapshot import TableSnapshot
from lakerank.lake.storage import Storage

_FORMATS = {ICEBERG: iceberg.snapshot, DELTA: delta.snapshot}


def resolve(storage: Storage, address: str) -> TableSnapshot:
    """A table's files, sorted by URI, with the columns that the config maps.

    A table of a format that has snapshots is at one of them whenever it is resolved with the same storage.

    Raises:
        ConfigError: it is no address of its format.
        DependencyError: the format's library is not installed.
        StorageError: nothing is there, it cannot be listed, or it is another format's folder.
    """
    known: TableSnapshot | None = storage.snapshots.get(address)
    if known is not None:
        return known
    read = next((read for prefix, read in _FORMATS.items() if address.startswith(prefix)), plain.snapshot)
    snapshot = read(storage, storage.pins.get(address, address))
    if columns := storage.columns.get(address):
        snapshot = replace(snapshot, files=[replace(file, columns=columns) for file in snapshot.files])
    if snapshot.schema is not None:
        storage.pins[address], storage.snapshots[address] = snapshot.address, snapshot
    return snapshot
