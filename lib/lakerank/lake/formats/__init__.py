"""Tables by address: the files of one moment, whichever format keeps them. The one door for every input table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lakerank.lake.formats import plain
from lakerank.lake.formats.snapshot import TableFile, TableSnapshot
from lakerank.lake.storage import Storage


def resolve(storage: Storage, address: str) -> TableSnapshot:
    """A table's files, sorted by URI, with the columns that the config maps.

    Raises:
        StorageError: nothing is there, it cannot be listed, or it is another format's folder.
    """
    snapshot = plain.snapshot(storage, address)
    if not (mapped := storage.columns.get(address)):
        return snapshot
    return replace(snapshot, files=[_mapped(file, mapped) for file in snapshot.files])


def pinned(storage: Storage, address: str) -> str:
    """The address with its snapshot, so that whoever reads it later reads the same rows; a plain one has none."""
    return address


def _mapped(file: TableFile, mapped: Mapping[str, str]) -> TableFile:
    """A file whose columns the config maps: to the table's names, which the file may write otherwise."""
    own = {name: _in_file(file.columns, path) for name, path in mapped.items()}
    return replace(file, columns={**file.columns, **own})


def _in_file(columns: Mapping[str, str], path: str) -> str:
    """A dotted path of the table as one of the file."""
    if path in columns:
        return columns[path]
    parent, dot, name = path.rpartition(".")
    return f"{_in_file(columns, parent)}.{name}" if dot else path
