"""PDF pages as images of the model's size and as text."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lakerank.ingest.readers.pdf import read_pdf
from lakerank.ingest.readers.reader import ReadOptions
from lakerank.ingest.rejects import SourceFault
from lakerank.lake.images.pdf import MAX_SIDE, PAGE_PIXELS, page_scale

#: A page behind a password: the trailer's encryption dictionary is all that PDFium needs to ask for it.
ENCRYPTED = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[4 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Filter/Standard/V 1/R 2/Length 40/P -4/O<" + b"41" * 32 + b">/U<" + b"42" * 32 + b">>>endobj\n"
    b"4 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj\n"
    b"trailer<</Root 1 0 R/Encrypt 3 0 R/ID[<41><41>]>>\n%%EOF"
)


def pages_of(path, content_bytes, content="image"):
    return read_pdf(path, content_bytes, ReadOptions(pdf_content=content))


def test_pages_are_images_just_under_the_limit(make_pdf):
    pages = list(pages_of("a.pdf", make_pdf((595, 842), (842, 595))))
    assert [page.place for page in pages] == ["page=1", "page=2"]
    sizes = [Image.open(io.BytesIO(page.image)).size for page in pages]
    assert sizes[0] == sizes[1][::-1]
    assert 0.98 * PAGE_PIXELS < sizes[0][0] * sizes[0][1] <= PAGE_PIXELS
    assert all(page.text is None for page in pages)


def test_the_text_layer_is_an_option(make_pdf):
    content = make_pdf((300, 200), text="Hello page")
    [text] = pages_of("a.pdf", content, content="text")
    [both] = pages_of("a.pdf", content, content="both")
    assert (text.text, text.image) == ("Hello page", None)
    assert both.text == "Hello page"
    assert (both.search_text, text.search_text) == (None, None), "what the model reads is searched as well"
    [image] = pages_of("a.pdf", content, content="image")
    assert (image.text, image.search_text) == (None, "Hello page")
    assert min(Image.open(io.BytesIO(both.image)).convert("L").get_flattened_data()) < 64, "the text is drawn"


def test_print_is_lossless_and_scans_are_jpeg(make_pdf):
    [text] = pages_of("a.pdf", make_pdf((300, 200), text="Hello page"))
    assert Image.open(io.BytesIO(text.image)).format == "PNG"
    assert Image.open(io.BytesIO(text.image)).mode == "L"
    noise = Image.frombytes("RGB", (600, 800), random.Random(1).randbytes(600 * 800 * 3))
    buffer = io.BytesIO()
    noise.save(buffer, format="PDF", resolution=72)
    [scan] = pages_of("b.pdf", buffer.getvalue())
    assert Image.open(io.BytesIO(scan.image)).format == "JPEG"


def test_a_page_gives_the_same_bytes_twice(make_pdf):
    content = make_pdf((300, 200), text="Hello page")
    assert list(pages_of("a.pdf", content)) == list(pages_of("a.pdf", content))


def filled_form(page_entry: str = "/Subtype/Widget/FT/Tx/T(total)/V(TOTAL 1234)") -> bytes:
    """A page whose only content is the value of a form field, without an appearance; the reader makes one."""
    font = "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
    objects = [
        "<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[5 0 R]/DR<</Font<</F1 4 0 R>>>>/DA(/F1 18 Tf 0 g)>>>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Resources<</Font<</F1 4 0 R>>>>/Annots[5 0 R]>>",
        font,
        f"<</Type/Annot{page_entry}/DA(/F1 18 Tf 0 g)/F 4/Rect[50 80 250 110]/P 3 0 R>>",
    ]
    numbered = "".join(f"{number} 0 obj\n{entry}\nendobj\n" for number, entry in enumerate(objects, 1))
    return f"%PDF-1.7\n{numbered}trailer\n<</Size 6/Root 1 0 R>>\n%%EOF\n".encode()


def test_filled_values_of_forms_are_drawn_and_are_text():
    [page] = pages_of("a.pdf", filled_form(), content="both")
    assert page.text == "TOTAL 1234"
    assert min(Image.open(io.BytesIO(page.image)).convert("L").get_flattened_data()) < 64, "the value is drawn"
    [hidden] = pages_of("a.pdf", filled_form().replace(b"/F 4/", b"/F 2/"), content="text")
    assert hidden.text == ""


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", SourceFault.PDF_UNREADABLE),
        (b"%PDF-1.4 x", SourceFault.PDF_UNREADABLE),
        (ENCRYPTED, SourceFault.PDF_ENCRYPTED),
    ],
)
def test_a_file_that_cannot_be_opened_is_one_reject(content, fault):
    [reject] = pages_of("a.pdf", content)
    assert (reject.path, reject.fault) == ("a.pdf", fault)


def test_a_document_without_pages_is_a_reject(make_pdf):
    [reject] = pages_of("a.pdf", make_pdf())
    assert reject.fault is SourceFault.PDF_UNREADABLE


@given(
    st.floats(min_value=0.01, max_value=20_000), st.floats(min_value=0.01, max_value=20_000), st.integers(784, 10**6)
)
def test_no_page_shape_exceeds_the_limits(width, height, pixels):
    scale = page_scale(width, height, pixels)
    assert max(width, height) * scale <= MAX_SIDE + 1
    assert width * height * scale**2 <= pixels * 1.001


@pytest.mark.parametrize("size", [(0, 10), (10, -1), (float("inf"), 1), (float("nan"), 1)])
def test_a_page_without_area_is_refused(size):
    with pytest.raises(ValueError, match="points"):
        page_scale(*size, 1000)
