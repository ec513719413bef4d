"""What every kind of storage must do, and what is known of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file's name, its size in bytes, and a version (ETag or time of change) that changes when its content does."""

    uri: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as a listing of everything shows it: its name, its size in bytes, and when it was written (Unix time)."""

    uri: str
    size: int
    written: float


class Files(Protocol):
    """One kind of storage. Methods raise what the library below raises; `Storage` retries and names it."""

    def find(self, uri: str) -> list[FileInfo]:
        """The Parquet files that a file, folder or glob stands for, unsorted; [] when there are none."""
        ...

    def walk(self, folder: str) -> list[StoredFile]:
        """Every file below a folder, hidden ones too, unsorted; links are not followed. [] when it does not exist."""
        ...

    def info(self, uri: str) -> FileInfo:
        """What is known of one file now; FileNotFoundError when it is not there."""
        ...

    def names(self, folder: str) -> list[str]:
        """Base names directly in a folder; FileNotFoundError when it does not exist."""
        ...

    def open(self, uri: str) -> pa.NativeFile:
        """A file opened for reading at random."""
        ...

    def read(self, uri: str) -> bytes:
        """A whole file."""
        ...

    def exists(self, uri: str) -> bool:
        """Whether a file or folder is there."""
        ...

    def create(self, uri: str, data: bytes, writer: str) -> None:
        """Write a new file in one step; FileExistsError when it is there already and not from this writer.

        A request may be carried out though its answer is lost, and clients below repeat requests unasked: the name
        of the writer tells a file of ours from another's.
        """
        ...

    def replace(self, uri: str, data: bytes) -> None:
        """Write a file in one step, over an old one if there is one."""
        ...

    def replace_if(self, uri: str, data: bytes, version: str | None, writer: str) -> None:
        """Write a file in one step if it still has a version (None: if there is none), else FileExistsError.

        A store that cannot be asked for that looks, then writes: two writers at once may then both succeed.
        """
        ...

    def delete(self, uri: str) -> None:
        """Remove a file; FileNotFoundError is allowed when it is not there."""
        ...

    def remove_empty_folders(self, folder: str) -> None:
        """Remove folders below a folder in which there is nothing."""
        ...
