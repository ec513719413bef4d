"""Storage backends: what each kind of storage implements, and what a listing tells about a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file's URI, size in bytes, and version (ETag or modification time), which changes when its content does."""

    uri: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a full listing: URI, size in bytes, and modification time (Unix time)."""

    uri: str
    size: int
    written: float


class Backend(Protocol):
    """One kind of storage. Methods raise what the library below raises; `Storage` retries and translates it."""

    def find(self, uri: str) -> list[FileInfo]:
        """The Parquet files of a file, folder or glob, unsorted; [] when there are none."""
        ...

    def walk(self, folder: str) -> list[StoredFile]:
        """Every file below a folder, hidden ones too, unsorted; links are not followed. [] when it does not exist."""
        ...

    def info(self, uri: str) -> FileInfo:
        """A file's current state; FileNotFoundError when it is not there."""
        ...

    def names(self, folder: str) -> list[str]:
        """Base names directly in a folder; FileNotFoundError when it does not exist."""
        ...

    def open(self, uri: str) -> pa.NativeFile:
        """A file opened for random access."""
        ...

    def read(self, uri: str) -> bytes:
        """A whole file."""
        ...

    def exists(self, uri: str) -> bool:
        """Whether a file or folder is there."""
        ...

    def replace(self, uri: str, data: bytes) -> None:
        """Write a file in one step, over an old one if there is one."""
        ...

    def replace_if(self, uri: str, data: bytes, version: str | None, writer: str) -> None:
        """Write a file in one step if it still has a version (None: if it does not exist), else FileExistsError.

        A request may be carried out though its answer is lost, and clients below repeat requests by themselves: a file
        that this `writer` wrote is no conflict. A store without conditional replacement looks, then writes: two writers
        at once may then both succeed. Creation (None) is conditional everywhere.
        """
        ...

    def delete(self, uri: str) -> None:
        """Remove a file; FileNotFoundError is allowed when it is not there."""
        ...

    def remove_empty_folders(self, folder: str) -> None:
        """Remove empty folders below a folder."""
        ...
