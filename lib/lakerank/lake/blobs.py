"""Documents and queries by reference: rows are prefetched by their location in the lake."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, chain, groupby
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from lakerank.credentials import redacted
from lakerank.errors import StorageError
from lakerank.lake.images.files import row_images
from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage
from lakerank.lake.tables import TableReader, table_reader
from lakerank.schemas import DOCUMENTS, QUERIES

T = TypeVar("T")

_BATCH_ROWS = 1024
_VERSION_THREADS = 16
_CHANGED = "it has changed since the run was planned"

#: Consecutive row groups are read together up to this many bytes: sparse reads need small row groups, object stores few
#: requests.
WINDOW_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True, order=True)
class BlobRef:
    """A row's location: file, row group in it, row in that; both from 0."""

    file: str
    row_group: int
    row: int


#: The location of a row that is gone.
NOWHERE = BlobRef("", 0, 0)


@dataclass(frozen=True, slots=True)
class Blob:
    """A row as stored: images are encoded, or addresses; `content_hash` is the one given, if any.

    Text and instruction are not decoded, so that invalid UTF-8 can be rejected instead of raising here.
    """

    id: str
    text: bytes | None
    images: tuple[bytes | str, ...] = ()
    content_hash: str | None = None
    instruction: bytes | None = None

    @property
    def image(self) -> bytes | None:
        """The first image, where the row has it."""
        first = next(iter(self.images), None)
        return first if isinstance(first, bytes) else None

    @property
    def has_address(self) -> bool:
        """Whether an image is to be read elsewhere."""
        return any(isinstance(image, str) for image in self.images)

    @property
    def nbytes(self) -> int:
        """Bytes of texts and images."""
        return len(self.text or b"") + len(self.instruction or b"") + sum(map(len, self.images))


class ChangedFile(StorageError):
    """A table's file has changed since the run was planned."""

    def __init__(self, file: str, what: str) -> None:
        super().__init__(
            f"{redacted(file)}: {what}; a run reads the files it was planned from, so plan again with another --run-id"
        )
        self.file, self.what = file, what

    def __reduce__(self) -> tuple[type[ChangedFile], tuple[str, str]]:
        return ChangedFile, (self.file, self.what)


class RowGroupCache(Protocol):
    """Decoded row groups by file, number and id column, up to a number of bytes; threads share it."""

    max_bytes: int

    def find(self, key: tuple[str, int, str]) -> pa.Table | None: ...

    def put(self, key: tuple[str, int, str], value: pa.Table) -> None: ...


def fetch(
    storage: Storage,
    refs: Sequence[BlobRef],
    id_column: str,
    cache: RowGroupCache | None = None,
    files: Mapping[str, TableFile] | None = None,
    window_bytes: int = WINDOW_BYTES,
) -> Iterator[Blob]:
    """Yield the row of each reference, in their order, reading only what documents or queries have of columns.

    Neighbouring references to one row group share one reading of it: references in file order read each row group
    once, and several small ones together. Row groups without references are not read. Rows are taken in batches, so
    a large row group is never whole in memory unless a cache holds it.

    Args:
        files: by URI, as planned: how each is read, and its version, which is looked up before it is read. Whoever
            keeps results of the rows calls `check_unchanged` first, since a file may be replaced while it is read.

    Raises:
        ChangedFile: a file has another version, or has no such row.
        StorageError: a file cannot be read.
    """
    schema = DOCUMENTS if id_column == DOCUMENTS.names[0] else QUERIES
    reader = _Reader(storage, schema, files)
    try:
        if cache is not None:
            for (file, group), refs_of_group in groupby(refs, key=lambda ref: (ref.file, ref.row_group)):
                yield from _cached_rows(file, group, [ref.row for ref in refs_of_group], reader, cache)
        else:
            for _, refs_of_file in groupby(refs, key=lambda ref: ref.file):
                for window in _windows(list(refs_of_file), reader, window_bytes):
                    yield from _window_rows(window, reader)
    finally:
        reader.close()


def check_unchanged(storage: Storage, planned: Mapping[str, TableFile], uris: Iterable[str]) -> None:
    """Check that files still have the versions that were planned.

    Raises:
        ChangedFile: one has not, or is gone.
    """

    def check(uri: str) -> None:
        file = planned.get(uri)
        if file is None or (file.version and storage.version(uri) != file.version):
            raise ChangedFile(uri, _CHANGED)

    with ThreadPoolExecutor(_VERSION_THREADS, "versions") as pool:
        list(pool.map(check, sorted(set(uris))))


