"""What each kind of file becomes: text, title, language, and a section for each page, slide, sheet or chapter."""

from __future__ import annotations

import io
import sys
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.errors import DependencyError
from lakerank.ingest.readers import READERS
from lakerank.ingest.readers.markup import html_section
from lakerank.ingest.readers.reader import ReadOptions
from lakerank.ingest.readers.text import decode
from lakerank.ingest.rejects import SourceError

PAGE = """<!doctype html><html lang=de><head><title>Der
 Titel</title><style>p {}</style></head><body><nav>Menü</nav><header>Kopf</header><main><h1>Über</h1>
<p>Ein <b>fetter</b>   Satz.<br>Zeile<!-- no --> zwei<script>x()</script> Ende
<pre>  a
  b</pre><table><tr><td>1<td>2</table><p hidden>geheim</p>Rest</main><footer>Impressum</footer></body></html>"""


def read(suffix, content, **options):
    return list(READERS[suffix](f"file{suffix}", content, ReadOptions(**options)))


def test_a_page_is_its_main_part_under_its_title():
    [section] = read(".html", PAGE.encode())
    assert section.text == "Der Titel\nÜber\nEin fetter Satz.\nZeile zwei Ende\n  a\n  b\n1 2\nRest"
    assert (section.title, section.language) == ("Der Titel", "de")


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>a</p><nav>b</nav><aside>c</aside>", "a"),
        ("<nav>all there is</nav>", "all there is"),
        ("<article>a</article><article>b</article><p>c", "a\nb\nc"),
        ("<div role=main>a</div><p>b", "a"),
        ("just text &amp; more", "just text & more"),
        ("", ""),
        ("<!-- nothing -->", ""),
        ("<svg><text>x</text></svg><p>y", "y"),
        ("<?xml version='1.0' encoding='utf-16'?><html xmlns='http://www.w3.org/1999/xhtml'><p>ü</p></html>", "ü"),
    ],
)
def test_main_text(page, text):
    assert html_section(page).text == text


def test_text_that_is_nested_deep_is_kept_or_a_fault():
    for depth in (300, 3000, 100_000):
        try:
            assert html_section("<div>" * depth + "deep" + "</div>" * depth).text == "deep"
        except SourceError as fault:
            assert "deep" in str(fault)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("text", "content", "encoding", "declared", "is_guessed"),
    [
        ("ñ", "\ufeffñ".encode(), None, None, False),
        ("ñ", "\ufeffñ".encode("utf-16-le"), "cp1251", None, False),
        ("ñ", "\ufeffñ".encode("utf-16-be"), None, None, False),
        ("ñ", "\ufeffñ".encode("utf-32-le"), None, None, False),
        ("Ωμέγα", "Ωμέγα".encode("cp1253"), "cp1253", None, False),
        ("“quoted”", "“quoted”".encode("cp1252"), None, "ISO-8859-1", False),
        ("日本語の文章", "日本語の文章".encode("cp932"), None, "shift_jis", False),
        ("déjà vu", "déjà vu".encode(), None, "latin-1", False),
    ],
)
def test_encodings(text, content, encoding, declared, is_guessed):
    decoded, guess = decode(content, encoding, declared)
    assert (decoded, guess is not None) == (text, is_guessed)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Ein Jahr hat für viele Städte größere Flüsse übrig.", "cp1252"),
        ("El niño comió mañana en España.", "cp1252"),
        ("Zażółć gęślą jaźń. Chrząszcz brzmi w trzcinie.", "cp1250"),
        ("Съешь же ещё этих мягких французских булок, да выпей чаю.", "cp1251"),
        ("いろはにほへと ちりぬるを", "cp932"),
    ],
)
def test_guesses(text, encoding):
    decoded, guess = decode(text.encode(encoding), None, "rot13")
    assert decoded == text
    assert guess is not None


def test_a_page_declares_its_encoding():
    [section] = read(".html", '<meta charset="windows-1251"><p>Привет'.encode("cp1251"))
    assert section.text == "Привет"


def test_another_encoding_than_the_named_one_is_a_fault():
    with pytest.raises(SourceError, match="not cp932"):
        decode(b"a\x81", "cp932")


@given(
    st.binary(max_size=64), st.sampled_from([None, "utf-7", "idna", "zlib", "undefined", "x" * 9, "cp037", "utf-16"])
)
def test_any_bytes_are_a_text_or_a_fault(content, declared):
    try:
        text, _ = decode(content, None, declared)
    except SourceError:
        return
    assert isinstance(text, str)


