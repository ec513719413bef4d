"""Files in an object store, through fsspec: S3, Google Cloud Storage, Azure, and memory for experiments."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Any

import fsspec
import pyarrow as pa

from lakerank.credentials import StorageOptions, complete, redacted
from lakerank.errors import DependencyError, StorageError
from lakerank.lake import has_wildcard, join, scheme, split_wildcard
from lakerank.lake.backends import FileInfo, StoredFile, is_refusal, s3

_S3 = ("s3", "s3a")
_ONE_PUT = 2**33  # a chunk this large means one PUT: a multipart write is not one step
#: Arguments of each store's client for a write that fails where the file exists. Stores without one are not written to.
_CREATE_ONLY: Mapping[str, Mapping[str, Any]] = {
    "s3": {"mode": "create", "chunksize": _ONE_PUT},
    "s3a": {"mode": "create", "chunksize": _ONE_PUT},
    "gs": {"mode": "create"},
    "gcs": {"mode": "create"},
    "abfs": {"overwrite": False},
    "abfss": {"overwrite": False},
    "az": {"overwrite": False},
    "memory": {"mode": "create"},
}
_VERSION_KEYS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated", "created")
_TIME_KEYS = ("LastModified", "last_modified", "updated", "mtime", "created")
_WRITER_KEY = "lakerank-writer"
_memory_lock = threading.Lock()  # the memory filesystem looks, then writes


class ObjectStoreBackend:
    """The backend of every fsspec scheme; only stores with create-only writes can be written to."""

    def __init__(self, options: StorageOptions) -> None:
        self._options = options

    def find(self, uri: str) -> dict[str, FileInfo]:
        filesystem, path = self._locate(uri)
        info = None
        try:
            info = filesystem.info(path)
        except FileNotFoundError as error:
            if is_refusal(error):
                raise
        if info and info["type"] == "file" and not uri.endswith("/"):
            return {"": _info(uri, info)}
        if info:
            files = filesystem.find(path, detail=True)
        elif has_wildcard(uri):
            files = _matches(filesystem, path)
            uri = split_wildcard(uri)[0]
            path = filesystem._strip_protocol(uri)
        else:
            return {}
        relative = {name[len(path) :].lstrip("/"): info for name, info in files.items() if not _is_marker(name, info)}
        return {name: _info(join(uri, name), info) for name, info in relative.items() if name}

    def walk(self, folder: str) -> list[StoredFile]:
        filesystem, path = self._locate(folder)
        listed = filesystem.find(path, detail=True)
        files = {name[len(path) :].strip("/"): info for name, info in listed.items() if not _is_marker(name, info)}
        return [StoredFile(join(folder, name), int(info["size"]), _written(info)) for name, info in files.items()]

    def info(self, uri: str) -> FileInfo:
        filesystem, path = self._locate(uri)
        info = filesystem.info(path)
        if info["type"] != "file":
            raise FileNotFoundError(uri)
        return _info(uri, info)

    def names(self, folder: str) -> list[str]:
        filesystem, path = self._locate(folder)
        children = [name for name in filesystem.ls(path, detail=False) if name.strip("/") != path.strip("/")]
        return [name.rstrip("/").rpartition("/")[2] for name in children]

    def open(self, uri: str) -> pa.NativeFile:
        if scheme(uri) in _S3:
            path = complete(uri).partition("://")[2]
            return s3.arrow_filesystem(self._options, path.partition("/")[0]).open_input_file(path)
        filesystem, path = self._locate(uri)
        if scheme(uri) == "memory":  # its open files share one position
            return pa.BufferReader(filesystem.cat_file(path))
        uncached = {"cache_type": "none"} if scheme(uri) in _CREATE_ONLY else {}
        return pa.PythonFile(filesystem.open(path, "rb", **uncached), mode="r")

    def read(self, uri: str, most: int | None = None) -> bytes:
        filesystem, path = self._locate(uri)
        part = {} if most is None else {"start": 0, "end": most}
        return bytes(filesystem.cat_file(path, **part))

    def exists(self, uri: str) -> bool:
        filesystem, path = self._locate(uri)
        with suppress(FileNotFoundError):
            return bool(filesystem.info(path))
        return False

    def replace(self, uri: str, data: bytes) -> None:
        filesystem, path = self._writable(uri)
        filesystem.pipe_file(path, data)

    def replace_if(self, uri: str, data: bytes, version: str | None, writer: str) -> None:
        """Write a file in one step if it still has a version (None: if it does not exist), else FileExistsError.

        A request may be carried out though its answer is lost, and clients below repeat requests by themselves: a file
        that this `writer` wrote is no conflict. A store without conditional replacement looks, then writes: two writers
        at once may then both succeed. Creation (None) is conditional everywhere.
        """
        filesystem, path = self._writable(uri)
        is_s3 = scheme(uri) in _S3
        settings: dict[str, Any] = {"Metadata": {_WRITER_KEY: writer}} if is_s3 else {}
        with _memory_lock if scheme(uri) == "memory" else nullcontext():
            if version is None:
                settings |= _CREATE_ONLY[scheme(uri)]
            elif is_s3:
                settings |= {"IfMatch": version, "chunksize": _ONE_PUT}  # without quotes: Ceph wants none
            elif self.info(uri).version != version:
                raise FileExistsError(uri)
            try:
                filesystem.pipe_file(path, data, **settings)
            except OSError as error:
                is_gone = is_s3 and version is not None and isinstance(error, FileNotFoundError)
                if not is_gone and not _is_conflict(error):
                    raise
                if not is_s3 or not _is_ours(filesystem, path, writer):
                    raise FileExistsError(uri) from error

    def delete(self, uri: str) -> None:
        filesystem, path = self._locate(uri)
        filesystem.rm_file(path)

    def remove_empty_folders(self, folder: str) -> None:
        """An object store has no folders, only names."""

    def _writable(self, uri: str) -> tuple[Any, str]:
        if scheme(uri) not in _CREATE_ONLY:
            raise StorageError(
                f"{redacted(uri)}: {scheme(uri)}:// cannot write a file only where there is none, so what a job "
                f"writes there are not atomic; name a local folder or one of {', '.join(_CREATE_ONLY)} (lake.output; "
                "--to of an export)"
            )
        return self._locate(uri)

    def _locate(self, uri: str) -> tuple[Any, str]:
        filesystem, path = filesystem_at(uri, self._options)
        filesystem.invalidate_cache()  # other processes write here
        return filesystem, path


def filesystem_at(uri: str, options: StorageOptions) -> tuple[Any, str]:
    """The fsspec filesystem of a URI, and the path in it, with the credentials that were withheld from it.

    Raises:
        DependencyError: the library for this kind of storage is not installed.
    """
    uri = complete(uri)
    if scheme(uri) in _S3:
        filesystem = s3.s3fs_filesystem(options)
        return filesystem, filesystem._strip_protocol(uri)
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise DependencyError(f"{redacted(uri)}: {error}") from error
    return filesystem, str(path)


def _matches(filesystem: Any, pattern: str) -> dict[str, Any]:
    """All files that a pattern matches, or below a folder it matches."""
    files: dict[str, Any] = {}
    for name, info in filesystem.glob(pattern, detail=True).items():
        files.update(filesystem.find(name, detail=True) if info["type"] == "directory" else {name: info})
    return files


def _is_marker(name: str, info: Mapping[str, Any]) -> bool:
    """Whether a name is an empty object that stands for a folder, as consoles and Hadoop create them."""
    return info["type"] != "file" or (name.endswith("/") and not info["size"])


def _info(uri: str, info: Mapping[str, Any]) -> FileInfo:
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None), "")
    return FileInfo(uri, int(info["size"]), version.strip('"'))


def _written(info: Mapping[str, Any]) -> float:
    """Modification time (Unix time); now when the store does not tell, so that the file counts as new."""
    moment = next((info[key] for key in _TIME_KEYS if info.get(key) is not None), None)
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if isinstance(moment, datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return float(moment) if moment is not None else time.time()


def _is_ours(filesystem: Any, path: str, writer: str) -> bool:
    """Whether this writer wrote the file: the answer to a request that was carried out may have been lost."""
    try:
        return bool(filesystem.metadata(path).get(_WRITER_KEY) == writer)
    except FileNotFoundError:
        return False


def _is_conflict(error: OSError) -> bool:
    """Whether a conditional write failed on its condition: stores and clients report that differently."""
    response = getattr(error.__cause__, "response", None) or {}
    return isinstance(error, FileExistsError) or response.get("Error", {}).get("Code") in ("PreconditionFailed", "412")
