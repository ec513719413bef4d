"""A file or folder of texts, images, PDFs and JSON Lines as rows of a table."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from lakerank.ingest.items import Item, Row, SourceFault, SourceReject
from lakerank.ingest.jsonl import LineFault, TableName, read_jsonl
from lakerank.ingest.pdf import PAGE_PIXELS, PdfContent, read_pdf
from lakerank.ingest.read_ahead import read_ahead
from lakerank.ingest.source import Source, SourceFile

Kind = Literal["auto", "folder", "jsonl", "pdf"]

TEXT_SUFFIXES = frozenset({".txt", ".md", ".text", ".markdown"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
PDF_SUFFIXES = frozenset({".pdf"})
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"})

#: What a kind looks at; every other file is passed over. `auto` and `folder` look at everything.
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


def read_folder(source: Source, options: ReadOptions) -> Iterator[Row | SourceReject]:
    """Yield the rows of every file in the order of paths, and a reject for everything that cannot be read."""

    def size(file: SourceFile | SourceReject) -> int | None:
        """Bytes to read ahead: of a wanted file that is read whole and is not over the limit."""
        if isinstance(file, SourceReject) or not _is_wanted(file.path, source, options):
            return None
        return file.size if _is_whole(file, options) and file.size <= options.max_file_bytes else None

    def read(file: SourceFile | SourceReject) -> bytes:
        return source.read(file) if isinstance(file, SourceFile) else b""

    for file, content in read_ahead(source.files(), size, read):
        if isinstance(file, SourceReject):
            if file.fault is SourceFault.FILE_UNREADABLE or _is_wanted(file.path, source, options):
                yield file
        elif _is_wanted(file.path, source, options):
            yield from _read_file(source, file, content, options)


def _is_whole(file: SourceFile, options: ReadOptions) -> bool:
    """Whether a file is read at once: texts, images and PDFs, where the table may be made of them."""
    only_jsonl = options.kind == "jsonl" or options.table in ("candidates", "qrels")
    return not only_jsonl and suffix(file.path) in TEXT_SUFFIXES | IMAGE_SUFFIXES | PDF_SUFFIXES


def _is_wanted(path: str, source: Source, options: ReadOptions) -> bool:
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
    source: Source, file: SourceFile, content: Future[bytes] | None, options: ReadOptions
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


def _read_content(file: SourceFile, kind: str, content: bytes, options: ReadOptions) -> Iterator[Item | SourceReject]:
    blanks = tuple(None for _ in options.keep)
    if kind in IMAGE_SUFFIXES:
        yield Item(file.path, image=content, kept=blanks)
    elif kind in TEXT_SUFFIXES:
        try:
            yield Item(file.path, content.decode("utf-8-sig"), kept=blanks)
        except UnicodeDecodeError as error:
            yield SourceReject(file.path, SourceFault.TEXT_UNDECODABLE, f"not UTF-8 at byte {error.start}")
    else:
        for page in read_pdf(file.path, content, options.pdf_content, options.page_pixels):
            yield page if isinstance(page, SourceReject) else Item(page.id, page.text, page.image, blanks)


def _read_jsonl_file(source: Source, file: SourceFile, options: ReadOptions) -> Iterator[Row | SourceReject]:
    def read_image(name: str) -> bytes:
        return _image_beside(source, file, name, options.max_file_bytes)

    with source.open(file, compressed=file.path.lower().endswith(".gz")) as stream:
        yield from read_jsonl(file.path, stream, options.table, read_image, options.keep, options.max_file_bytes)


def _image_beside(source: Source, file: SourceFile, name: str, max_bytes: int) -> bytes:
    try:
        image = source.beside(file, name)
        if image is None:
            raise LineFault(SourceFault.IMAGE_OUTSIDE_SOURCE, "'image' must be a path inside the source, or base64")
        if image.size > max_bytes:
            raise LineFault(SourceFault.FILE_TOO_LARGE, f"the image has {image.size} bytes, the limit is {max_bytes}")
        return source.read(image)
    except OSError as error:
        raise LineFault(SourceFault.IMAGE_NOT_FOUND, f"the file of 'image' cannot be read ({name})") from error
