"""ZIP packages of XML as texts: Microsoft's Office files, OpenDocument, and EPUB books."""

from __future__ import annotations

import io
import posixpath
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from zipfile import ZipFile

from lakerank.ingest.readers.archive import check_package
from lakerank.ingest.readers.markup import Markup, html_section, markup_text, parse_xml
from lakerank.ingest.readers.reader import ReadOptions, Section, library, title_of
from lakerank.ingest.readers.text import decode
from lakerank.ingest.rejects import SourceError, SourceFault

if TYPE_CHECKING:
    from lxml.etree import _Element

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"  # a text box, told once more

#: Text of deletions stands in `delText`, and of fields' codes in `instrText`: neither is in `t`.
_WORD = Markup(
    blocks=(f"{_W}p",), rows=(f"{_W}tr",), cells=(f"{_W}tc",), skipped=(_FALLBACK,), texts=(f"{_W}t",),
    spaces=(f"{_W}tab", f"{_W}br", f"{_W}cr"),
)  # fmt: skip
_SLIDE = Markup(
    blocks=(f"{_A}p",), rows=(f"{_A}tr",), cells=(f"{_A}tc",), skipped=(_FALLBACK,), texts=(f"{_A}t",),
    spaces=(f"{_A}br", f"{_A}tab"),
)  # fmt: skip
_NOTES = ("/word/footnotes.xml", "/word/endnotes.xml")

_OFFICE = "urn:oasis:names:tc:opendocument:xmlns:"
_TEXT, _TABLE, _DRAW = (f"{{{_OFFICE}{name}:1.0}}" for name in ("text", "table", "drawing"))
_BODY = f"{{{_OFFICE}office:1.0}}body"
_DC = "{http://purl.org/dc/elements/1.1/}"

_OPEN_DOCUMENT = Markup(
    blocks=(f"{_TEXT}p", f"{_TEXT}h"), rows=(f"{_TABLE}table-row",), cells=(f"{_TABLE}table-cell",),
    spaces=(f"{_TEXT}s", f"{_TEXT}tab", f"{_TEXT}line-break"),
    skipped=(f"{_TEXT}tracked-changes", f"{{{_OFFICE}office:1.0}}annotation"),
)  # fmt: skip


def read_docx(_path: str, content: bytes, options: ReadOptions) -> Iterator[Section]:
    """Paragraphs, tables, text boxes and notes in the order of the file; headers and footers of pages are left out."""
    docx = library("docx", "Office files", "ingest")
    check_package(content, options.max_file_bytes)
    document = docx.Document(io.BytesIO(content))
    notes = [part.blob for part in document.part.package.iter_parts() if str(part.partname) in _NOTES]
    texts = [markup_text(document.element.body, _WORD), *(markup_text(parse_xml(note), _WORD) for note in notes)]
    properties = document.core_properties
    yield Section(_lines(texts), title=title_of(properties.title), language=title_of(properties.language))


def read_pptx(_path: str, content: bytes, options: ReadOptions) -> Iterator[Section]:
    """A section a slide, with the speaker's notes after its text."""
    pptx = library("pptx", "Office files", "ingest")
    check_package(content, options.max_file_bytes)
    deck = pptx.Presentation(io.BytesIO(content))
    properties = deck.core_properties
    for number, slide in enumerate(deck.slides, start=1):
        texts = [markup_text(slide.element, _SLIDE)]
        if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None:
            texts.append(notes.text)
        heading = slide.shapes.title
        title = title_of(heading.text_frame.text if heading is not None else None, properties.title)
        yield Section(_lines(texts), None, f"page={number}", number, title, title_of(properties.language))


def read_xlsx(_path: str, content: bytes, options: ReadOptions) -> Iterator[Section]:
    """A section a sheet: a line a row, values apart by tabs; of a formula, the value that was stored with it."""
    openpyxl = library("openpyxl", "Office files", "ingest")
    check_package(content, options.max_file_bytes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of styles and extensions that it does not know
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True, keep_links=False)
        try:
            for sheet in book.worksheets:
                sheet.reset_dimensions()  # a file may claim a million rows of sixteen thousand columns
                text = _lines(_row(row) for row in sheet.iter_rows(values_only=True))
                yield Section(text, place=f"sheet={sheet.title}", title=title_of(sheet.title))
        finally:
            book.close()


def read_open_document(_path: str, content: bytes, options: ReadOptions) -> Iterator[Section]:
    """A text document whole, a section a slide of a presentation, a section a sheet of a spreadsheet."""
    check_package(content, options.max_file_bytes)
    with ZipFile(io.BytesIO(content)) as package:
        if b"encryption-data" in _member(package, "META-INF/manifest.xml", optional=True):
            raise SourceError(SourceFault.FILE_ENCRYPTED, "it needs a password")
        body = parse_xml(_member(package, "content.xml")).find(_BODY)
        meta = _member(package, "meta.xml", optional=True)
    if body is None or len(body) == 0:
        raise SourceError(SourceFault.FILE_UNREADABLE, "content.xml has no body")
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
            raise SourceError(SourceFault.FILE_UNREADABLE, "container.xml names no root file")
        book = parse_xml(_member(package, location))
        title, language = (title_of(book.findtext(f".//{_DC}{name}")) for name in ("title", "language"))
        locked = _encrypted(package)
        for number, name in enumerate(_chapters(book, posixpath.dirname(location)), start=1):
            if name in locked:
                raise SourceError(SourceFault.FILE_ENCRYPTED, f"{name} is encrypted")
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
        raise SourceError(SourceFault.FILE_UNREADABLE, f"no {name} in it") from error


def _row(values: Iterable[Any]) -> str:
    return "\t".join(" ".join(str(value).split()) for value in values if value is not None)


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(text for text in texts if text.strip())
