"""Documents and queries by reference: where a row stands in the lake is enough to fetch it, when it is needed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, groupby

import pyarrow as pa
import pyarrow.parquet as pq

from lakerank.errors import StorageError
from lakerank.lake.prefetch import prefetched
from lakerank.lake.storage import Storage
from lakerank.lake.tables import check_columns, read_row_groups, row_group_bytes
from lakerank.lake.uris import redacted

__all__ = ["Blob", "BlobRef", "ChangedFile", "RowGroupCache", "check_unchanged", "fetch", "prefetched"]

_BATCH_ROWS = 1024
_LOOKING_THREADS = 16

#: Row groups that follow each other are read together up to this many bytes, so that small ones are cheap: a sparse
#: reader wants them small, and an object store wants few requests.
WINDOW_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class BlobRef:
    """Where a row stands: file, row group in it, row in that; both from 0."""

    file: str
    row_group: int
    row: int


@dataclass(frozen=True, slots=True)
class Blob:
    """A row as stored. The text is not decoded, so that one that is not UTF-8 can be rejected rather than raise."""

    id: str
    text: bytes | None
    image: bytes | None


class ChangedFile(StorageError):
    """A table's file is not what it was when the run was planned."""

    def __init__(self, file: str, what: str) -> None:
        super().__init__(
            f"{redacted(file)}: {what}; a run reads the files it was planned from, so plan again with another --run-id"
        )
        self.file, self.what = file, what

    def __reduce__(self) -> tuple[type[ChangedFile], tuple[str, str]]:
        return ChangedFile, (self.file, self.what)


