"""Small files of every kind that has a reader, made here."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping

import docx
import openpyxl
import pptx
import pytest

CONTAINER = '<container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
BOOK = """<package xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>A Book</dc:title>
<dc:language>de</dc:language></metadata><manifest><item id="b" href="two%20.xhtml"/><item id="a" href="one.xhtml"/>
</manifest><spine><itemref idref="a"/><itemref idref="b"/></spine></package>"""
_NAMES = {"office": "office", "table": "table", "text": "text", "draw": "drawing"}
_SPACES = " ".join(
    f'xmlns:{short}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for short, name in _NAMES.items()
)
SHEET = f"<office:document-content {_SPACES}><office:body>{{}}</office:body></office:document-content>"


@pytest.fixture(scope="session")
def zipped() -> Callable[[Mapping[str, str | bytes]], bytes]:
    """A ZIP archive of members by name."""

    def make(members: Mapping[str, str | bytes]) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return buffer.getvalue()

    return make


def saved(document) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def word() -> bytes:
    document = docx.Document()
    document.core_properties.title = "Leave policy"
    document.add_heading("Leave", 1)
    document.add_paragraph("Thirty days ").add_run("a year.").bold = True
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "Name", "Tage"
    document.add_paragraph("The end.")
    return saved(document)


def deck() -> bytes:
    presentation = pptx.Presentation()
    for number in (1, 2):
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number}"
        slide.placeholders[1].text = "発表"
    slide.notes_slide.notes_text_frame.text = "Say hello."
    return saved(presentation)


def workbook() -> bytes:
    book = openpyxl.Workbook()
    book.active.title = "Prices"
    book.active.append(["apple", 1.5, None, True])
    book.create_sheet("More").append(["pear"])
    return saved(book)


@pytest.fixture(scope="session")
def office(zipped) -> Mapping[str, bytes]:
    """A file of each kind, by suffix."""
    text = "<office:text><text:h>Kopf</text:h><text:p>ein<text:s/>Satz<text:line-break/>mehr</text:p></office:text>"
    cells = "".join(f"<table:table-cell><text:p>{text}</text:p></table:table-cell>" for text in "ab")
    rows = f'<table:table table:name="Blatt"><table:table-row>{cells}</table:table-row></table:table>'
    sheet = f"<office:spreadsheet>{rows}</office:spreadsheet>"
    pages = "".join(f"<draw:page><text:p>{text}</text:p></draw:page>" for text in ("eins", "zwei"))
    chapter = "<html><head><title>{0}</title></head><body><h1>{0}</h1><p>Text {0}</p></body></html>"
    return {
        ".docx": word(),
        ".pptx": deck(),
        ".xlsx": workbook(),
        ".odt": zipped({"content.xml": SHEET.format(text)}),
        ".ods": zipped({"content.xml": SHEET.format(sheet)}),
        ".odp": zipped({"content.xml": SHEET.format(f"<office:presentation>{pages}</office:presentation>")}),
        ".epub": zipped(
            {
                "META-INF/container.xml": CONTAINER,
                "OEBPS/book.opf": BOOK,
                "OEBPS/one.xhtml": chapter.format("Eins"),
                "OEBPS/two .xhtml": chapter.format("Zwei"),
            }
        ),
    }
