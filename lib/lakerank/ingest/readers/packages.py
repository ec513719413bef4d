"""OpenDocument files and EPUB books: ZIP packages of XML and XHTML."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote
from zipfile import ZipFile

from lakerank.ingest.readers.archive import check_package
from lakerank.ingest.readers.markup import Markup, html_section, markup_text, parse_xml
from lakerank.ingest.readers.reader import ReaderFault, ReadOptions, Section, title_of
from lakerank.ingest.readers.text import decode
from lakerank.ingest.tables import SourceFault

if TYPE_CHECKING:
    from lxml.etree import _Element

_OFFICE = "urn:oasis:names:tc:opendocument:xmlns:"
_TEXT, _TABLE, _DRAW = (f"{{{_OFFICE}{name}:1.0}}" for name in ("text", "table", "drawing"))
_BODY = f"{{{_OFFICE}office:1.0}}body"
_DC = "{http://purl.org/dc/elements/1.1/}"

_OPEN_DOCUMENT = Markup(
    blocks=(f"{_TEXT}p", f"{_TEXT}h"), rows=(f"{_TABLE}table-row",), cells=(f"{_TABLE}table-cell",),
    spaces=(f"{_TEXT}s", f"{_TEXT}tab", f"{_TEXT}line-break"),
    skipped=(f"{_TEXT}tracked-changes", f"{{{_OFFICE}office:1.0}}annotation"),
)  # fmt: skip


def read_open_document(_path: str, content: bytes, options: ReadOptions) -> Iterator[Section]:
    """A text document whole, a section a slide of a presentation, a section a sheet of a spreadsheet."""
    check_package(content, options.max_file_bytes)
    with ZipFile(io.BytesIO(content)) as package:
        if b"encryption-data" in _member(package, "META-INF/manifest.xml", optional=True):
            raise ReaderFault(SourceFault.FILE_ENCRYPTED, "it needs a password")
        body = parse_xml(_member(package, "content.xml")).find(_BODY)
        meta = _member(package, "meta.xml", optional=True)
    if body is None or len(body) == 0:
        raise ReaderFault(SourceFault.FILE_UNREADABLE, "content.xml has no body")
    about = parse_xml(meta) if meta else body
    title, language = (title_of(about.findtext(f".//{_DC}{name}")) for name in ("title", "language"))
    kind = body[0]
    slides, sheets = kind.findall(f"{_DRAW}page"), kind.findall(f"{_TABLE}table")
    if str(kind.tag).endswith("}presentation") or (slides and str(kind.tag).endswith("}drawing")):
        for number, slide in enumerate(slides, start=1):
            yield Section(markup_text(slide, _OPEN_DOCUMENT), None, f"page={number}", number, title, language)
    elif str(kind.tag).endswith("}spreadsheet"):
        for number, sheet in enumerate(sheets, start=1):
            name = sheet.get(f"{_TABLE}name") or str(number)
            yield Section(markup_text(sheet, _OPEN_DOCUMENT), place=f"sheet={name}", title=name, language=language)
    else:
        yield Section(markup_text(kind, _OPEN_DOCUMENT), title=title, language=language)


def read_epub(_path: str, content: bytes, options: ReadOptions) -> Iterator[Section]:
    """A section a chapter, in the order of reading; chapters without text are left out, and keep their number."""
    check_package(content, options.max_file_bytes)
    with ZipFile(io.BytesIO(content)) as package:
        container = parse_xml(_member(package, "META-INF/container.xml"))
        location = next((element.get("full-path") for element in container.iter("{*}rootfile")), None)
        if not location:
            raise ReaderFault(SourceFault.FILE_UNREADABLE, "container.xml names no root file")
        book = parse_xml(_member(package, location))
        title, language = (title_of(book.findtext(f".//{_DC}{name}")) for name in ("title", "language"))
        locked = _encrypted(package)
        for number, name in enumerate(_chapters(book, posixpath.dirname(location)), start=1):
            if name in locked:
                raise ReaderFault(SourceFault.FILE_ENCRYPTED, f"{name} is encrypted")
            chapter = html_section(decode(_member(package, name))[0])
            if chapter.text:
                heading = title_of(chapter.title, title)
                yield Section(chapter.text, None, f"chapter={number}", None, heading, chapter.language or language)


def _chapters(book: _Element, folder: str) -> list[str]:
    """Names of the members in the book's spine."""
    items = {item.get("id"): item.get("href") or "" for item in book.iter("{*}item")}
    names = (items.get(reference.get("idref")) for reference in book.iter("{*}itemref"))
    return [posixpath.normpath(posixpath.join(folder, unquote(name.partition("#")[0]))) for name in names if name]


def _encrypted(package: ZipFile) -> set[str]:
    encryption = _member(package, "META-INF/encryption.xml", optional=True)
    references = parse_xml(encryption).iter("{*}CipherReference") if encryption else ()
    return {unquote(reference.get("URI") or "") for reference in references}


def _member(package: ZipFile, name: str, optional: bool = False) -> bytes:
    try:
        return package.read(name)
    except KeyError as error:
        if optional:
            return b""
        raise ReaderFault(SourceFault.FILE_UNREADABLE, f"no {name} in it") from error
