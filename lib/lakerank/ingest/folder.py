"""Ingestion of a file or folder of texts, images, documents, tables and archives into a lake table."""

from __future__ import annotations

import codecs
import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any
from zipfile import ZipFile

from lakerank.errors import ConfigError, LakerankError
from lakerank.ingest.judgements import qrels
from lakerank.ingest.lines import json_records, read_each, split_lines, text_lines
from lakerank.ingest.readers import OFFICE, READERS
from lakerank.ingest.readers.archive import MAX_DEPTH, MAX_TOTAL, ArchiveSource, Budget, gunzipped
from lakerank.ingest.readers.pdf import read_pdf
from lakerank.ingest.readers.reader import ReadOptions, Section
from lakerank.ingest.readers.soffice import find_soffice, office_pdf
from lakerank.ingest.readers.text import decode, trec_command
from lakerank.ingest.records import RecordReader, csv_records, json_objects
from lakerank.ingest.rejects import SourceError, SourceFault, SourceReject
from lakerank.ingest.rows import extra_columns, kept_fields, section_rows
from lakerank.ingest.source import Read, Source, SourceFile, open_source, opened_plain, prefetched
from lakerank.ingest.tables import ContentRow, Row, TableWriter, WrittenTable
from lakerank.lake import is_local, local_path
from lakerank.lake.storage import Storage

_log = logging.getLogger(__name__)

Rows = Iterator[Row | SourceReject]

#: A file's content, once it was fetched.
Content = Callable[[], bytes]

#: How files of records are read: a line, or a whole file at a time.
_RECORDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "records", ".csv": "records", ".tsv": "records"}

#: How the files of a table are read, by suffix; those that readers read are documents or queries too.
_FORMS = {
    "documents": _RECORDS,
    "queries": _RECORDS | dict.fromkeys([".txt", ".text"], "queries"),
    "candidates": _RECORDS,
    "qrels": _RECORDS | dict.fromkeys([".txt", ".tsv", ".qrels", ".qrel", ".trec"], "qrels"),
}

#: The files of a kind; others are skipped. `auto` and `folder` read every file.
_SUFFIXES = {"jsonl": {".jsonl", ".ndjson"}, "pdf": {".pdf"}}


@dataclass(slots=True)
class Remarks:
    """What a reader of a folder noticed: fields of records that no column has, and guessed encodings, counted."""

    fields_not_kept: Counter[str] = field(default_factory=Counter)
    encodings_guessed: Counter[str] = field(default_factory=Counter)

    def log(self) -> None:
        """A line for each that a user may not expect."""
        if self.fields_not_kept:
            names = ", ".join(name for name, _ in self.fields_not_kept.most_common(20))
            _log.warning("fields not kept: %s; --keep FIELD keeps one as a column", names)
        if self.encodings_guessed:
            names = ", ".join(f"{name} ({count})" for name, count in self.encodings_guessed.most_common())
            _log.warning("encodings guessed: %s; --encoding names the one of all texts that are not UTF-8", names)


@dataclass(frozen=True, slots=True)
class Ingestion:
    """The result of an ingestion."""

    written: WrittenTable
    remarks: Remarks
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The job's last line of standard output."""
        return {
            **asdict(self.written),
            "fields_not_kept": dict(sorted(self.remarks.fields_not_kept.items())),
            "encodings_guessed": dict(sorted(self.remarks.encodings_guessed.items())),
            "seconds": round(self.seconds, 3),
        }