@pytest.mark.parametrize(
    ("suffix", "text", "title", "language"),
    [
        (".md", "intro\n\n# The *title* #\n## No", "The *title*", None),
        (".md", "Title\n=====\ntext", "Title", None),
        (".md", '---\ntitle: "From: front"\nlang: fr\n---\n# Heading\n', "From: front", "fr"),
        (".md", "---\n- a\n---\n# Heading", "Heading", None),
        (".md", "---\n{: broken\n---\n# Heading", "Heading", None),
        (".rst", "=====\nTitle\n=====\n", "Title", None),
        (".org", "#+TITLE: Plan\n* one", "Plan", None),
        (".md", "no heading", None, None),
    ],
)
def test_markup_keeps_its_text_and_names_its_title(suffix, text, title, language):
    [section] = read(suffix, text.encode())
    assert (section.text, section.title, section.language) == (text, title, language)


@pytest.mark.parametrize(
    ("text", "command"), [("q1 Q0 d1 1 9.5 tag\nq1 Q0 d2 2 8 tag\n", "candidates --run"), ("q1 0 d1 1\n", "--as qrels")]
)
def test_trecs_files_are_no_texts(text, command):
    with pytest.raises(SourceError, match=command):
        read(".txt", text.encode())
    [section] = read(".txt", f"{text}and a sentence".encode())
    assert section.text.endswith("sentence")


def test_office_files(office):
    [section] = read(".docx", office[".docx"])
    assert section.text == "Leave\nThirty days a year.\nName Tage\nThe end."
    assert section.title == "Leave policy"
    first, second = read(".pptx", office[".pptx"])
    assert (first.text, first.place, first.page, first.title) == ("Slide 1\n発表", "page=1", 1, "Slide 1")
    assert second.text == "Slide 2\n発表\nSay hello."
    prices, more = read(".xlsx", office[".xlsx"])
    assert (prices.text, prices.place, prices.title) == ("apple\t1.5\tTrue", "sheet=Prices", "Prices")
    assert more.text == "pear"


def test_open_document_files(office):
    assert [section.text for section in read(".odt", office[".odt"])] == ["Kopf\nein Satz mehr"]
    assert [(sheet.text, sheet.place) for sheet in read(".ods", office[".ods"])] == [("a b", "sheet=Blatt")]
    assert [(page.text, page.page) for page in read(".odp", office[".odp"])] == [("eins", 1), ("zwei", 2)]


def test_a_books_chapters_in_the_order_of_its_spine(office):
    one, two = read(".epub", office[".epub"])
    assert (one.text, one.place, one.title, one.language) == ("Eins\nText Eins", "chapter=1", "Eins", "de")
    assert two.text == "Zwei\nText Zwei"


@pytest.mark.parametrize(
    ("suffix", "module", "extra"),
    [
        (".html", "lxml", "text"),
        (".epub", "lxml", "text"),
        (".odt", "lxml", "text"),
        (".docx", "docx", "ingest"),
        (".pptx", "pptx", "ingest"),
        (".xlsx", "openpyxl", "ingest"),
        (".pdf", "pypdfium2", "ingest"),
        (".txt", "charset_normalizer", "text"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, office, suffix, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    content = office.get(suffix, b"<p>\xe4" if suffix == ".html" else b"caf\xe9")
    with pytest.raises(DependencyError, match=rf"^[^\n]+pip install 'lakerank\[{extra}\]'[^\n]*$"):
        read(suffix, content, encoding="cp1252" if suffix == ".html" else None)


def test_text_boxes_and_hidden_content_of_word(office, zipped):
    """Text in content controls and boxes is there once; what was deleted is not."""
    with zipfile.ZipFile(io.BytesIO(office[".docx"])) as package:
        members = {name: package.read(name) for name in package.namelist()}
    extra = b"<w:sdt><w:sdtContent><w:p><w:r><w:t>control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    extra += b"<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:r><w:t>kept</w:t></w:r></w:p><w:sectPr"
    members["word/document.xml"] = members["word/document.xml"].replace(b"<w:sectPr", extra, 1)
    [section] = read(".docx", zipped(members))
    assert section.text.endswith("control\nkept")
    assert "gone" not in section.text
