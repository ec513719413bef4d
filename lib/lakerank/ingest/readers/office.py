"""Word, PowerPoint and Excel files as texts: a whole document, a row a slide, a row a sheet."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from lakerank.errors import DependencyError
from lakerank.ingest.readers.archive import check_package
from lakerank.ingest.readers.markup import Markup, markup_text, parse_xml
from lakerank.ingest.readers.reader import ReadOptions, Section, title_of

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

_NEEDS = "Office files need python-docx, python-pptx and openpyxl: pip install 'lakerank[ingest]'"


def read_docx(_path: str, content: bytes, options: ReadOptions) -> Iterator[Section]:
    """Paragraphs, tables, text boxes and notes in the order of the file; headers and footers of pages are left out."""
    try:
        import docx
    except ImportError as error:
        raise DependencyError(_NEEDS) from error
    check_package(content, options.max_file_bytes)
    document = docx.Document(io.BytesIO(content))
    notes = [part.blob for part in document.part.package.iter_parts() if str(part.partname) in _NOTES]
    texts = [markup_text(document.element.body, _WORD), *(markup_text(parse_xml(note), _WORD) for note in notes)]
    properties = document.core_properties
    yield Section(_lines(texts), title=title_of(properties.title), language=title_of(properties.language))


def read_pptx(_path: str, content: bytes, options: ReadOptions) -> Iterator[Section]:
    """A section a slide, with the speaker's notes after its text."""
    try:
        import pptx
    except ImportError as error:
        raise DependencyError(_NEEDS) from error
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
    try:
        import openpyxl
    except ImportError as error:
        raise DependencyError(_NEEDS) from error
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


def _row(values: Iterable[Any]) -> str:
    return "\t".join(" ".join(str(value).split()) for value in values if value is not None)


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(text for text in texts if text.strip())