def ingest(
    storage: Storage,
    source_uri: str,
    output: str,
    options: ReadOptions,
    follow_links: bool = False,
    progress: Callable[[int], object] = lambda rows: None,
) -> Ingestion:
    """Write the table `OUTPUT/<table>/` from the files at `source_uri`, streaming.

    Files, pages and lines that cannot be read do not stop it: they are counted by fault and listed in
    `OUTPUT/rejects/<table>.jsonl`. `progress` is called with numbers of further rows.

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
    writer = TableWriter(storage, output, options.table, extra_columns(options), progress)
    remarks = Remarks()
    for row in read_folder(source, options, remarks):
        writer.add(row)
    writer.require_rows(source_uri)
    remarks.log()
    written, seconds = writer.finish(), time.monotonic() - started
    _log.info("%s: %d rows, %d rejects in %.1f s", options.table, written.rows, written.rejected, seconds)
    return Ingestion(written, remarks, seconds)


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
    return suffix(path) in READERS.keys() | _RECORDS.keys() | {".zip"}


class _FolderReader:
    """Reads files by their suffix, and archives as folders."""

    def __init__(self, options: ReadOptions, remarks: Remarks, budget: Budget) -> None:
        self._options = options
        self._remarks = remarks
        self._budget = budget  # of the archive that is read, and all in it

    def rows(self, source: Source, depth: int = 0) -> Rows:
        """The rows of a source's files; `depth` counts the archives around it."""
        for (file, form), content in prefetched(self._forms(source)):
            if isinstance(file, SourceReject):
                if form or file.fault in (SourceFault.FILE_UNREADABLE, SourceFault.NOT_A_FILE):
                    yield file
            elif form:
                yield from self._file_rows(source, file, form, partial(self._plain, file, content), depth)

    def _forms(self, source: Source) -> Iterator[tuple[tuple[SourceFile | SourceReject, str], int, Read | None]]:
        """Every file and its form, to be prefetched where it is read whole and is not over the limit."""
        for file in source.files():
            form = self._form(file.path, source.is_folder)
            is_streamed = form in ("", "jsonl", "zip", "unknown")
            if isinstance(file, SourceReject) or is_streamed or file.size > self._options.max_file_bytes:
                yield (file, form), 0, None
            else:
                yield (file, form), file.size, partial(source.read, file)

    def _form(self, path: str, in_folder: bool) -> str:
        """How a file is read: `jsonl`, `records`, `queries`, `qrels`, `zip`, `reader`; `unknown`; "" if passed over."""
        options, kind = self._options, suffix(path)
        if path in options.skip or (in_folder and kind not in _SUFFIXES.get(options.kind, {kind})):
            return ""
        if kind == ".zip":
            return "zip"
        if form := _FORMS[options.table].get(kind):
            return form
        if options.table in ("candidates", "qrels"):
            return "" if in_folder else "qrels" if options.table == "qrels" else "unknown"
        return "reader" if kind in READERS or (kind in OFFICE and options.office_pages) else "unknown"

    def _file_rows(self, source: Source, file: SourceFile, form: str, content: Content, depth: int) -> Rows:
        """The rows of a file. Whatever its reader raises is a reject, but for a library that is not installed."""
        limit = self._options.max_file_bytes
        try:
            match form:
                case "unknown":
                    raise SourceError(SourceFault.UNSUPPORTED_FORMAT, _unsupported(file.path, self._options))
                case "jsonl":
                    with opened_plain(source, file) as stream:
                        records = json_records(file.path, text_lines(file.path, stream, limit))
                        yield from read_each(file.path, records, self._records(source, file))
                case "zip":
                    yield from self._archive_rows(source, file, depth)
                case "records":
                    yield from self._record_rows(source, file, self._text(content()))
                case "qrels":
                    lines = content().splitlines()
                    separator = "\t" if lines and b"\t" in lines[0] else None
                    texts = text_lines(file.path, io.BytesIO(b"\n".join(lines)), limit)
                    yield from qrels(file.path, split_lines(texts, separator))
                case "queries":
                    yield from self._query_rows(source, file, self._text(content()))
                case _:
                    yield from self._section_rows(file, content())
        except LakerankError:
            raise
        except SourceError as error:
            yield SourceReject(file.path, error.fault, str(error))
        except Exception as error:  # a reader's library may raise anything
            detail = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            yield SourceReject(file.path, SourceFault.FILE_UNREADABLE, detail)

    def _plain(self, file: SourceFile, content: Future[bytes] | None) -> bytes:
        """A file's prefetched content, unpacked."""
        limit = self._options.max_file_bytes
        if content is None:
            raise SourceError(SourceFault.FILE_TOO_LARGE, f"{file.size} bytes, the limit is {limit}")
        return gunzipped(content.result(), limit) if file.path.lower().endswith(".gz") else content.result()

    def _section_rows(self, file: SourceFile, content: bytes) -> Rows:
        """A row a section; of an Office file the printed pages, where they are asked for."""
        options, kind = self._options, suffix(file.path)
        if kind in OFFICE and options.office_pages and (soffice := find_soffice()):
            sections = read_pdf(file.path, office_pdf(soffice, content, kind), options)
        else:
            sections = READERS[kind](file.path, content, options)
        for section in sections:
            if isinstance(section, SourceReject):
                yield section
            else:
                self._remarks.encodings_guessed.update([section.encoding] if section.encoding else [])
                yield from section_rows(file, section, options)

    def _query_rows(self, source: Source, file: SourceFile, text: str) -> Rows:
        """A query a line: `q3` is the third line of the source's only file, `more.txt#q3` that of one of many."""
        if command := trec_command(text):
            raise SourceError(SourceFault.WRONG_TABLE, command)
        prefix = f"{file.path}#q" if source.is_folder else "q"
        blanks = (None,) * len(kept_fields(self._options))
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield ContentRow(f"{prefix}{number}", line.strip(), extra=(None, *blanks))

    def _record_rows(self, source: Source, file: SourceFile, text: str) -> Rows:
        """The records of a JSON or CSV file; a JSON file without records of the table is a text."""
        table, kind = self._options.table, suffix(file.path)
        if kind != ".json":
            rows = csv_records(file.path, text, "\t" if kind == ".tsv" else None, table)
            is_only_file = table == "queries" and not source.is_folder
            default_id = "q" if is_only_file else f"{file.path}#row="
            yield from read_each(file.path, rows, self._records(source, file, default_id))
        elif (records := json_objects(text, table)) is not None:
            yield from read_each(file.path, records, self._records(source, file, f"{file.path}#item="))
        elif table == "documents":
            yield from section_rows(file, Section(text), self._options)
        else:
            raise SourceError(SourceFault.WRONG_TABLE, f"no object or array of objects that are {table}")

    def _text(self, content: bytes) -> str:
        text, encoding = decode(content, self._options.encoding)
        self._remarks.encodings_guessed.update([encoding] if encoding else [])
        return text

    def _records(self, source: Source, file: SourceFile, default_id: str | None = None) -> RecordReader:
        return RecordReader(self._options, source, file, default_id, self._remarks.fields_not_kept)

    def _archive_rows(self, source: Source, file: SourceFile, depth: int) -> Rows:
        limit = self._options.max_file_bytes
        if depth == 0:
            self._budget.remaining = MAX_TOTAL * limit
        if depth == MAX_DEPTH:
            raise SourceError(SourceFault.FILE_TOO_LARGE, f"more than {MAX_DEPTH} archives in one another")
        with source.open(file) as stream, ZipFile(stream) as archive:
            yield from self.rows(ArchiveSource(file.path, archive, file.modified, limit, self._budget), depth + 1)


def _unsupported(path: str, options: ReadOptions) -> str:
    kind = suffix(path)
    if kind == ".parquet":
        return f"a Parquet file is a table already: name it as lake.{options.table}"
    if kind in OFFICE and kind not in READERS:
        return f"'{kind}' is read with --office-pages where LibreOffice is installed"
    if options.table == "candidates":
        return "candidates are read from JSON Lines and CSV; `lakerank candidates --run` reads a TREC run"
    return f"no reader for '{kind or path}' here"


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
