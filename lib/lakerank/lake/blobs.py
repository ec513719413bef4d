"""Documents and queries by reference: rows are prefetched by their location in the lake."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, chain, groupby
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from lakerank.credentials import redacted
from lakerank.errors import StorageError
from lakerank.lake.columns import check_columns
from lakerank.lake.storage import Storage
from lakerank.lake.tables import read_row_groups, row_group_bytes

T = TypeVar("T")

_BATCH_ROWS = 1024
_VERSION_THREADS = 16
_CHANGED = "it has changed since the run was planned"

#: Consecutive row groups are read together up to this many bytes: sparse reads need small row groups, object stores few
#: requests.
WINDOW_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A row's location: file, row group in it, row in that; both from 0."""

    file: str
    row_group: int
    row: int


@dataclass(frozen=True, slots=True)
class Blob:
    """A row as stored. The text is not decoded, so that invalid UTF-8 can be rejected instead of raising here."""

    id: str
    text: bytes | None
    image: bytes | None


class ChangedFile(StorageError):
    """A table's file has changed since the run was planned."""

    def __init__(self, file: str, what: str) -> None:
        super().__init__(
            f"{redacted(file)}: {what}; a run reads the files it was planned from, so plan again with another --run-id"
        )
        self.file, self.what = file, what

    def __reduce__(self) -> tuple[type[ChangedFile], tuple[str, str]]:
        return ChangedFile, (self.file, self.what)


class RowGroupCache:
    """Least-recently-used cache of decoded row groups, of a limited number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._tables: OrderedDict[tuple[str, int, str], pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int, str]) -> pa.Table | None:
        """A row group by its file, number and id column; None if it is not cached."""
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
            return self._tables.get(key)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._tables.clear()
            self.bytes = 0

    def put(self, key: tuple[str, int, str], table: pa.Table) -> None:
        """Cache a row group, dropping those longest unused; one larger than the whole cache is not cached."""
        with self._lock:
            if key in self._tables or table.nbytes > self.max_bytes:
                return
            self._tables[key] = table
            self.bytes += table.nbytes
            while self.bytes > self.max_bytes:
                self.bytes -= self._tables.popitem(last=False)[1].nbytes


def fetch(
    storage: Storage,
    refs: Sequence[BlobRef],
    id_column: str,
    cache: RowGroupCache | None = None,
    versions: Mapping[str, str] | None = None,
    window_bytes: int = WINDOW_BYTES,
) -> Iterator[Blob]:
    """Yield the row of each reference, in their order, reading only ids, texts and images.

    Neighbouring references to one row group share one reading of it: references in file order read each row group
    once, and several small ones together. Row groups without references are not read. Rows are taken in batches, so
    a large row group is never whole in memory unless a cache holds it.

    Args:
        versions: of each file, as it was planned; a file is looked up before it is read. Whoever keeps results of the
            rows calls `check_unchanged` first, since a file may be replaced while it is read.

    Raises:
        ChangedFile: a file has another version, or has no such row.
        StorageError: a file cannot be read.
    """
    schema = pa.schema([(id_column, pa.string()), ("text", pa.string()), ("image", pa.binary())])
    reader = _Reader(storage, schema, versions)
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


def check_unchanged(storage: Storage, versions: Mapping[str, str], files: Iterable[str]) -> None:
    """Check that files still have the versions that were planned.

    Raises:
        ChangedFile: one has not, or is gone.
    """
    ordered = sorted(set(files))
    with ThreadPoolExecutor(_VERSION_THREADS, "versions") as pool:
        for file, version in zip(ordered, pool.map(storage.version, ordered), strict=True):
            if version != versions.get(file):
                raise ChangedFile(file, _CHANGED)


class _Reader:
    """Reads row groups; keeps the last Parquet file open, since references mostly come file by file."""

    def __init__(self, storage: Storage, schema: pa.Schema, versions: Mapping[str, str] | None) -> None:
        self.schema = schema
        self.versions = versions
        self._storage = storage
        self._file: str | None = None
        self._parquet: pq.ParquetFile | None = None

    def open(self, file: str, group: int) -> pq.ParquetFile:
        """The file that has a row group; checks its version and columns when it is opened."""
        if self._parquet is None or self._file != file:
            self.close()
            if self.versions is not None and self._storage.version(file) != self.versions.get(file):
                raise ChangedFile(file, _CHANGED)
            self._parquet = self._storage.open_parquet(file)
            self._file = file
            check_columns(file, self._parquet.schema_arrow, self.schema)
        if not 0 <= group < self._parquet.metadata.num_row_groups:
            raise _no_row(file, group)
        return self._parquet

    def size(self, file: str, group: int) -> int:
        """Decompressed bytes of a row group's columns."""
        return row_group_bytes(self.open(file, group), group, self.schema.names)[1]

    def batches(self, file: str, groups: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """The rows of some row groups, in batches."""
        return read_row_groups(self._storage, file, self.open(file, groups[-1]), groups, self.schema, _BATCH_ROWS)

    def close(self) -> None:
        if self._parquet is not None:
            self._parquet.close(force=True)
            self._parquet = None


def _no_row(file: str, group: int) -> ChangedFile:
    return ChangedFile(file, f"row group {group} has no such row: {_CHANGED}")


def _cached_rows(file: str, group: int, rows: Sequence[int], reader: _Reader, cache: RowGroupCache) -> Iterator[Blob]:
    """Rows of one row group, in the requested order."""
    version = "" if reader.versions is None else f" {reader.versions.get(file)}"
    key = (f"{file}{version}", group, reader.schema.names[0])
    table = cache.get(key)
    if table is None:
        if reader.size(file, group) > cache.max_bytes:
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
        size = reader.size(refs[0].file, group)
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
    metadata = reader.open(file, groups[-1]).metadata
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
            blob_id, text, image = (column[row - first].as_py() for column in batch.columns)
            yield row, Blob(blob_id or "", text, image)
            row = next(remaining, None)
        if row is None:
            return
        first += batch.num_rows


def prefetched(items: Iterator[T], depth: int) -> Iterator[T]:
    """Run an iterator in a thread, prefetching up to `depth` items, so that fetching and scoring overlap.

    What it raises is raised here, after the items before. The thread starts with the first item requested, and ends
    when the consumer stops, early or not; a generator is closed in it.
    """
    if depth < 1:
        raise ValueError(f"depth {depth}: at least one item must be fetched ahead")
    return _prefetched(items, depth)


def _prefetched(items: Iterator[T], depth: int) -> Iterator[T]:
    end: Any = object()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        pending = deque(thread.submit(next, items, end) for _ in range(depth + 1))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(thread.submit(next, items, end))
                yield item
        finally:
            for future in pending:
                future.cancel()
            with suppress(RuntimeError):  # no thread takes work when the interpreter exits
                thread.submit(getattr(items, "close", bool))
