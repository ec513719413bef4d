"""The files to ingest: one file or a folder tree at any URI, in the order of their paths; small ones are prefetched."""

from __future__ import annotations

import gzip
import io
import posixpath
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from lakerank.credentials import StorageOptions
from lakerank.errors import StorageError
from lakerank.ingest.rejects import SourceError, SourceFault, SourceReject
from lakerank.lake import is_local, local_path
from lakerank.lake.backends import LISTING_BYTES, TimedFile, within
from lakerank.lake.backends.object_store import filesystem_at

T = TypeVar("T")
Read = Callable[[], bytes]

#: Bytes of a streamed file that are fetched at once.
BUFFER_BYTES = 2**22

#: Files prefetched at once, and the most that wait for their turn, in files and in bytes.
THREADS = 16
PENDING_FILES = 64
PENDING_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the source: `path` is relative to the source and is what ids are made of; `size` in bytes.

    `modified` is None where the store does not say.
    """

    path: str
    location: str
    size: int
    modified: datetime | None = None


class FileSource:
    """A file, or a folder with everything in it except hidden names."""

    def __init__(
        self, filesystem: AbstractFileSystem, location: str, follow_links: bool = False,
        options: StorageOptions | None = None,
    ) -> None:  # fmt: skip
        """`location` is the path within `filesystem`, without a protocol; `options` are a store's, for its least rate.

        Symbolic links are only followed on request: in an untrusted folder they may lead anywhere.

        Raises:
            StorageError: there is nothing at `location`.
        """
        self._filesystem = filesystem
        self._follow_links = follow_links
        self._options = options
        self._location = location.rstrip("/")
        try:
            self.is_folder = bool(self._call(filesystem.isdir, self._location))
            if not self.is_folder:
                self._call(filesystem.info, self._location)
        except FileNotFoundError as error:
            raise StorageError(f"{location}: no such file or folder") from error
        except OSError as error:
            raise StorageError(f"{location}: cannot be read: {error}") from error
        self.root = self._location if self.is_folder else posixpath.dirname(self._location)

    def files(self) -> Iterator[SourceFile | SourceReject]:
        """Yield every file in the order of relative paths; a name, link or folder that cannot be read is a reject."""
        if self.is_folder:
            yield from self._walk(self._location)
        else:
            info = self._call(self._filesystem.info, self._location)
            item = self.item(info | {"name": self._location, "islink": False})
            yield from () if isinstance(item, str) else (item,)

    def _walk(self, folder: str, trail: tuple[Path, ...] = ()) -> Iterator[SourceFile | SourceReject]:
        """Files below a folder; `trail` holds the real folders on the way down when links are followed."""
        if self._follow_links:
            trail = (*trail, Path(folder).resolve())
        try:
            entries = sorted(self.entries(folder), key=_path_order)
        except OSError as error:
            yield SourceReject(self._relative(folder), SourceFault.FILE_UNREADABLE, str(error))
            return
        for entry in entries:
            item = self.item(entry, trail)
            yield from self._walk(item, trail) if isinstance(item, str) else (item,)

    def entries(self, folder: str) -> Iterator[dict[str, Any]]:
        """What is directly in the folder at a location, named by its own, hidden things left out; raises OSError."""
        for entry in self._call(self._filesystem.ls, folder, True):
            location = entry["name"].rstrip("/")
            if location != folder and not posixpath.basename(location).startswith("."):
                yield {**entry, "name": location}

    def item(self, entry: dict[str, Any], trail: tuple[Path, ...] = ()) -> SourceFile | SourceReject | str:
        """What an entry is: a file, the location of a folder, or a reject. A link is what it leads to."""
        location = entry["name"]
        path = self._relative(location)
        if path != path.encode(errors="replace").decode():
            shown = path.encode(errors="backslashreplace").decode()
            return SourceReject(shown, SourceFault.NAME_UNDECODABLE, "the name is not UTF-8")
        if entry.get("islink"):
            if not self._follow_links:
                return SourceReject(path, SourceFault.SYMBOLIC_LINK, "links are only followed on request")
            if not self._filesystem.exists(location) or Path(location).resolve() in trail:
                detail = "the link leads nowhere, or back to where it is"
                return SourceReject(path, SourceFault.SYMBOLIC_LINK, detail)
            entry = self._call(self._filesystem.info, location)
        if entry["type"] == "directory":
            return str(location)
        if entry["type"] == "other":  # it would be waited for without end
            return SourceReject(path, SourceFault.NOT_A_FILE, "a FIFO, a socket or a device, not a regular file")
        return SourceFile(path, location, entry["size"], _modified(entry))

    def _relative(self, location: str) -> str:
        return location[len(self.root) :].lstrip("/")

    def open(self, file: SourceFile) -> BinaryIO:
        """Open a file for reading, in one pass or at random; close it."""
        # Without a buffer each request to an object store reads a few bytes, and a line's length cannot be limited.
        opened = self._call(self._filesystem.open, file.location, "rb")
        return cast("BinaryIO", io.BufferedReader(TimedFile(opened, self._transfer), BUFFER_BYTES))

    def read(self, file: SourceFile) -> bytes:
        """The whole content of a file."""
        content: bytes = self._transfer(file.size, partial(self._filesystem.cat_file, file.location))
        return content

    def _call(self, function: Callable[..., Any], *values: Any) -> Any:
        return self._transfer(LISTING_BYTES, partial(function, *values))

    def _transfer(self, size: int, read: Callable[[], T]) -> T:
        """What `read` returns, which takes about `size` bytes. TimeoutError: the store is too slow."""
        return read() if self._options is None else within(self._options.transfer_s(size), read)

    def within(self, path: str) -> SourceFile | None:
        """The file at a path relative to the source: None when it leads out of the source.

        Raises:
            FileNotFoundError: nothing, or a folder, is there.
        """
        if "://" in path or "\\" in path or "\0" in path or posixpath.isabs(path):
            return None
        path = posixpath.normpath(path)
        if path.split("/")[0] == "..":
            return None
        location = posixpath.join(self.root, path)
        is_bound = isinstance(self._filesystem, LocalFileSystem) and not self._follow_links
        if is_bound and not Path(location).resolve().is_relative_to(Path(self.root).resolve()):
            return None  # a link leads out
        info = self._call(self._filesystem.info, location)
        if info["type"] != "file":
            raise FileNotFoundError(f"{path} is {'a folder' if info['type'] == 'directory' else 'no regular file'}")
        return SourceFile(path, location, info["size"], _modified(info))


def open_source(uri: str, options: StorageOptions, follow_links: bool = False) -> FileSource:
    """The source at any URI that fsspec opens, or a plain path. Only local files have links to follow.

    Raises:
        StorageError: there is nothing there.
        DependencyError: the library for this kind of storage is not installed.
    """
    if is_local(uri):
        return FileSource(LocalFileSystem(), str(local_path(uri).absolute()), follow_links)
    filesystem, location = filesystem_at(uri, options)
    return FileSource(filesystem, location, options=options)


class Source(Protocol):
    """A folder, an archive or a file. `within` is the file at a path, None where that leads out of the source."""

    is_folder: bool

    def files(self) -> Iterator[SourceFile | SourceReject]: ...
    def open(self, file: SourceFile) -> BinaryIO: ...
    def read(self, file: SourceFile) -> bytes: ...
    def within(self, path: str) -> SourceFile | None: ...


@contextmanager
def opened_plain(source: Source, file: SourceFile) -> Iterator[BufferedIOBase]:
    """A file open for reading in one pass, gunzipped if its name says so."""
    with source.open(file) as stream:
        plain = gzip.GzipFile(fileobj=stream) if file.path.lower().endswith(".gz") else stream
        yield cast("BufferedIOBase", plain)


def image_at(source: Source, path: str, max_bytes: int) -> bytes:
    """The image file that a record names; raises `SourceError`."""
    try:
        image = source.within(path)
        if image is None:
            raise SourceError(SourceFault.IMAGE_OUTSIDE_SOURCE, "an image must be a path inside the source, or base64")
        if image.size > max_bytes:
            raise SourceError(SourceFault.FILE_TOO_LARGE, f"the image has {image.size} bytes, the limit is {max_bytes}")
        return source.read(image)
    except OSError as error:
        raise SourceError(SourceFault.IMAGE_NOT_FOUND, f"the image cannot be read ({path})") from error


def prefetched(items: Iterable[tuple[T, int, Read | None]]) -> Iterator[tuple[T, Future[bytes] | None]]:
    """Yield every item in order with what threads read for it: items come with bytes, about, and what reads them.

    An object store answers many requests at once, but each one slowly.
    """
    pending: deque[tuple[T, int, Future[bytes] | None]] = deque()
    pending_bytes = 0
    pool = ThreadPoolExecutor(THREADS, "ingest")
    try:
        for item, size, read in items:
            pending.append((item, size, pool.submit(read) if read else None))
            pending_bytes += size
            while pending_bytes > PENDING_BYTES or len(pending) > PENDING_FILES:
                first, size, content = pending.popleft()
                pending_bytes -= size
                yield first, content
        while pending:
            first, _, content = pending.popleft()
            yield first, content
    finally:
        pool.shutdown(cancel_futures=True)


def _modified(entry: dict[str, Any]) -> datetime | None:
    """When a file was last written, under the name that its kind of store has for it."""
    names = ("mtime", "LastModified", "last_modified", "updated")
    value = next((entry[name] for name in names if entry.get(name)), None)
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        return None
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def _path_order(entry: dict[str, Any]) -> str:
    """Sorts a folder as the paths of the files in it: `a-b` before `a/b`, as in the order of whole paths."""
    return f"{entry['name']}/" if entry["type"] == "directory" else str(entry["name"])
