"""Rows of ingested tables: what a row and a reject are, and the writers of both."""

from __future__ import annotations

import logging
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lakerank import schemas
from lakerank.credentials import redacted
from lakerank.errors import IngestError
from lakerank.fingerprint import content_hash
from lakerank.ingest.rejects import RejectList, SourceReject
from lakerank.lake.storage import Storage, join
from lakerank.records import Candidate, Qrel

TableName = Literal["documents", "queries", "candidates", "qrels"]

#: Images in a row group: reading one of them reads them all.
IMAGES_PER_ROW_GROUP = 8

#: A row group ends at so many rows or bytes, whichever comes first.
ROWS_PER_ROW_GROUP = 4096
BYTES_PER_ROW_GROUP = 2**24

#: A file ends at about so many bytes of content; it is in memory until then.
BYTES_PER_FILE = 2**26

_log = logging.getLogger(__name__)

_PART = re.compile(r"part-\d{6}\.parquet")

_SCHEMAS: dict[TableName, pa.Schema] = {
    "documents": schemas.INGESTED_DOCUMENTS,
    "queries": schemas.INGESTED_QUERIES,
    "candidates": schemas.CANDIDATES,
    "qrels": schemas.QRELS,
}

#: The values of a candidate or a qrel, whose fields have the columns' names.
_PAIR_VALUES = {table: attrgetter(*_SCHEMAS[table].names) for table in ("candidates", "qrels")}

#: Rejects that an error shows.
_SHOWN_REJECTS = 5

#: Ids that a warning of repeated ones shows, and files of each.
_SHOWN_IDS = 3


@dataclass(frozen=True, slots=True)
class ContentRow:
    """A row of `documents` or `queries`; `extra` has the values of the table's extra columns, in their order."""

    id: str
    text: str | None = None
    image: bytes | None = None
    extra: tuple[object, ...] = ()


#: A row of any table that can be ingested.
Row = ContentRow | Candidate | Qrel


@dataclass(frozen=True, slots=True)
class WrittenTable:
    """A finished table in the folder `output`, as the job's last line has it.

    `bytes` is the size of its files, `duplicates` counts rows whose id another row has. `rejects` is the address of the
    list of rejects: path, line, page, fault and detail (None: there are none).
    """

    table: TableName
    output: str
    rows: int
    texts: int
    images: int
    files: int
    bytes: int
    duplicates: int
    rejected: int
    rejected_by_fault: dict[str, int]
    rejects: str | None


