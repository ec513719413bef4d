"""Pages of PDF files as images, the same wherever they are read: ingested, or in a run by their address."""

from __future__ import annotations

import io
import math
from contextlib import closing
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

#: The model's own limit of an image (768 visual tokens): a page rendered at this size is not resampled again.
PAGE_PIXELS = 602_112

#: A side longer than this is scaled down whatever the page's shape, so that no strip of paper exhausts the memory.
MAX_SIDE = 16_384

#: A page that takes more as PNG is no print: a dense page of text takes 0.3 (grey) to 0.5 (colour), a scan 1 to 2.
PNG_BYTES_PER_PIXEL = 0.7

#: What PDFium's binding raises for a page that it cannot read; `PdfiumError` is a RuntimeError.
PAGE_ERRORS = (RuntimeError, ValueError, MemoryError)


def flatten(document: PdfDocument, number: int) -> None:
    """Make filled values of forms, and notes typed on the page, a part of the page and so of its text layer."""
    import pypdfium2

    with closing(document[number - 1]) as page:
        pypdfium2.raw.FPDFPage_Flatten(page, pypdfium2.raw.FLAT_NORMALDISPLAY)


def page_image(page: PdfPage, page_pixels: int) -> bytes:
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
