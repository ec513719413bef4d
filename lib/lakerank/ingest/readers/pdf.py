"""PDF files as pages: each page an image at the model's resolution, its text layer, or both."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from lakerank.ingest.readers.reader import PdfContent, ReadOptions, Section, library, title_of
from lakerank.ingest.tables import SourceFault, SourceReject

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

#: A side longer than this is scaled down whatever the page's shape, so that no strip of paper exhausts the memory.
MAX_SIDE = 16_384

#: A page that takes more as PNG is no print: a dense page of text takes 0.3 (grey) to 0.5 (colour), a scan 1 to 2.
PNG_BYTES_PER_PIXEL = 0.7

#: What PDFium's binding raises for a page that it cannot read; `PdfiumError` is a RuntimeError.
_PAGE_ERRORS = (RuntimeError, ValueError, MemoryError)

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
                    _flatten(document, number)
                yield replace(_page(document, number, options.pdf_content, options.page_pixels), title=title)
            except _PAGE_ERRORS as error:
                yield SourceReject(path, SourceFault.PDF_PAGE_UNREADABLE, str(error), page=number)


def _flatten(document: PdfDocument, number: int) -> None:
    """Make filled values of forms, and notes typed on the page, a part of the page and so of its text layer."""
    import pypdfium2

    with closing(document[number - 1]) as page:
        pypdfium2.raw.FPDFPage_Flatten(page, pypdfium2.raw.FLAT_NORMALDISPLAY)


def _page(document: PdfDocument, number: int, content: PdfContent, page_pixels: int) -> Section:
    image = None
    if content != "text":
        with closing(document[number - 1]) as page:
            image = _page_image(page, page_pixels)
    is_read = content != "image"
    text = ""
    with suppress(*(() if is_read else _PAGE_ERRORS)):  # a page image without text for search is still a page
        _flatten(document, number)
        with closing(document[number - 1]) as page:
            text = _page_text(page)
    return Section(
        text if is_read else None, image, f"page={number}", number, search_text=None if is_read else text or None
    )


def _page_image(page: PdfPage, page_pixels: int) -> bytes:
    """The page, encoded, of at most `page_pixels` pixels, on white."""
    width, height = page.get_size()
    scale = page_scale(width, height, page_pixels)
    with closing(page.render(scale=scale, rev_byteorder=True)) as bitmap:
        return _encoded(bitmap.to_pil().convert("RGB"))


def _encoded(image: Image.Image) -> bytes:
    red, green, blue = image.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        image = red
    content = _saved(image, format="PNG")
    if len(content) > PNG_BYTES_PER_PIXEL * image.width * image.height:
        return _saved(image, format="JPEG", quality=90)
    return content


def _saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def page_scale(width: float, height: float, page_pixels: int) -> float:
    """Pixels a point for a page of `width` × `height` points: as many as `page_pixels` and `MAX_SIDE` allow.

    Raises:
        ValueError: the page has no area.
    """
    if not (width > 0 and height > 0 and math.isfinite(width * height)):
        raise ValueError(f"the page is {width} × {height} points")
    scale = min(math.sqrt(page_pixels / (width * height)), MAX_SIDE / max(width, height))
    while math.ceil(width * scale) * math.ceil(height * scale) > page_pixels and scale * min(width, height) > 1:
        scale *= 0.999  # the renderer rounds each side up
    return scale


def _page_text(page: PdfPage) -> str:
    with closing(page.get_textpage()) as layer:
        text: str = layer.get_text_range()
    return _LINE_END_HYPHEN.sub("", text).replace("\r\n", "\n").replace("\x00", "")