class TableWriter:
    """Collects rows of one table and writes `part-000000.parquet`, … into its folder.

    The same rows give the same files, so writing again after a crash completes the table. `progress` is called with a
    number of further rows.
    """

    def __init__(
        self,
        storage: Storage,
        output: str,
        table: TableName,
        extra_columns: Sequence[pa.Field] = (),
        progress: Callable[[int], object] = lambda rows: None,
    ) -> None:
        self._storage = storage
        self._folder = join(output, table)
        self._rejects = RejectList(storage, output, table)
        self._table = table
        self._schema = pa.schema([*_SCHEMAS[table], *extra_columns])
        self._key = 1 if table in ("documents", "queries") else 2  # columns of the id
        self._progress = progress
        self._buffered: list[tuple[object, ...]] = []  # values of the rows of a row group
        self._buffered_bytes = self._buffered_images = 0
        self._row_groups: list[pa.Table] = []  # of a file
        self._file_bytes = self._bytes = 0
        self._written: list[str] = []
        self._ids = array("q")  # hashes: eight bytes a row
        self._filled: Counter[str] = Counter()  # values that are not null, by column

    def add(self, row: Row | SourceReject) -> None:
        """Add a row, or count a reject; a full row group or file is written on the way."""
        if isinstance(row, SourceReject):
            self._rejects.add(row)
            return
        values = _values(self._table, row)
        self._buffered.append(values)
        self._ids.append(hash(values[: self._key]))
        if isinstance(row, ContentRow):
            self._buffered_images += row.image is not None
            self._buffered_bytes += len(row.text or "") + len(row.image or b"")
        if (
            self._buffered_images >= IMAGES_PER_ROW_GROUP
            or len(self._buffered) >= ROWS_PER_ROW_GROUP
            or self._buffered_bytes >= BYTES_PER_ROW_GROUP
        ):
            self._end_row_group()

    def require_rows(self, source_uri: str) -> None:
        """Raise IngestError when no row was added: an earlier table stays, and the list of rejects is written.

        The message has the first rejects.
        """
        if self._ids:
            return
        kept = f"{redacted(self._folder)} is as it was"
        if not self._rejects.first:
            raise IngestError(f"{self._table}: {redacted(source_uri)} holds nothing to read; {kept}")
        self._rejects.write()
        count = self._rejects.summary()["rejected"]
        shown = "\n".join(f"  {reject}" for reject in self._rejects.first[:_SHOWN_REJECTS])
        more = f"\n  all are listed in {redacted(self._rejects.uri)}" if count > _SHOWN_REJECTS else ""
        raise IngestError(
            f"{self._table}: nothing could be read from {redacted(source_uri)} ({count} rejects); {kept}\n{shown}{more}"
        )

    def finish(self) -> WrittenTable:
        """Write the last rows and the list of rejects; ids of several rows are named in the log.

        Part files and a list that an earlier ingestion left behind are deleted.
        """
        self._end_row_group()
        if self._row_groups or not self._written:
            self._end_file()
        for name in self._storage.list_names(self._folder):
            if _PART.fullmatch(name) and name not in self._written:
                self._storage.delete(join(self._folder, name))
        self._rejects.write()
        hashes, counts = np.unique(np.frombuffer(self._ids, np.int64), return_counts=True)
        duplicates = len(self._ids) - len(hashes)
        if duplicates:
            _log.warning(
                "%d rows have an id that another row has (a run rejects all of one id): %s",
                duplicates, "; ".join(self._repeated(set(hashes[counts > 1].tolist()))),
            )  # fmt: skip
        return WrittenTable(
            self._table, self._folder, len(self._ids), self._filled["text"], self._filled["image"],
            len(self._written), self._bytes, duplicates, **self._rejects.summary(),
        )  # fmt: skip

    def _repeated(self, hashes: set[int]) -> list[str]:
        """The first ids in the finished table that have these hashes, each with the files of its rows where known."""
        files: dict[str, set[str]] = {}
        for row in self._read([*self._schema.names[: self._key], *{"path"} & {*self._schema.names}]):
            name = " ".join(row[: self._key])
            if hash(row[: self._key]) in hashes and (name in files or len(files) < _SHOWN_IDS):
                files.setdefault(name, set()).update(filter(None, row[self._key :]))
        return [f"{name}{f' in {_few(sorted(paths))}' if paths else ''}" for name, paths in files.items()]

    def _read(self, columns: list[str]) -> Iterator[tuple[str, ...]]:
        for part in self._written:
            for batch in self._storage.batches(join(self._folder, part), columns=columns):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def _end_row_group(self) -> None:
        if not self._buffered:
            return
        columns = zip(*self._buffered, strict=True)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, self._schema.types, strict=True)]
        self._row_groups.append(pa.table(arrays, schema=self._schema))
        for name, column in zip(self._schema.names, arrays, strict=True):
            self._filled[name] += len(column) - column.null_count
        self._file_bytes += self._buffered_bytes + 64 * len(self._buffered)  # ids and numbers count too
        self._progress(len(self._buffered))
        self._buffered = []
        self._buffered_bytes = self._buffered_images = 0
        if self._file_bytes >= BYTES_PER_FILE:
            self._end_file()

    def _end_file(self) -> None:
        sink, name = pa.BufferOutputStream(), f"part-{len(self._written):06d}.parquet"
        # Encoded images do not get smaller, and ids and texts are better compressed than put in a dictionary.
        compression = {name: "none" if name == "image" else "zstd" for name in self._schema.names}
        with pq.ParquetWriter(sink, self._schema, compression=compression, use_dictionary=False) as writer:
            for rows in self._row_groups:
                writer.write_table(rows, row_group_size=rows.num_rows)
        content = sink.getvalue().to_pybytes()
        self._storage.replace(join(self._folder, name), content)
        self._written.append(name)
        self._bytes += len(content)
        self._row_groups, self._file_bytes = [], 0


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_SHOWN_IDS])}{', …' if len(names) > _SHOWN_IDS else ''}"


def _values(table: TableName, row: Row) -> tuple[object, ...]:
    """A row's values in the order of its table's schema."""
    if isinstance(row, ContentRow):
        hashed = (content_hash(row.text, row.image),) if table == "documents" else ()
        return (row.id, row.text, row.image, *hashed, *row.extra)
    values: tuple[object, ...] = _PAIR_VALUES[table](row)
    return values