class RowGroupCache:
    """Decoded row groups, the last used kept, up to a number of bytes. For rows that are wanted again and again."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._tables: OrderedDict[tuple[str, int, str], pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: str, row_group: int, id_column: str) -> pa.Table | None:
        """A row group, if it is held."""
        key = (file, row_group, id_column)
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
            return self._tables.get(key)

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._tables.clear()
            self.bytes = 0

    def put(self, file: str, row_group: int, id_column: str, table: pa.Table) -> None:
        """Hold a row group, dropping those longest unused; one larger than the whole cache is not held."""
        key = (file, row_group, id_column)
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
) -> Iterator[Blob]:
    """Yield the row of each reference, in their order, reading only ids, texts and images.

    Neighbouring references to one row group share one reading of it: references in file order read each row group
    once, and several small ones together. Row groups that nothing refers to are not read. Rows are taken in batches, so
    a large row group is never held whole unless a cache holds it.

    Args:
        versions: of each file, as it was planned; a file is looked up before it is read. Whoever keeps what was made
            of the rows calls `check_unchanged` first, since a file may be replaced while it is read.

    Raises:
        ChangedFile: a file has another version, or has no such row.
        StorageError: a file cannot be read.
    """
    wanted = pa.schema([(id_column, pa.string()), ("text", pa.string()), ("image", pa.binary())])
    opened = _LastOpened(storage, wanted, versions)
    try:
        for (file, group), run in groupby(refs, key=lambda ref: (ref.file, ref.row_group)):
            if cache is not None:
                yield from _rows(file, group, [ref.row for ref in run], opened, cache)
        if cache is None:
            for _, of_file in groupby(refs, key=lambda ref: ref.file):
                for window in _windows(list(of_file), opened):
                    yield from _window_rows(window, opened)
    finally:
        opened.close()


def check_unchanged(storage: Storage, versions: Mapping[str, str], files: Iterable[str]) -> None:
    """Make sure that files still have the versions that were planned.

    Raises:
        ChangedFile: one has not, or is gone.
    """
    wanted = sorted(set(files))
    with ThreadPoolExecutor(_LOOKING_THREADS, "versions") as pool:
        for file, found in zip(wanted, pool.map(storage.version, wanted), strict=True):
            if found != versions.get(file):
                raise ChangedFile(file, "it has changed since the run was planned")


class _LastOpened:
    """The Parquet file read last, kept open: references mostly come file by file."""

    def __init__(self, storage: Storage, wanted: pa.Schema, versions: Mapping[str, str] | None) -> None:
        self.wanted = wanted
        self.storage = storage
        self.versions = versions
        self._file: str | None = None
        self._parquet: pq.ParquetFile | None = None

    def row_group(self, file: str, group: int) -> pq.ParquetFile:
        """The file that holds a row group."""
        if self._parquet is None or self._file != file:
            self.close()
            if self.versions is not None and self.storage.version(file) != self.versions.get(file):
                raise ChangedFile(file, "it has changed since the run was planned")
            self._parquet = self.storage.open_parquet(file)
            self._file = file
            check_columns(file, self._parquet.schema_arrow, self.wanted)
        if not 0 <= group < self._parquet.metadata.num_row_groups:
            raise ChangedFile(file, f"row group {group} has no such row: it has changed since the run was planned")
        return self._parquet

    def close(self) -> None:
        if self._parquet is not None:
            self._parquet.close(force=True)
            self._parquet = None


def _rows(file: str, group: int, rows: Sequence[int], opened: _LastOpened, cache: RowGroupCache) -> Iterator[Blob]:
    """Rows of one row group, in the order asked for."""
    id_column = opened.wanted.names[0]
    held_as = file if opened.versions is None else f"{file} {opened.versions.get(file)}"
    table = cache.get(held_as, group, id_column)
    if table is None:
        parquet = opened.row_group(file, group)
        batches = read_row_groups(opened.storage, file, parquet, [group], opened.wanted, _BATCH_ROWS)
        if row_group_bytes(parquet, group, opened.wanted.names)[1] > cache.max_bytes:
            yield from _picked(file, group, rows, batches)
            return
        table = pa.Table.from_batches(batches)
        cache.put(held_as, group, id_column, table)
    yield from _picked(file, group, rows, iter(table.to_batches()))


def _windows(refs: Sequence[BlobRef], opened: _LastOpened) -> Iterator[list[BlobRef]]:
    """References to one file, cut where a row group does not come after the last or WINDOW_BYTES are full."""
    window: list[BlobRef] = []
    room = 0
    for group, run in groupby(refs, key=lambda ref: ref.row_group):
        size = row_group_bytes(opened.row_group(refs[0].file, group), group, opened.wanted.names)[1]
        if window and (group <= window[-1].row_group or size > room):
            yield window
            window = []
        if not window:
            room = WINDOW_BYTES
        window += run
        room -= size
    yield window


def _window_rows(window: Sequence[BlobRef], opened: _LastOpened) -> Iterator[Blob]:
    """The rows of a window, in the order asked for: its row groups are read as if they were one."""
    file = window[0].file
    groups = list(dict.fromkeys(ref.row_group for ref in window))
    parquet = opened.row_group(file, groups[-1])
    counts = [parquet.metadata.row_group(group).num_rows for group in groups]
    starts = dict(zip(groups, accumulate(counts, initial=0), strict=False))
    for ref in window:
        if not 0 <= ref.row < counts[groups.index(ref.row_group)]:
            raise ChangedFile(
                file, f"row group {ref.row_group} has no such row: it has changed since the run was planned"
            )
    batches = read_row_groups(opened.storage, file, parquet, groups, opened.wanted, _BATCH_ROWS)
    yield from _picked(file, groups[0], [starts[ref.row_group] + ref.row for ref in window], batches)


def _picked(file: str, group: int, rows: Sequence[int], batches: Iterator[pa.RecordBatch]) -> Iterator[Blob]:
    """Rows taken from batches that pass by once; only rows that are still owed out of order are held."""
    held: dict[int, Blob] = {}
    last_use = {row: position for position, row in enumerate(rows)}
    ahead = _passing(sorted(last_use), batches)
    for position, row in enumerate(rows):
        while row not in held:
            passed = next(ahead, None)
            if passed is None:
                raise ChangedFile(file, f"row group {group} has no such row: it has changed since the run was planned")
            held[passed[0]] = passed[1]
        yield held.pop(row) if last_use[row] == position else held[row]


def _passing(rows: Sequence[int], batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, Blob]]:
    """(row, blob) for ascending rows, reading no further than the last of them."""
    wanted = iter(rows)
    row = next(wanted, None)
    first = 0
    for batch in batches:
        while row is not None and first <= row < first + batch.num_rows:
            ident, text, image = (column[row - first].as_py() for column in batch.columns)
            yield row, Blob(ident or "", text, image)
            row = next(wanted, None)
        if row is None:
            return
        first += batch.num_rows
