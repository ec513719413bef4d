"""Ingestion of a file or folder of texts, images, documents, tables and archives into a lake table."""

from __future__ import annotations

import codecs
import logging
import posixpath
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from zipfile import ZipFile

from lakerank.errors import ConfigError, LakerankError
from lakerank.ingest.judgements import qrels
from lakerank.ingest.lines import LineFault, read_each, split_lines
from lakerank.ingest.readers import OFFICE, READERS
from lakerank.ingest.readers.archive import MAX_DEPTH, MAX_TOTAL, ArchiveSource, Budget, gunzipped
from lakerank.ingest.readers.pdf import read_pdf
from lakerank.ingest.readers.reader import ReaderFault, ReadOptions, Section
from lakerank.ingest.readers.soffice import find_soffice, office_pdf
from lakerank.ingest.readers.text import decode, trec_command
from lakerank.ingest.records import RecordReader, csv_records, json_objects, read_jsonl, table_of_texts
from lakerank.ingest.rows import Metadata, extra_columns, kept_fields, section_rows
from lakerank.ingest.source import FileSource, SourceFile, open_source, prefetched_files
from lakerank.ingest.tables import ContentRow, Row, SourceFault, SourceReject, TableWriter, WrittenTable
from lakerank.lake import is_local, local_path
from lakerank.lake.storage import Storage

_log = logging.getLogger(__name__)

Source = FileSource | ArchiveSource
Rows = Iterator[Row | SourceReject]

JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
RECORD_SUFFIXES = frozenset({".json", ".csv", ".tsv"})

#: Texts with a query a line, and TREC's judgements.
_QUERY_SUFFIXES = frozenset({".txt", ".text"})
_QREL_SUFFIXES = frozenset({".txt", ".tsv", ".qrels", ".qrel", ".trec"})

#: The files of a kind; others are skipped. `auto` and `folder` read every file.
_SUFFIXES: dict[str, frozenset[str]] = {"jsonl": JSONL_SUFFIXES, "pdf": frozenset({".pdf"})}


@dataclass(frozen=True, slots=True)
class Ingestion:
    """The result of an ingestion. `rejects_uri` lists path, line, page, fault and detail (None: no rejects).

    `not_kept` counts fields of records that no column has, `encodings` files whose encoding was guessed.
    """

    table: str
    written: WrittenTable
    rejected: int
    rejected_by_fault: dict[str, int]
    rejects_uri: str | None
    not_kept: dict[str, int]
    encodings: dict[str, int]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The job's last line of standard output."""
        written = asdict(self.written)
        return {
            "table": self.table,
            "output": written.pop("uri"),
            **written,
            "rejected": self.rejected,
            "rejected_by_fault": self.rejected_by_fault,
            "rejects": self.rejects_uri,
            "fields_not_kept": self.not_kept,
            "encodings_guessed": self.encodings,
            "seconds": round(self.seconds, 3),
        }


@dataclass(slots=True)
class Remarks:
    """What a reader of a folder noticed: counts of fields that are not kept and of guessed encodings."""

    not_kept: Counter[str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)

    def log(self, written: WrittenTable, repeated: Sequence[str]) -> None:
        """One line for everything that a user may not expect; `repeated` has the first ids of several rows."""
        if self.not_kept:
            names = ", ".join(name for name, _ in self.not_kept.most_common(20))
            _log.warning("fields not kept: %s; --keep FIELD keeps one as a column", names)
        if self.encodings:
            names = ", ".join(f"{name} ({count})" for name, count in self.encodings.most_common())
            _log.warning("encodings guessed: %s; --encoding names the one of all texts that are not UTF-8", names)
        if written.duplicates:
            _log.warning(
                "%d rows have an id that another row has (a run rejects all of one id): %s",
                written.duplicates, "; ".join(repeated),
            )  # fmt: skip


