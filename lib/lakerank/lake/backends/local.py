"""Files on local or mounted disks, written so that no reader ever sees half of one."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from lakerank.lake import has_wildcard, is_hidden, is_table_part, join, local_path, split_wildcard
from lakerank.lake.backends import FileInfo, StoredFile


class LocalBackend:
    """The backend of plain paths and `file://` URIs."""

    def find(self, uri: str) -> dict[str, FileInfo]:
        path = local_path(uri)
        if path.is_file():
            return {"": _info(uri, path)}
        if path.is_dir():
            names = _walk(path)
        elif has_wildcard(uri):
            uri, pattern = split_wildcard(uri)
            path = local_path(uri)
            names = _matches(path, pattern)
        else:
            names = []
        listing = {}
        for name in names:
            try:
                listing[name] = _info(join(uri, name), path / name)
            except FileNotFoundError:  # a link to nothing, or a file of a job that is running
                if is_table_part(name):
                    raise
        return listing

    def walk(self, folder: str) -> list[StoredFile]:
        root, listing = local_path(folder), []
        if root.is_symlink():
            return []
        for parent, _, files in os.walk(root):
            for name in files:
                path = Path(parent) / name
                with suppress(FileNotFoundError):  # a temporary file of a job that is running
                    status = path.lstat()
                    uri = join(folder, path.relative_to(root).as_posix())
                    listing.append(StoredFile(uri, status.st_size, status.st_mtime))
        return listing

    def info(self, uri: str) -> FileInfo:
        return _info(uri, local_path(uri))

    def names(self, folder: str) -> list[str]:
        return [path.name for path in local_path(folder).iterdir()]

    def open(self, uri: str) -> pa.NativeFile:
        return pa.OSFile(str(local_path(uri)), "rb")

    def read(self, uri: str, most: int | None = None) -> bytes:
        with local_path(uri).open("rb") as stream:
            return stream.read(-1 if most is None else most)

    def exists(self, uri: str) -> bool:
        return local_path(uri).exists()

    def replace(self, uri: str, data: bytes) -> None:
        target = local_path(uri)
        with _temporary_copy(target, data) as copy:
            copy.replace(target)

    def replace_if(self, uri: str, data: bytes, version: str | None, writer: str) -> None:
        target = local_path(uri)
        with _temporary_copy(target, data) as copy:
            if version is None:
                _link(copy, target)
            else:
                with _locked(target):
                    if not target.exists() or _info(uri, target).version != version:
                        raise FileExistsError(uri)
                    copy.replace(target)
            _sync_folder(target.parent)

    def delete(self, uri: str) -> None:
        local_path(uri).unlink(missing_ok=True)

    def remove_empty_folders(self, folder: str) -> None:
        root = local_path(folder)
        if root.is_symlink():
            return
        for parent, _, _ in os.walk(root, topdown=False):
            with suppress(OSError):  # not empty
                if Path(parent) != root:
                    Path(parent).rmdir()


@contextmanager
def _temporary_copy(target: Path, data: bytes) -> Iterator[Path]:
    """A hidden file with the data beside the target, synced to disk; removed at the end if still there."""
    copy = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with _new_file(copy) as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # or a crash could leave an empty file under a name that is never written again
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _new_file(path: Path) -> BinaryIO:
    """A file opened for writing in its folder, which is created again if cleaning removed it, empty, in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _link(copy: Path, target: Path) -> None:
    try:
        os.link(copy, target)  # unlike a rename, a link never replaces what is there
    except FileExistsError:
        if copy.stat().st_nlink == 1:  # 2 when a network disk repeated a link that had been made
            raise


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Exclusive access to a file, by a hidden lock file beside it. The system frees the lock of a dead process."""
    with (target.parent / f".{target.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sync_folder(folder: Path) -> None:
    """Sync a new name to disk: after a power cut a pointer must not be there without what it points to."""
    with suppress(OSError):  # some network disks cannot, and sync names by themselves
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _info(uri: str, path: Path) -> FileInfo:
    status = path.stat()
    return FileInfo(uri, status.st_size, f"{status.st_mtime_ns}-{status.st_size}")


def _walk(folder: Path) -> list[str]:
    """Names of all files below a folder, relative to it; linked folders are followed.

    Hidden folders are not entered: they are named, with a slash at the end.
    """
    names: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link back up would be followed for ever
            folders.clear()
            continue
        seen.add(real)
        hidden = [f"{name}/" for name in folders if is_hidden(name)]
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        below = Path(parent).relative_to(folder).as_posix()
        names += [name if below == "." else f"{below}/{name}" for name in [*files, *hidden]]
    return names


def _matches(folder: Path, pattern: str) -> list[str]:
    """Names of all files that a pattern matches, or below a folder it matches, relative to `folder`."""
    names: set[str] = set()
    for path in folder.glob(pattern):
        name = path.relative_to(folder).as_posix()
        names.update(f"{name}/{below}" for below in _walk(path)) if path.is_dir() else names.add(name)
    return list(names)
