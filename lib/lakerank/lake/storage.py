"""Files of the lake, local or in an object store: a small set of operations that can all be repeated."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BufferedReader
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from lakerank.credentials import Known, StorageOptions, known, learn, redacted
from lakerank.errors import StorageError
from lakerank.lake import DELTA, ICEBERG, checksums, is_local, join, local_path
from lakerank.lake.backends import (
    LISTING_BYTES,
    FileInfo,
    StoredFile,
    TimedFile,
    is_broken_off,
    is_transient,
    storage_errors,
    within,
)
from lakerank.lake.backends.local import LocalBackend
from lakerank.lake.backends.object_store import ObjectStoreBackend
from lakerank.lake.snapshot import TableFile, TableSnapshot

__all__ = ["FileInfo", "Storage", "StorageOptions", "StoredFile", "join"]

T = TypeVar("T")
D = TypeVar("D")

#: Backends have the same methods and raise what the library below raises; `Storage` retries and translates it.
Backend = LocalBackend | ObjectStoreBackend

logger = logging.getLogger(__name__)

#: Prefix of the hidden file that `check_writable` writes and deletes.
PROBE_PREFIX = ".lakerank-probe-"

_PARQUET_MARK = b"PAR1"
_STREAM_BUFFER_BYTES = 8 * 2**20
_SMALL_FILE_BYTES = 4 * 2**20
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 20.0
_EXPIRED = (
    "gone: the snapshot that is read has been expired, or its files vacuumed. Keep files for longer than a run takes "
    "(Iceberg: history.expire.max-snapshot-age-ms and …min-snapshots-to-keep; Delta: "
    "delta.deletedFileRetentionDuration), and plan again with another --run-id"
)


class Storage:
    """Any URI that fsspec opens, and plain paths.

    Holds only options, names of columns and pinned addresses, so it is small and can be pickled: filesystems are
    created in the process that needs them.
    Every method raises StorageError with the URI, the cause and what to check. Small-file operations are tried up to
    `max_attempts` times; reads of bulk columns are retried by pyarrow's own client.
    """

    def __init__(
        self,
        options: StorageOptions = StorageOptions(),  # noqa: B008 - frozen
        columns: Mapping[str, Mapping[str, str]] | None = None,
        image_roots: tuple[str, ...] = (),
        image_hosts: tuple[str, ...] = (),
    ) -> None:
        self.options = options
        #: Where images by address may be.
        self.image_roots, self.image_hosts = image_roots, image_hosts
        #: By a table's address: dotted paths in its files by the contract's names of columns.
        self.columns = columns or {}
        #: Addresses at the snapshots that a job reads, by the address as given, and those snapshots.
        self.pins: dict[str, str] = {}
        self.snapshots: dict[str, TableSnapshot] = {}
        #: What footers of plain tables' files have said, by file, version and the columns asked for.
        self.footers: dict[Hashable, Any] = {}

    def pin(self, inputs: Mapping[str, Any], addresses: Mapping[str, Any]) -> None:
        """Read tables at the snapshots that a plan's `inputs` name; both are by the tables' names."""
        for table in inputs.keys() & addresses.keys():
            if (pinned := inputs[table].get("address")) and self.pins.get(addresses[table]) != pinned:
                self.pins[addresses[table]] = pinned
                self.snapshots.pop(addresses[table], None)

    def __getstate__(self) -> tuple[dict[str, Any], Known]:
        """A worker reaches what its driver can: credentials that are in no address cross with the storage."""
        return {**self.__dict__, "snapshots": {}, "footers": {}}, known()

    def __setstate__(self, state: tuple[dict[str, Any], Known]) -> None:
        self.__dict__, of_driver = state
        learn(of_driver)

    def list_table(self, uri: str) -> dict[str, FileInfo]:
        """What a folder (at any depth) or a glob has, by name below its folder; a file is named "". None is no error.

        Hidden folders may be named themselves, with a slash at the end, in place of what is in them.
        """
        return self._retry(uri, "listed", lambda backend: backend.find(uri), size=LISTING_BYTES)

    def walk(self, folder: str) -> list[StoredFile]:
        """Every file below a folder, hidden ones too, sorted by URI; links are not followed."""
        files = self._retry(folder, "listed", lambda backend: backend.walk(folder), size=LISTING_BYTES)
        return sorted(files, key=lambda file: file.uri)

    def version(self, uri: str) -> str | None:
        """A file's version, as in `list_table`; None when it is not there."""
        return self._retry(uri, "looked up", lambda backend: backend.info(uri).version, None)

    def info(self, uri: str) -> FileInfo:
        """A file's size and version."""
        return self._retry(uri, "looked up", lambda backend: backend.info(uri))

    def list_names(self, folder: str) -> list[str]:
        """Base names directly in a folder, sorted, without hidden ones; [] when the folder does not exist."""
        names = self._retry(folder, "listed", lambda backend: backend.names(folder), [], size=LISTING_BYTES)
        return sorted(name for name in names if not name.startswith("."))

    @contextmanager
    def open_parquet(
        self, file: TableFile | str, streaming: bool = False, dictionaries: Sequence[str] = ()
    ) -> Iterator[pq.ParquetFile]:
        """A Parquet file, open during a `with`: its footer is read at once, columns of row groups on demand, by range,
        checksums verified.

        A row group's columns are fetched together, which suits object stores; `streaming` fetches a few megabytes at
        a time instead, for row groups too large for memory. Columns of `dictionaries` come dictionary-encoded then, as
        they are in the file.
        """
        uri, buffer_bytes = str(file), _STREAM_BUFFER_BYTES if streaming else None

        def opened() -> pq.ParquetFile:
            source = self._backend(uri).open(uri)
            return checksums.open_parquet(uri, source, self.options.verify_checksums, buffer_bytes, dictionaries)

        try:
            with storage_errors(uri, "opened"):
                parquet = self.transfer(uri, checksums.TAIL_BYTES, opened)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError) and isinstance(file, TableFile) and file.is_of_snapshot:
                raise StorageError(f"{redacted(uri)}: {_EXPIRED}") from error
            raise
        try:
            yield parquet
        finally:
            parquet.close(force=True)  # its own `with` does not close a file object that it was given

    def batches(
        self,
        file: TableFile | str,
        parquet: pq.ParquetFile | None = None,
        size: int | None = None,
        dictionaries: Sequence[str] = (),
        **how: Any,
    ) -> Iterator[pa.RecordBatch]:
        """What `iter_batches` yields of a Parquet file, which is opened here unless it is open, each batch within the
        time that `size` bytes may take, or a row group.

        Where an answer of the store breaks off, the file is opened again, with its columns of `dictionaries`.

        Raises:
            StorageError: it cannot be read, or the store is slower.
        """
        uri, number = str(file), 0
        with ExitStack() as files, storage_errors(uri, "read"):
            parquet = parquet or files.enter_context(self.open_parquet(file))
            groups = map(parquet.metadata.row_group, range(parquet.metadata.num_row_groups))
            size = max((group.total_byte_size for group in groups), default=0) if size is None else size
            batches: Iterator[pa.RecordBatch] | None = parquet.iter_batches(**how)

            def following() -> pa.RecordBatch | None:
                nonlocal batches
                if batches is None:
                    again = files.enter_context(self.open_parquet(file, True, dictionaries))
                    batches = islice(again.iter_batches(**how), number, None)
                reading, batches = batches, None  # one that failed would say that it has come to its end
                batch = next(reading, None)
                batches = reading
                return batch

            while (batch := self.transfer(uri, size, following)) is not None:
                yield batch
                number += 1

    def is_parquet(self, file: FileInfo) -> bool:
        """Whether a file begins and ends as Parquet does."""
        mark = len(_PARQUET_MARK)

        def ends() -> set[bytes]:
            with self._backend(file.uri).open(file.uri) as source:
                return {source.read_at(mark, 0), source.read_at(mark, file.size - mark)}

        with storage_errors(file.uri, "read"):
            return file.size > 2 * mark and self.transfer(file.uri, 2 * mark, ends) == {_PARQUET_MARK}

    def transfer(self, uri: str, size: int, read: Callable[[], T]) -> T:
        """What `read` returns, which takes about `size` bytes of a file; read again where an answer broke off.

        TimeoutError: the store is too slow.
        """
        if is_local(uri):
            return read()
        seconds = self.options.transfer_s(size, self.options.max_attempts)  # pyarrow's own attempts
        result: T = self._attempts(is_broken_off)(within, seconds, read)
        return result

    @contextmanager
    def open_stream(self, uri: str) -> Iterator[BufferedReader]:
        """A file of any length, to be read once from its beginning; StorageError also for a folder or a pipe."""
        if is_local(uri) and local_path(uri).exists() and not local_path(uri).is_file():
            raise StorageError(f"{redacted(uri)} is a folder, a pipe or a device, not a file")
        with storage_errors(uri, "opened"):
            source = self.transfer(uri, 0, lambda: self._backend(uri).open(uri))
        timed = source if is_local(uri) else TimedFile(source, partial(self.transfer, uri))
        with BufferedReader(timed, _STREAM_BUFFER_BYTES) as stream:
            yield stream

    def read_bytes(self, uri: str, most: int | None = None) -> bytes:
        """A whole, small file, or its first bytes up to `most`."""
        return self._retry(uri, "read", lambda backend: backend.read(uri, most))

    def read_optional(self, uri: str) -> bytes | None:
        """A whole, small file; None when it is not there."""
        return self._retry(uri, "read", lambda backend: backend.read(uri), None)

    def exists(self, uri: str) -> bool:
        """Whether a file or folder is there."""
        return self._retry(uri, "looked up", lambda backend: backend.exists(uri))

    def create(self, uri: str, data: bytes) -> bool:
        """Write a file in one step only if it does not exist; False when it does.

        Of any number of writers at once exactly one gets True.
        """
        return self.replace_if(uri, data, None)

    def replace(self, uri: str, data: bytes) -> None:
        """Write a file in one step, over an old one if there is one: a reader sees the old or the new."""
        self._retry(uri, "written", lambda backend: backend.replace(uri, data), size=len(data))

    def replace_if(self, uri: str, data: bytes, version: str | None) -> bool:
        """Write a file in one step if it still has a `version` (None: if it does not exist); else False, unchanged.

        On local files and S3 one of any number of writers that saw the same version gets True. Other stores look,
        then write.
        """
        writer = uuid.uuid4().hex

        def attempt(backend: Backend) -> bool:
            try:
                backend.replace_if(uri, data, version, writer)
            except FileExistsError:
                return False
            return True

        return self._retry(uri, "created" if version is None else "written", attempt, size=len(data))

    def delete(self, uri: str) -> None:
        """Remove a file; it is no error when it is not there."""
        self._retry(uri, "deleted", lambda backend: backend.delete(uri), None)

    def remove_empty_folders(self, folder: str) -> None:
        """Remove empty folders below a folder; object stores have none."""
        self._retry(folder, "tidied", lambda backend: backend.remove_empty_folders(folder))

    def check_writable(self, folder: str) -> None:
        """Try the writes that the protocol rests on in a folder. A few requests, for the start of a job that writes.

        Raises:
            StorageError: the folder cannot be written to, or the store ignores the condition of a create-only write, as
                some S3-compatible stores do: two jobs at once could then tear a run.
        """
        probe = join(folder, f"{PROBE_PREFIX}{uuid.uuid4().hex}")
        self.create(probe, b"first")
        try:
            if self.create(probe, b"second"):
                raise StorageError(
                    f"{redacted(folder)}: the store overwrites a file that was to be written only if there is "
                    "none (If-None-Match: *), so two jobs at once could tear what they write; name a store with "
                    "conditional writes (AWS, Ceph, MinIO, R2, …) or a local one (lake.output; --to of an export)"
                )
            if not is_local(folder) and self.replace_if(probe, b"third", "0" * 32):
                logger.warning(
                    "%s: the store overwrites a file that has changed (If-Match is ignored): of two runs published in "
                    "the same second either may become current",
                    redacted(folder),
                )
        finally:
            self.delete(probe)

    def _backend(self, uri: str) -> Backend:
        if uri.startswith((DELTA, ICEBERG)):
            raise StorageError(f"{redacted(uri)}: this is in a table's address, and no place for files: name a folder")
        return LocalBackend() if is_local(uri) else ObjectStoreBackend(self.options)

    def _attempts(self, is_worth_another: Callable[[BaseException], bool]) -> Retrying:
        return Retrying(
            stop=stop_after_attempt(self.options.max_attempts),
            wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            retry=retry_if_exception(is_worth_another),
            reraise=True,
        )

    def _retry(self, uri: str, action: str, operation: Callable[[Backend], T], *missing: D, size: int = 0) -> T | D:
        """Run one small operation, again after a growing, random pause while the failure is transient.

        `missing`, when given, is the result where the file does not exist. `size`: of what it transfers, about.
        """
        backend, seconds = self._backend(uri), self.options.transfer_s(max(size, _SMALL_FILE_BYTES))

        def attempt() -> T:
            return operation(backend) if is_local(uri) else within(seconds, partial(operation, backend))

        attempts = self._attempts(is_transient)
        with storage_errors(uri, action, attempts.statistics):
            try:
                return attempts(attempt)
            except FileNotFoundError:
                if not missing:
                    raise
                return missing[0]
