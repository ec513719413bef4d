"""The lake's files, local or in an object store, behind one small set of operations that can all be repeated."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import TypeVar

import pyarrow.parquet as pq
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from lakerank.errors import StorageError
from lakerank.lake.backends.failures import is_transient, named
from lakerank.lake.backends.files import FileInfo, Files, StoredFile
from lakerank.lake.backends.local import LocalFiles
from lakerank.lake.backends.object_store import ObjectFiles
from lakerank.lake.backends.s3 import StorageOptions
from lakerank.lake.uris import is_local, join, redacted

__all__ = ["FileInfo", "Storage", "StorageOptions", "StoredFile", "join"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Begins the name of the hidden file that `check_writable` writes and deletes.
PROBE_PREFIX = ".lakerank-probe-"

_STREAM_BUFFER_BYTES = 8 * 2**20
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 20.0


class Storage:
    """Any URI that fsspec opens, and plain paths.

    Holds options alone, so it is small and may be pickled: filesystems are made in the process that needs them.
    Every method raises StorageError with the URI, the cause and what to check. Small-file operations are tried up to
    `max_attempts` times; reads of bulk columns are retried by pyarrow's own client.
    """

    def __init__(self, options: StorageOptions = StorageOptions()) -> None:  # noqa: B008 - frozen
        self.options = options

    def list_parquet(self, uri: str) -> list[FileInfo]:
        """The Parquet files of a file, a folder (at any depth) or a glob, sorted by URI.

        Names that begin with `.` or `_` below the folder are skipped, and so is what does not end in `.parquet`;
        a single file may have any name.

        Raises:
            StorageError: there is no such file, or it cannot be listed.
        """
        found = self._tried(uri, "listed", lambda files: files.find(uri))
        if not found:
            raise StorageError(
                f"{redacted(uri)}: no Parquet file is there; check the name, and that files end in .parquet"
            )
        return sorted(found, key=lambda info: info.uri)

    def walk(self, folder: str) -> list[StoredFile]:
        """Every file below a folder, hidden ones too, sorted by URI; links are not followed."""
        return sorted(self._tried(folder, "listed", lambda files: files.walk(folder)), key=lambda file: file.uri)

    def version(self, uri: str) -> str | None:
        """A file's version, as `list_parquet` gives it; None when it is not there."""
        try:
            return self._tried(uri, "looked up", lambda files: files.info(uri).version)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def list_names(self, folder: str) -> list[str]:
        """Base names directly in a folder, sorted, without hidden ones; [] when the folder does not exist."""
        try:
            names = self._tried(folder, "listed", lambda files: files.names(folder))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        return sorted(name for name in names if not name.startswith("."))

    def open_parquet(self, uri: str, streaming: bool = False) -> pq.ParquetFile:
        """Open a Parquet file: its footer is read now, columns of row groups when asked for, by range.

        A row group's columns are fetched together, which object stores like best; `streaming` fetches a few megabytes
        at a time instead, for row groups too large to be held. Close it with `close(force=True)`.
        """
        with named(uri, "opened"):
            source = self._files(uri).open(uri)
            if streaming:
                return pq.ParquetFile(source, pre_buffer=False, buffer_size=_STREAM_BUFFER_BYTES)
            return pq.ParquetFile(source, pre_buffer=True)

    def read_bytes(self, uri: str) -> bytes:
        """A whole, small file."""
        return self._tried(uri, "read", lambda files: files.read(uri))

    def exists(self, uri: str) -> bool:
        """Whether a file or folder is there."""
        return self._tried(uri, "looked up", lambda files: files.exists(uri))

    def create(self, uri: str, data: bytes) -> bool:
        """Write a file only if there is none of that name, in one step; False when it was already there.

        Of any number of writers at once exactly one gets True.
        """
        writer = uuid.uuid4().hex

        def attempt(files: Files) -> bool:
            try:
                files.create(uri, data, writer)
            except FileExistsError:
                return False
            return True

        return self._tried(uri, "created", attempt)

    def replace(self, uri: str, data: bytes) -> None:
        """Write a file in one step, over an old one if there is one: a reader sees the old or the new."""
        self._tried(uri, "written", lambda files: files.replace(uri, data))

    def replace_if(self, uri: str, data: bytes, version: str | None) -> bool:
        """Write a file in one step if it still has a `version` (None: if it is not there); False, nothing done, if not.

        On local files and S3 one of any number of writers that saw the same version gets True. Other stores look,
        then write.
        """
        writer = uuid.uuid4().hex

        def attempt(files: Files) -> bool:
            try:
                files.replace_if(uri, data, version, writer)
            except FileExistsError:
                return False
            return True

        return self._tried(uri, "written", attempt)

    def delete(self, uri: str) -> None:
        """Remove a file; it is no fault when it is not there."""
        try:
            self._tried(uri, "deleted", lambda files: files.delete(uri))
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise

    def remove_empty_folders(self, folder: str) -> None:
        """Remove folders below a folder in which there is nothing; an object store has none."""
        self._tried(folder, "tidied", lambda files: files.remove_empty_folders(folder))

    def check_writable(self, folder: str) -> None:
        """Try in a folder what the protocol rests on. A few requests: for the start of a job that writes.

        Raises:
            StorageError: the folder cannot be written to, or the store overwrites what it was told to leave, as some
                look-alikes of S3 do: two jobs at once could then tear a run.
        """
        probe = join(folder, f"{PROBE_PREFIX}{uuid.uuid4().hex}")
        self.create(probe, b"first")
        try:
            if self.create(probe, b"second"):
                raise StorageError(
                    f"{redacted(folder)}: the store there writes over a file though told to write it only if there is "
                    "none (If-None-Match: *), so two jobs at once could tear what they write; name a store with "
                    "conditional writes (AWS, Ceph, MinIO, R2, …) or a local one (lake.output; --to of an export)"
                )
            if not is_local(folder) and self.replace_if(probe, b"third", "0" * 32):
                logger.warning(
                    "%s: the store writes over a file that has changed (If-Match is ignored): of two runs published in "
                    "the same second either may end up current",
                    redacted(folder),
                )
        finally:
            self.delete(probe)

    def _files(self, uri: str) -> Files:
        return LocalFiles() if is_local(uri) else ObjectFiles(self.options)

    def _tried(self, uri: str, action: str, operation: Callable[[Files], T]) -> T:
        """Do one small operation, again after a pause (growing, with jitter) while the fault may pass."""
        attempts = Retrying(
            stop=stop_after_attempt(self.options.max_attempts),
            wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            retry=retry_if_exception(is_transient),
            reraise=True,
        )
        with named(uri, action, attempts.statistics):
            return attempts(operation, self._files(uri))
