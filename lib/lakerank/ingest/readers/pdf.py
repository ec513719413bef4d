"""PDF files as pages: each page an image at the model's resolution, its text layer, or both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from lakerank.ingest.readers.reader import PdfContent, ReadOptions, Section, library, title_of
from lakerank.ingest.rejects import SourceFault, SourceReject
from lakerank.lake.images.pdf import PAGE_ERRORS, flatten, page_image

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

#: PDFium marks a hyphen that only breaks a word at a line's end with one of these.
_LINE_END_HYPHEN = re.compile("[\x02\ufffe](?:\r?\n)?")


def read_pdf(path: str, content: bytes, options: ReadOptions) -> Iterator[Section | SourceReject]:
    """Yield a section a page (`page=1` on), or a reject for a page or file that cannot be read.

    Print and drawings become PNG, lossless, so that small glyphs keep their edges, and grey where the page is grey. A
    page whose PNG is large, a scan or photographs, becomes JPEG at quality 90: a PNG of it has up to eight times the
    size without visible gain. The text layer of a page that is only an image to the model is its `search_text`.

    Raises:
        DependencyError: pypdfium2 is not installed.
    """
    pypdfium2 = library("pypdfium2", "PDF files", "ingest")
    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        # PDFium also says "password" of some damaged files; what is encrypted always says so in its trailer.
        locked = error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD and b"/Encrypt" in content
        yield SourceReject(path, SourceFault.PDF_ENCRYPTED if locked else SourceFault.PDF_UNREADABLE, str(error))
        return
    with closing(document):
        has_forms = document.init_forms()
        title = title_of(document.get_metadata_value("Title"))
        if len(document) == 0:
            yield SourceReject(path, SourceFault.PDF_UNREADABLE, "no pages")
        for number in range(1, len(document) + 1):
            try:
                if has_forms:
                    flatten(document, number)
                yield replace(_page(document, number, options.pdf_content, options.page_pixels), title=title)
            except PAGE_ERRORS as error:
                yield SourceReject(path, SourceFault.PDF_PAGE_UNREADABLE, str(error), page=number)


def _page(document: PdfDocument, number: int, content: PdfContent, page_pixels: int) -> Section:
    image = None
    if content != "text":
        with closing(document[number - 1]) as page:
            image = page_image(page, page_pixels)
    is_read = content != "image"
    text = ""
    with suppress(*(() if is_read else PAGE_ERRORS)):  # a page image without text for search is still a page
        flatten(document, number)
        with closing(document[number - 1]) as page:
            text = _page_text(page)
    return Section(
        text if is_read else None, image, f"page={number}", number, search_text=None if is_read else text or None
    )


def _page_text(page: PdfPage) -> str:
    with closing(page.get_textpage()) as layer:
        text: str = layer.get_text_range()
    return _LINE_END_HYPHEN.sub("", text).replace("\r\n", "\n").replace("\x00", "")
