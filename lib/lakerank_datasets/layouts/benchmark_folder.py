"""A downloaded benchmark's folder: its files by the publisher's relative paths, and its Parquet tables."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedIOBase
from typing import Any, TypeVar

import pyarrow as pa

from lakerank.credentials import redacted
from lakerank.errors import SchemaError, StorageError
from lakerank.ingest.judgements import qrel, qrels
from lakerank.ingest.lines import Line, Record, TextLine, json_records, read_each, split_lines, text_lines
from lakerank.ingest.rejects import SourceError, SourceFault, SourceReject
from lakerank.ingest.source import FileSource, SourceFile, image_at, open_source, opened_plain
from lakerank.lake.backends import storage_errors
from lakerank.lake.storage import Storage, join
from lakerank.records import Qrel

Read = TypeVar("Read")

#: A line or an image with more bytes is a reject.
MAX_BYTES = 2**28

#: Rows of page images in memory at once: one takes megabytes.
IMAGE_ROWS = 16

#: Columns of ids, with hyphens in some publishers' tables and with underscores in others'.
CORPUS_ID = ("corpus-id", "corpus_id")
QUERY_ID = ("query-id", "query_id")


class BenchmarkFolder:
    """Files of any size, read in one pass; gzipped ones (`.gz`) are decompressed."""

    def __init__(self, storage: Storage, uri: str, follow_links: bool = False) -> None:
        """Raises StorageError when there is no folder at `uri`."""
        self._storage = storage
        self._source: FileSource = open_source(uri, storage.options, follow_links)
        self.uri = uri
        if not self._source.is_folder:
            raise StorageError(f"{redacted(uri)} is a file; give the folder that the benchmark was downloaded into")

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.uri.rstrip("/").rpartition("/")[2] or self.uri

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders directly in a folder, sorted; none where there is no such folder."""
        return self._names(path)[0]

    def files(self, path: str = "") -> list[str]:
        """Names of the files directly in a folder, sorted; none where there is no such folder."""
        return self._names(path)[1]

    def _names(self, path: str) -> tuple[list[str], list[str]]:
        """Folders and files; a link counts as what it leads to, or as nothing when links are not followed."""
        location = posixpath.join(self._source.root, path).rstrip("/")
        folders, files = [], []
        with storage_errors(join(self.uri, path), "listed"), suppress(FileNotFoundError, NotADirectoryError):
            for item in map(self._source.item, self._source.entries(location)):
                if isinstance(item, str):
                    folders.append(posixpath.basename(item))
                elif isinstance(item, SourceFile):
                    files.append(posixpath.basename(item.path))
        return sorted(folders), sorted(files)

    def find(self, *paths: str) -> str | None:
        """The first of some paths that is a file, plain or gzipped."""
        for name in (name for path in paths for name in (path, f"{path}.gz")):
            with suppress(OSError):
                if self._source.within(name) is not None:
                    return name
        return None

    def require(self, *paths: str) -> str:
        """The first of some paths that is a file.

        Raises:
            StorageError: none is; says which were looked for.
        """
        path = self.find(*paths)
        if path is None:
            raise self.missing(*paths)
        return path

    def missing(self, *paths: str) -> StorageError:
        """The error that lists the missing files."""
        return StorageError(f"{redacted(self.uri)}: no {' or '.join(paths)}")

    @contextmanager
    def open(self, path: str) -> Iterator[BufferedIOBase]:
        """A file open for reading, gunzipped if its name says so.

        Raises:
            StorageError: the file cannot be read, or ends in the middle of what is gzipped.
        """
        with storage_errors(join(self.uri, path), "read"):
            file = self._source.within(path)
            if file is None:
                raise FileNotFoundError("it is outside of the folder")
            with opened_plain(self._source, file) as stream:
                yield stream

    def lines(self, path: str) -> Iterator[TextLine]:
        """Each line that is not blank, or a reject for it."""
        with self.open(path) as stream:
            yield from text_lines(path, stream, MAX_BYTES)

    def records(self, path: str) -> Iterator[Record | SourceReject]:
        """The JSON object of each line that is not blank, or a reject for the line."""
        return json_records(path, self.lines(path))

    def fields(self, path: str, separator: str | None = "\t") -> Iterator[Line]:
        """The fields of each line that is not blank, split at tabs (None: at any white space), or a reject for it."""
        return split_lines(self.lines(path), separator)

    def qrels(self, path: str, separator: str | None = "\t") -> Iterator[Qrel | SourceReject]:
        """The judgements of a text file; `judgements.qrels` says what it may look like."""
        return qrels(path, self.fields(path, separator))

    def table_qrels(self, paths: Sequence[str]) -> Iterator[Qrel | SourceReject]:
        """The judgements of a table of query id, corpus id and score."""
        return self.read(paths, lambda _line, row: [qrel(row)], (*QUERY_ID, *CORPUS_ID, "score"))

    def parquet(self, folder: str, stem: str) -> list[str]:
        """The Parquet files of a split, sorted: `STEM-00000-of-00002.parquet`, `STEM.parquet`, or any in a `STEM/`.

        Looked for in the folder and two levels below it, which is where hubs put them.
        """
        return sorted(self._shards(folder, re.compile(rf"{re.escape(stem)}(-\d+-of-\d+)?\.parquet"), stem, 3))

    def columns(self, path: str) -> list[str]:
        """The columns of a Parquet file."""
        with self._storage.open_parquet(join(self.uri, path)) as parquet:
            return list(parquet.schema_arrow.names)

    def require_columns(self, paths: Sequence[str], *required: tuple[str, ...]) -> list[str]:
        """The columns of a table, checked to have one of each tuple of names.

        Raises:
            SchemaError: names the file, the column and the actual columns.
        """
        columns = self.columns(paths[0])
        for names in required:
            if not set(names) & set(columns):
                raise SchemaError(
                    f"{redacted(join(self.uri, paths[0]))}: no column {' or '.join(map(repr, names))} "
                    f"(found: {', '.join(columns)}); see docs/benchmarks.md"
                )
        return columns

    def rows(self, path: str, names: Sequence[str], batch_rows: int = 4096) -> Iterator[Record | SourceReject]:
        """The named columns of each row of a Parquet file, those that it has; ask for few rows at once with images."""
        uri, number = join(self.uri, path), 0
        with self._storage.open_parquet(uri, streaming=True) as parquet, storage_errors(uri, "read"):
            present = [name for name in names if name in parquet.schema_arrow.names]
            for batch in self._storage.batches(uri, parquet, batch_size=batch_rows, columns=present):
                for row in _decoded(batch):
                    number += 1
                    if row is None:
                        yield SourceReject(path, SourceFault.TEXT_UNDECODABLE, "a text is not UTF-8", line=number)
                    else:
                        yield number, row

    def read(
        self,
        paths: Sequence[str],
        read: Callable[[int, Mapping[str, Any]], Iterable[Read]],
        names: Sequence[str] = (),
        batch_rows: int = 4096,
    ) -> Iterator[Read | SourceReject]:
        """The results of reading each line of JSON Lines files, or the named columns of each row of Parquet files.

        The fields of a `.tsv` have these names in their order.
        """
        for path in paths:
            if path.endswith(".parquet"):
                records = self.rows(path, names, batch_rows)
            elif path.removesuffix(".gz").endswith(".tsv"):
                records = read_each(path, self.fields(path), partial(_named, names))
            else:
                records = self.records(path)
            yield from read_each(path, records, read)

    def require_parquet(self, folder: str, stem: str, usual: str = "") -> list[str]:
        """The Parquet files of a split, as `parquet`. `usual` is where in the folder the publisher has them.

        Raises:
            StorageError: there are none.
        """
        shards = self.parquet(folder, stem)
        if not shards:
            raise self.missing(join(folder, usual, f"{stem}-*.parquet"))
        return shards

    def image(self, path: str) -> bytes:
        """An image file that a record names; raises `SourceError`."""
        return image_at(self._source, path, MAX_BYTES)

    def _shards(self, folder: str, pattern: re.Pattern[str], stem: str, depth: int) -> Iterator[str]:
        folders, files = self._names(folder)
        here = folder.rpartition("/")[2] == stem
        for name in files:
            if pattern.fullmatch(name) or (here and name.endswith(".parquet")):
                yield join(folder, name)
        if depth > 1:
            for name in folders:
                yield from self._shards(join(folder, name), pattern, stem, depth - 1)


def _named(names: Sequence[str], number: int, fields: list[str]) -> Iterator[Record]:
    if len(fields) < len(names):
        raise SourceError(SourceFault.FIELD_MISSING, f"{len(fields)} fields, not {', '.join(names)} apart by tabs")
    yield number, dict(zip(names, (field.strip() for field in fields), strict=False))


def image_bytes(row: Mapping[str, Any], name: str) -> bytes:
    """An image as `datasets` stores it: `{"bytes", "path"}`, or only bytes; raises `SourceError`."""
    value = row.get(name)
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(content, bytes) or not content:
        raise SourceError(SourceFault.FIELD_MISSING, f"'{name}' holds no image bytes")
    return content


def _decoded(batch: pa.RecordBatch) -> Iterator[Mapping[str, Any] | None]:
    """The rows of a batch; None for one that holds text which is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # raised before the first row is out
        for position in range(batch.num_rows):
            try:
                yield batch.slice(position, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None
