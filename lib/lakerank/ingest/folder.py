"""Ingestion of a file or folder of texts, images, PDFs and JSON Lines into a lake table."""

from __future__ import annotations

import gzip
import logging
import posixpath
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lakerank.errors import ConfigError
from lakerank.ingest.lines import LineFault, read_jsonl
from lakerank.ingest.pdf import PAGE_PIXELS, PdfContent, read_pdf
from lakerank.ingest.source import FileSource, SourceFile, open_source, prefetched_files
from lakerank.ingest.tables import ContentRow, Row, SourceFault, SourceReject, TableName, TableWriter, WrittenTable
from lakerank.lake import is_local, local_path
from lakerank.lake.storage import Storage

_log = logging.getLogger(__name__)

Kind = Literal["auto", "folder", "jsonl", "pdf"]

TEXT_SUFFIXES = frozenset({".txt", ".md", ".text", ".markdown"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
PDF_SUFFIXES = frozenset({".pdf"})
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"})

#: The files of a kind; others are skipped. `auto` and `folder` read every file.
_SUFFIXES: dict[str, frozenset[str]] = {"jsonl": JSONL_SUFFIXES, "pdf": PDF_SUFFIXES}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files become rows; sizes in bytes and pixels. `keep` names extra JSONL fields that become text columns."""

    kind: Kind = "auto"
    table: TableName = "documents"
    keep: tuple[str, ...] = ()
    pdf_content: PdfContent = "image"
    page_pixels: int = PAGE_PIXELS
    max_file_bytes: int = 2**28


@dataclass(frozen=True, slots=True)
class Ingestion:
    """The result of an ingestion. `rejects_uri` lists path, line, page, fault and detail (None: no rejects)."""

    table: str
    written: WrittenTable
    rejected: int
    rejected_by_fault: dict[str, int]
    rejects_uri: str | None
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
            "seconds": round(self.seconds, 3),
        }


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
        ConfigError: an extra field is a column of the table already, or the output is inside the source.
        StorageError: the source is not there, or the output cannot be written.
        IngestError: there is nothing to read, or all of it was rejected; an earlier table stays.
    """
    started = time.monotonic()
    faults = [*_extra_field_faults(options), *output_faults(source_uri, output)]
    if faults:
        raise ConfigError(faults)
    source = open_source(source_uri, storage.options, follow_links)
    writer = TableWriter(storage, output, options.table, options.keep)
    rows = 0
    for row in read_folder(source, options):
        writer.add(row)
        if not isinstance(row, SourceReject):
            rows += 1
            progress(rows)
    writer.require_rows(source_uri)
    (written, uri), seconds = writer.finish(), time.monotonic() - started
    rejected, by_fault = writer.faults.total(), dict(sorted(writer.faults.items()))
    _log.info("%s: %d rows, %d rejects in %.1f s", options.table, written.rows, rejected, seconds)
    return Ingestion(options.table, written, rejected, by_fault, uri, seconds)


def read_folder(source: FileSource, options: ReadOptions) -> Iterator[Row | SourceReject]:
    """Yield the rows of every file in the order of paths, and a reject for everything that cannot be read."""

    def size(file: SourceFile | SourceReject) -> int | None:
        """Bytes to prefetch: of a selected file that is read whole and is not over the limit."""
        if isinstance(file, SourceReject) or not _is_selected(file.path, source, options):
            return None
        return file.size if _is_whole(file, options) and file.size <= options.max_file_bytes else None

    def read(file: SourceFile | SourceReject) -> bytes:
        return source.read(file) if isinstance(file, SourceFile) else b""

    for file, content in prefetched_files(source.files(), size, read):
        if isinstance(file, SourceReject):
            if file.fault in (SourceFault.FILE_UNREADABLE, SourceFault.NOT_A_FILE) or _is_selected(
                file.path, source, options
            ):
                yield file
        elif _is_selected(file.path, source, options):
            yield from _read_file(source, file, content, options)


def _is_whole(file: SourceFile, options: ReadOptions) -> bool:
    """Whether a file is read at once: texts, images and PDFs, where the table may contain them."""
    only_jsonl = options.kind == "jsonl" or options.table in ("candidates", "qrels")
    return not only_jsonl and suffix(file.path) in TEXT_SUFFIXES | IMAGE_SUFFIXES | PDF_SUFFIXES


def _is_selected(path: str, source: FileSource, options: ReadOptions) -> bool:
    if options.table in ("candidates", "qrels"):
        return not source.is_folder or suffix(path) in JSONL_SUFFIXES
    return options.kind not in _SUFFIXES or suffix(path) in _SUFFIXES[options.kind] or not source.is_folder


def suffix(path: str) -> str:
    """The lower-case extension that decides how a file is read; `.jsonl.gz` counts as one."""
    name = path.rpartition("/")[2].lower()
    stem, dot, last = name.rpartition(".")
    if last == "gz" and "." in stem:
        return f".{stem.rpartition('.')[2]}.gz"
    return f"{dot}{last}" if stem else ""


def _read_file(
    source: FileSource, file: SourceFile, content: Future[bytes] | None, options: ReadOptions
) -> Iterator[Row | SourceReject]:
    kind = suffix(file.path)
    try:
        if kind in JSONL_SUFFIXES:
            yield from _read_jsonl_file(source, file, options)
        elif content is not None:
            yield from _read_content(file, kind, content.result(), options)
        elif _is_whole(file, options):
            detail = f"{file.size} bytes, the limit is {options.max_file_bytes}"
            yield SourceReject(file.path, SourceFault.FILE_TOO_LARGE, detail)
        else:
            yield SourceReject(file.path, SourceFault.UNSUPPORTED_FORMAT, f"no reader for '{kind or file.path}' here")
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield SourceReject(file.path, SourceFault.FILE_UNREADABLE, f"{type(error).__name__}: {error}")


def _read_content(
    file: SourceFile, kind: str, content: bytes, options: ReadOptions
) -> Iterator[ContentRow | SourceReject]:
    blanks = tuple(None for _ in options.keep)
    if kind in IMAGE_SUFFIXES:
        yield ContentRow(file.path, image=content, extra=blanks)
    elif kind in TEXT_SUFFIXES:
        try:
            yield ContentRow(file.path, content.decode("utf-8-sig"), extra=blanks)
        except UnicodeDecodeError as error:
            yield SourceReject(file.path, SourceFault.TEXT_UNDECODABLE, f"not UTF-8 at byte {error.start}")
    else:
        for page in read_pdf(file.path, content, options.pdf_content, options.page_pixels):
            yield page if isinstance(page, SourceReject) else ContentRow(page.id, page.text, page.image, blanks)


def _read_jsonl_file(source: FileSource, file: SourceFile, options: ReadOptions) -> Iterator[Row | SourceReject]:
    def read_image(name: str) -> bytes:
        return _image_beside(source, file, name, options.max_file_bytes)

    with source.open(file, compressed=file.path.lower().endswith(".gz")) as stream:
        yield from read_jsonl(file.path, stream, options.table, read_image, options.keep, options.max_file_bytes)


def _image_beside(source: FileSource, file: SourceFile, name: str, max_bytes: int) -> bytes:
    try:
        image = source.within(posixpath.join(posixpath.dirname(file.path), name))
        if image is None:
            raise LineFault(SourceFault.IMAGE_OUTSIDE_SOURCE, "'image' must be a path inside the source, or base64")
        if image.size > max_bytes:
            raise LineFault(SourceFault.FILE_TOO_LARGE, f"the image has {image.size} bytes, the limit is {max_bytes}")
        return source.read(image)
    except OSError as error:
        raise LineFault(SourceFault.IMAGE_NOT_FOUND, f"the file of 'image' cannot be read ({name})") from error


def _extra_field_faults(options: ReadOptions) -> list[str]:
    columns = {"doc_id", "query_id", "text", "image", "content_hash"}
    faults = [f"keep: '{name}' is a column of the table already" for name in options.keep if name in columns]
    faults += [f"keep: '{name}' is given twice" for name in sorted(set(options.keep)) if options.keep.count(name) > 1]
    if options.keep and options.table in ("candidates", "qrels"):
        faults.append(f"keep: {options.table} has no extra columns")
    return faults


def output_faults(source_uri: str, output: str) -> list[str]:
    """Whether the output is inside the source, and would be read as part of it the next time."""
    if is_local(source_uri) != is_local(output):
        return []
    names = [str(local_path(uri).resolve()) if is_local(uri) else uri for uri in (source_uri, output)]
    inside = f"{names[1].rstrip('/')}/".startswith(f"{names[0].rstrip('/')}/")
    return [f"--output {output} is inside the source {source_uri}: choose a folder outside it"] if inside else []