class _Reader:
    """Reads row groups; keeps the last Parquet file open, since references mostly come file by file."""

    def __init__(self, storage: Storage, schema: pa.Schema, files: Mapping[str, TableFile] | None) -> None:
        self.schema = schema
        self.files = files
        self._storage = storage
        self._files = ExitStack()
        self._reader: TableReader | None = None

    def open(self, uri: str, group: int) -> TableReader:
        """The file that has a row group; checks its version and columns when it is opened."""
        if self._reader is None or self._reader.located.file.uri != uri:
            self.close()
            if self.files is not None:
                check_unchanged(self._storage, self.files, [uri])
            file = TableFile(uri) if self.files is None else self.files[uri]
            parquet = self._files.enter_context(self._storage.open_parquet(file))
            self._reader = table_reader(self._storage, file, parquet, self.schema)
        if not 0 <= group < self._reader.parquet.metadata.num_row_groups:
            raise _no_row(uri, group)
        return self._reader

    def batches(self, file: str, groups: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """The rows of some row groups, in batches."""
        return self.open(file, groups[-1]).batches(groups, _BATCH_ROWS)

    def version(self, uri: str) -> str:
        """What a file's rows are cached by, beside its URI."""
        return f" {self.files[uri].version}" if self.files and uri in self.files else ""

    def close(self) -> None:
        self._files.close()
        self._reader = None


def _no_row(file: str, group: int) -> ChangedFile:
    return ChangedFile(file, f"row group {group} has no such row: {_CHANGED}")


def _cached_rows(file: str, group: int, rows: Sequence[int], reader: _Reader, cache: RowGroupCache) -> Iterator[Blob]:
    """Rows of one row group, in the requested order."""
    key = (f"{file}{reader.version(file)}", group, reader.schema.names[0])
    table = cache.find(key)
    if table is None:
        if reader.open(file, group).bytes(group)[1] > cache.max_bytes:
            yield from _rows(file, group, rows, reader.batches(file, [group]))
            return
        batches, kept, size = reader.batches(file, [group]), [], 0
        for batch in batches:
            kept.append(batch)
            size += batch.nbytes
            if size > cache.max_bytes:  # more than the footer said: a value of a dictionary stands in many rows
                yield from _rows(file, group, rows, chain(kept, batches))
                return
        table = pa.Table.from_batches(kept)
        cache.put(key, table)
    yield from _rows(file, group, rows, iter(table.to_batches()))


def _windows(refs: Sequence[BlobRef], reader: _Reader, max_bytes: int) -> Iterator[list[BlobRef]]:
    """References to one file, cut where row groups do not ascend or exceed `max_bytes` together."""
    window: list[BlobRef] = []
    left = 0
    for group, refs_of_group in groupby(refs, key=lambda ref: ref.row_group):
        size = reader.open(refs[0].file, group).bytes(group)[1]
        if window and (group <= window[-1].row_group or size > left):
            yield window
            window = []
        if not window:
            left = max_bytes
        window += refs_of_group
        left -= size
    yield window


def _window_rows(window: Sequence[BlobRef], reader: _Reader) -> Iterator[Blob]:
    """The rows of a window, in the requested order: its row groups are read as one."""
    file = window[0].file
    groups = list(dict.fromkeys(ref.row_group for ref in window))
    metadata = reader.open(file, groups[-1]).parquet.metadata
    counts = {group: metadata.row_group(group).num_rows for group in groups}
    starts = dict(zip(groups, accumulate(counts.values(), initial=0), strict=False))
    for ref in window:
        if not 0 <= ref.row < counts[ref.row_group]:
            raise _no_row(file, ref.row_group)
    rows = [starts[ref.row_group] + ref.row for ref in window]
    yield from _rows(file, groups[0], rows, reader.batches(file, groups))


def _rows(file: str, group: int, rows: Sequence[int], batches: Iterator[pa.RecordBatch]) -> Iterator[Blob]:
    """Rows from batches that are read once; only rows that are needed later, out of order, are kept."""
    kept: dict[int, Blob] = {}
    last_use = {row: position for position, row in enumerate(rows)}
    ascending = _ascending_rows(sorted(last_use), batches)
    for position, row in enumerate(rows):
        while row not in kept:
            following = next(ascending, None)
            if following is None:
                raise _no_row(file, group)
            kept[following[0]] = following[1]
        yield kept.pop(row) if last_use[row] == position else kept[row]


def _ascending_rows(rows: Sequence[int], batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, Blob]]:
    """(row, blob) for ascending rows, reading no further than the last of them."""
    remaining = iter(rows)
    row = next(remaining, None)
    first = 0
    for batch in batches:
        while row is not None and first <= row < first + batch.num_rows:
            (values,) = batch.slice(row - first, 1).to_pylist()
            blob_id = values[batch.schema.names[0]] or ""
            more = values.get("content_hash"), values.get("instruction")
            yield row, Blob(blob_id, values["text"], row_images(values), *more)
            row = next(remaining, None)
        if row is None:
            return
        first += batch.num_rows


def prefetched(
    items: Iterator[T], most: Sequence[int], sizes: Callable[[T], Sequence[int]] = lambda item: (1,)
) -> Iterator[T]:
    """Run an iterator in a thread, so that fetching and scoring overlap, until what waits has `most` of one of `sizes`.

    What it raises is raised here, after the items before. The thread starts with the first item requested, and ends
    when the consumer stops, early or not; a generator is closed in it.
    """
    end: Any = object()
    ready: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    waiting, changed, stopped = [0] * len(most), threading.Condition(), False

    def count(item: T, sign: int) -> None:
        waiting[:] = [total + sign * size for total, size in zip(waiting, sizes(item), strict=True)]

    def pull() -> None:
        try:
            for item in items:
                with changed:
                    count(item, 1)
                    ready.put((item, None))
                    changed.wait_for(lambda: stopped or all(map(operator.lt, waiting, most)))
                    if stopped:
                        break
            ready.put((end, None))
        except BaseException as error:
            ready.put((end, error))
        finally:
            getattr(items, "close", bool)()

    thread = threading.Thread(target=pull, name="prefetch", daemon=True)  # at exit nobody may be left to stop it
    thread.start()
    try:
        while (pulled := ready.get())[0] is not end:
            with changed:
                count(pulled[0], -1)
                changed.notify()
            yield pulled[0]
            del pulled
        if pulled[1] is not None:
            raise pulled[1]
    finally:
        with changed:
            stopped = True
            changed.notify()
        thread.join()