def ingest(
    storage: Storage,
    source_uri: str,
    output: str,
    options: ReadOptions,
    follow_links: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Ingestion:
    """Write the table `OUTPUT/<table>/` from the files at `source_uri`, streaming.

    Files, pages and lines that cannot be read do not stop it: they are counted by fault and listed in
    `OUTPUT/rejects/<table>.jsonl`. `progress` is called with the number of rows so far, once a row.

    Raises:
        ConfigError: an option does not fit the table, or the output is inside the source.
        StorageError: the source is not there, or the output cannot be written.
        IngestError: there is nothing to read, or all of it was rejected; an earlier table stays.
        DependencyError: the library for a kind of file is not installed.
    """
    started = time.monotonic()
    faults = [*_option_faults(options), *output_faults(source_uri, output)]
    if faults:
        raise ConfigError(faults)
    if options.office_pages and find_soffice() is None:
        _log.warning("LibreOffice (soffice) is not installed: Office files become texts, not page images")
        options = replace(options, office_pages=False)
    source = open_source(source_uri, storage.options, follow_links)
    writer = TableWriter(storage, output, options.table, extra_columns(options))
    rows, remarks = 0, Remarks()
    for row in read_folder(source, options, remarks):
        writer.add(row)
        if not isinstance(row, SourceReject):
            rows += 1
            progress(rows)
    writer.require_rows(source_uri)
    (written, uri), seconds = writer.finish(), time.monotonic() - started
    rejected, by_fault = writer.faults.total(), dict(sorted(writer.faults.items()))
    _log.info("%s: %d rows, %d rejects in %.1f s", options.table, written.rows, rejected, seconds)
    remarks.log(written, writer.repeated() if written.duplicates else ())
    not_kept, encodings = dict(sorted(remarks.not_kept.items())), dict(sorted(remarks.encodings.items()))
    return Ingestion(options.table, written, rejected, by_fault, uri, not_kept, encodings, seconds)


def read_folder(source: Source, options: ReadOptions, remarks: Remarks | None = None) -> Rows:
    """Yield the rows of every file in the order of paths, and a reject for everything that cannot be read."""
    return _FolderReader(options, remarks or Remarks(), Budget(MAX_TOTAL * options.max_file_bytes)).rows(source)


def suffix(path: str) -> str:
    """The lower-case extension that decides how a file is read, without `.gz`."""
    name = path.rpartition("/")[2].lower()
    name = name.removesuffix(".gz") if name.count(".") > 1 else name
    stem, dot, last = name.rpartition(".")
    return f"{dot}{last}" if stem else ""


def is_readable(path: str) -> bool:
    """Whether a file of this name becomes documents."""
    return suffix(path) in READERS.keys() | RECORD_SUFFIXES | JSONL_SUFFIXES | {".zip"}


class _FolderReader:
    """Reads files by their suffix, and archives as folders."""

    def __init__(self, options: ReadOptions, remarks: Remarks, budget: Budget) -> None:
        self._options = options
        self._remarks = remarks
        self._budget = budget  # of the archive that is read, and all in it

    def rows(self, source: Source, depth: int = 0) -> Rows:
        """The rows of a source's files; `depth` counts the archives around it."""

        def size(file: SourceFile | SourceReject) -> int | None:
            """Bytes to prefetch: of a selected file that is read whole and is not over the limit."""
            if isinstance(file, SourceReject) or self._form(file, source) in ("", "jsonl", "zip", "unknown"):
                return None
            return file.size if file.size <= self._options.max_file_bytes else None

        def read(file: SourceFile | SourceReject) -> bytes:
            return source.read(file) if isinstance(file, SourceFile) else b""

        for file, content in prefetched_files(source.files(), size, read):
            if isinstance(file, SourceReject):
                if file.fault in (SourceFault.FILE_UNREADABLE, SourceFault.NOT_A_FILE) or self._form(file, source):
                    yield file
            elif self._form(file, source):
                yield from self._file_rows(source, file, content, depth)

    def _form(self, file: SourceFile | SourceReject, source: Source) -> str:
        """How a file is read: `jsonl`, `records`, `queries`, `qrels`, `zip`, `reader`; `unknown`; "" if passed over."""
        options, kind = self._options, suffix(file.path)
        if file.path in options.skip:
            return ""
        if kind == ".zip" and options.kind in ("auto", "folder"):
            return "zip"
        if options.kind in _SUFFIXES and source.is_folder and kind not in _SUFFIXES[options.kind]:
            return ""
        if kind in JSONL_SUFFIXES:
            return "jsonl"
        is_other_file = not source.is_folder and kind not in RECORD_SUFFIXES
        if options.table == "qrels" and (kind in _QREL_SUFFIXES or is_other_file):
            return "qrels"
        if kind in RECORD_SUFFIXES:
            return "records"
        if options.table in ("candidates", "qrels"):
            return "" if source.is_folder else "unknown"
        if options.table == "queries" and kind in _QUERY_SUFFIXES:
            return "queries"
        return "reader" if kind in READERS or (kind in OFFICE and options.office_pages) else "unknown"

    def _file_rows(self, source: Source, file: SourceFile, content: Future[bytes] | None, depth: int) -> Rows:
        """The rows of a file. Whatever its reader raises is a reject, but for a library that is not installed."""
        form = self._form(file, source)
        try:
            if form == "unknown":
                yield SourceReject(file.path, SourceFault.UNSUPPORTED_FORMAT, _unsupported(file.path, self._options))
            elif form == "jsonl":
                with source.open(file, compressed=file.path.lower().endswith(".gz")) as stream:
                    yield from read_jsonl(file.path, stream, self._records(source, file), self._options.max_file_bytes)
            elif form == "zip":
                yield from self._archive_rows(source, file, depth)
            elif content is None:
                detail = f"{file.size} bytes, the limit is {self._options.max_file_bytes}"
                yield SourceReject(file.path, SourceFault.FILE_TOO_LARGE, detail)
            else:
                plain = content.result()
                if file.path.lower().endswith(".gz"):
                    plain = gunzipped(plain, self._options.max_file_bytes)
                yield from self._content_rows(source, file, plain, form)
        except LakerankError:
            raise
        except (ReaderFault, LineFault) as fault:
            yield SourceReject(file.path, fault.fault, str(fault))
        except Exception as error:  # a reader's library may raise anything
            detail = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            yield SourceReject(file.path, SourceFault.FILE_UNREADABLE, detail)

    def _content_rows(self, source: Source, file: SourceFile, content: bytes, form: str) -> Rows:
        options = self._options
        if form == "records":
            yield from self._record_rows(source, file, content)
        elif form == "qrels":
            separator = "\t" if b"\t" in content.partition(b"\n")[0] else None
            yield from qrels(file.path, split_lines(file.path, enumerate(content.splitlines(), 1), separator))
        elif form == "queries":
            yield from self._query_rows(source, file, content)
        else:
            for section in _sections(file.path, content, options):
                if isinstance(section, SourceReject):
                    yield section
                else:
                    self._remarks.encodings.update([section.encoding] if section.encoding else [])
                    yield from section_rows(file, section, options)

    def _query_rows(self, source: Source, file: SourceFile, content: bytes) -> Rows:
        """A query a line: `q3` is the third line of the source's only file, `more.txt#q3` that of one of many."""
        text = self._text(content)
        if command := trec_command(text):
            raise ReaderFault(SourceFault.WRONG_TABLE, command)
        prefix = f"{file.path}#q" if source.is_folder else "q"
        blanks = (None,) * len(kept_fields(self._options))
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield ContentRow(f"{prefix}{number}", line.strip(), extra=(None, *blanks))

    def _record_rows(self, source: Source, file: SourceFile, content: bytes) -> Rows:
        """The records of a JSON or CSV file; a JSON file without records of the table is a text."""
        options, kind, text = self._options, suffix(file.path), self._text(content)
        if kind == ".json":
            records = json_objects(text, options.table)
            if records is None and options.table != "documents":
                raise LineFault(SourceFault.WRONG_TABLE, f"no object or array of objects that are {options.table}")
            if records is None:
                yield from section_rows(file, Section(text), options)
                return
            yield from read_each(file.path, records, self._records(source, file, f"{file.path}#item="))
        else:
            rows = csv_records(file.path, text, "\t" if kind == ".tsv" else None)
            is_only_file = options.table == "queries" and not source.is_folder
            reader = self._records(source, file, "q" if is_only_file else f"{file.path}#row=")
            yield from read_each(file.path, table_of_texts(rows, options.table), reader)

    def _text(self, content: bytes) -> str:
        text, encoding = decode(content, self._options.encoding)
        self._remarks.encodings.update([encoding] if encoding else [])
        return text

    def _records(self, source: Source, file: SourceFile, default_id: str | None = None) -> RecordReader:
        def read_image(name: str) -> bytes:
            return _image_beside(source, file, name, self._options.max_file_bytes)

        metadata = Metadata(path=file.path, size=file.size, modified=file.modified)
        prefix = f"{file.path}#" if self._options.file_in_ids and source.is_folder else ""
        return RecordReader(self._options, read_image, metadata, default_id, self._remarks.not_kept, prefix)

    def _archive_rows(self, source: Source, file: SourceFile, depth: int) -> Rows:
        if depth == 0:
            self._budget.remaining = MAX_TOTAL * self._options.max_file_bytes
        if depth == MAX_DEPTH:
            raise ReaderFault(SourceFault.FILE_TOO_LARGE, f"more than {MAX_DEPTH} archives in one another")
        with source.open_seekable(file) as stream, ZipFile(stream) as archive:
            limit = self._options.max_file_bytes
            yield from self.rows(ArchiveSource(file.path, archive, file.modified, limit, self._budget), depth + 1)


def _sections(path: str, content: bytes, options: ReadOptions) -> Iterator[Section | SourceReject]:
    """The sections of a file. Of an Office file the pages, where they are asked for."""
    kind = suffix(path)
    if kind in OFFICE and options.office_pages and (soffice := find_soffice()):
        return read_pdf(path, office_pdf(soffice, content, kind), options)
    return READERS[kind](path, content, options)


def _unsupported(path: str, options: ReadOptions) -> str:
    kind = suffix(path)
    if kind == ".parquet":
        return f"a Parquet file is a table already: name it as lake.{options.table}"
    if kind in OFFICE and kind not in READERS:
        return f"'{kind}' is read with --office-pages where LibreOffice is installed"
    if options.table == "candidates":
        return "candidates are read from JSON Lines and CSV; `lakerank candidates --run` reads a TREC run"
    return f"no reader for '{kind or path}' here"


def _image_beside(source: Source, file: SourceFile, name: str, max_bytes: int) -> bytes:
    try:
        image = source.within(posixpath.join(posixpath.dirname(file.path), name))
        if image is None:
            raise LineFault(SourceFault.IMAGE_OUTSIDE_SOURCE, "'image' must be a path inside the source, or base64")
        if image.size > max_bytes:
            raise LineFault(SourceFault.FILE_TOO_LARGE, f"the image has {image.size} bytes, the limit is {max_bytes}")
        return source.read(image)
    except OSError as error:
        raise LineFault(SourceFault.IMAGE_NOT_FOUND, f"the file of 'image' cannot be read ({name})") from error


def _option_faults(options: ReadOptions) -> list[str]:
    columns = {"doc_id", "query_id", "text", "image", "content_hash"}
    faults = [f"keep: '{name}' is a column of the table already" for name in options.keep if name in columns]
    faults += [f"keep: '{name}' is given twice" for name in sorted(set(options.keep)) if options.keep.count(name) > 1]
    if options.keep and options.table in ("candidates", "qrels"):
        faults.append(f"keep: {options.table} has no extra columns")
    if options.chunk is not None and options.table != "documents":
        faults.append(f"--chunk: only documents are cut into chunks, not {options.table}")
    if options.chunk_overlap and options.chunk_overlap > (options.chunk or 0) // 2:
        faults.append("--chunk-overlap: at most half of --chunk")
    try:
        b"".decode(options.encoding or "utf-8")
        codecs.lookup(options.encoding or "utf-8")
    except LookupError:
        faults.append(f"--encoding: '{options.encoding}' is no encoding that Python knows; such as cp1252 or gb18030")
    return faults


def output_faults(source_uri: str, output: str) -> list[str]:
    """Whether the output is inside the source, and would be read as part of it the next time."""
    if is_local(source_uri) != is_local(output):
        return []
    names = [str(local_path(uri).resolve()) if is_local(uri) else uri for uri in (source_uri, output)]
    inside = f"{names[1].rstrip('/')}/".startswith(f"{names[0].rstrip('/')}/")
    return [f"--output {output} is inside the source {source_uri}: choose a folder outside it"] if inside else []
