"""The page: escaped, self-contained, the same twice, and unmoved by bad images."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from lakerank.evaluation.thumbnails import SIDE, thumbnail

EVIL = "<script>alert(1)</script>"
ATTRIBUTE = '" onload="alert(1)'


class Page(HTMLParser):
    """Collects tags, what they refer to, and ids; `open` holds the tags not closed yet."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(lake) -> tuple[str, Page]:
    done = lake.evaluated()
    html = Path(done.report).read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    page.close()
    return html, page


@pytest.fixture
def hostile_lake(make_lake, encode):
    long_id = "x" * 200
    documents = [
        {"doc_id": long_id, "text": EVIL, "name": EVIL},
        {"doc_id": ATTRIBUTE, "image": encode(), "name": ATTRIBUTE},
        {"doc_id": "broken", "image": encode()[:40]},
        {"doc_id": "no-image", "image": b"GIF, honestly"},
        {"doc_id": "latin", "text": "ok"},
    ]
    ids = [one["doc_id"] for one in documents]
    return make_lake(
        documents=documents,
        queries=[{"query_id": EVIL, "text": EVIL, "language": ATTRIBUTE, "task": EVIL, "slice": "a&b"}],
        candidates=[(EVIL, doc, rank) for rank, doc in enumerate(ids, start=1)],
        qrels=[(EVIL, long_id, 1)],
        ranked={EVIL: ids[::-1]},
        rejected=[(EVIL, "gone", EVIL)],
        manifest={"scorer": EVIL, "published_at": EVIL},
    )


def test_what_is_stored_is_escaped(hostile_lake):
    html, page = parsed(hostile_lake)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "x" * 200 in html
    assert page.open == []


def test_bad_images_are_named_and_not_shown(hostile_lake):
    html, page = parsed(hostile_lake)
    lists = html.count("<ol>")
    assert page.tags.count("img") == lists, "one good image in every list"
    assert html.count("image not shown") == 2 * lists


def test_nothing_is_fetched(small_lake):
    html, page = parsed(small_lake)
    references = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert references
    assert all(value.startswith(("data:", "#")) for value in references)
    assert not {"link", "script", "iframe", "object", "form"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", html)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "ids are unique over all plots"


def test_tables_have_headers(small_lake):
    _, page = parsed(small_lake)
    scopes = [value for name, value in page.attributes if name == "scope"]
    assert page.tags.count("th") == len(scopes)


def test_the_same_run_gives_the_same_bytes(small_lake):
    first, _ = parsed(small_lake)
    Path(small_lake.paths.report).unlink()
    assert parsed(small_lake)[0] == first


def test_figures_and_work_are_on_the_page(small_lake):
    html, _ = parsed(small_lake)
    assert "Reranking raises nDCG@10" in html or "Reranking lowers nDCG@10" in html
    assert "75.0% (4.0× fewer)" in html
    assert "2.0 s, 2.0 pairs a second" in html, "pairs of the attempt that was timed, not of the run"
    assert "out of memory" in html
    assert "✓ relevant" in html
    assert "Published 2026-01-05 10:11 UTC" in html


def test_a_run_without_a_first_stage_or_a_manifest_has_a_page_too(make_lake):
    lake = make_lake(
        documents=[{"doc_id": "a", "text": "x"}],
        queries=[{"query_id": "q", "text": "x"}],
        candidates=[("q", "a", None)],
        qrels=[("q", "a", 1)],
        ranked={"q": ["a"]},
    )
    html, page = parsed(lake)
    assert "nDCG@10 is 1.000 over 1 judged query" in html
    assert "First stage</h3>" not in html
    assert page.open == []


def test_thumbnails_are_small_and_encoded_anew(encode):
    for kind, mode in [
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
        ("JPEG", "L"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("TIFF", "CMYK"),
    ]:
        uri = thumbnail(encode((300, 100), kind, mode) if mode != "RGBA" else encode((300, 100), kind, "RGB"))
        data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(data)).size == (SIDE, SIDE // 3)


@pytest.mark.parametrize("image", [b"", b"\x89PNG\r\n\x1a\n", b"not an image"])
def test_a_bad_image_has_no_thumbnail(image):
    assert thumbnail(image) is None


def test_an_image_over_the_limit_is_not_decoded(encode):
    assert thumbnail(encode((8000, 6000), "PNG", "1")) is None
