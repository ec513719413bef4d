"""Text of a tree of elements: HTML, and the XML inside Office, OpenDocument and EPUB files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lakerank.ingest.readers.reader import ReadOptions, Section, library, title_of
from lakerank.ingest.readers.text import decode
from lakerank.ingest.rejects import SourceError, SourceFault

if TYPE_CHECKING:
    from lxml.etree import _Element

_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)

#: Bytes of a page in which an encoding is declared, as browsers look for it.
_DECLARATION_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Markup:
    """What elements do to text, by tag: `blocks` and `rows` are lines, the paragraphs of `cells` stand in one line.

    `spaces` stand for white space. `texts` are the only elements whose text counts (None: all).
    """

    blocks: Collection[str]
    skipped: Collection[str]
    rows: Collection[str] = ()
    cells: Collection[str] = ()
    spaces: Collection[str] = ()
    texts: Collection[str] | None = None
    verbatim: Collection[str] = ()


_HTML_BLOCKS = set(
    """address article aside blockquote body br caption center dd details dialog div dl dt fieldset figcaption figure
    footer form h1 h2 h3 h4 h5 h6 header hgroup hr li main menu nav ol option p pre section summary table tbody tfoot
    thead tr ul""".split()  # noqa: SIM905 - a list of these words is thrice as long
)
_NEVER_TEXT = {"head", "script", "style", "template", "noscript", "svg", "canvas", "iframe", "object", "audio", "video"}


def _html(*skipped: str) -> Markup:
    return Markup(_HTML_BLOCKS, {*_NEVER_TEXT, *skipped}, spaces=("td", "th"), verbatim=("pre", "textarea"))


#: All of a page's text; its main part; and what is left of a page that does not mark its main part.
_WHOLE_PAGE, _MAIN_PART, _BODY = _html(), _html("nav"), _html("nav", "footer", "aside")


def markup_text(root: _Element, markup: Markup) -> str:
    """The text below an element, a line a block, white space collapsed but where it is verbatim."""
    from lxml import etree

    lines: list[str] = []
    pieces: list[str] = []
    inside = {"verbatim": 0, "cell": 0}

    def end_line() -> None:
        text = "".join(pieces)
        pieces.clear()
        lines.extend([text.strip("\n")] if inside["verbatim"] else [" ".join(text.split())])

    walk = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
    for event, element in walk:
        tag = element.tag if isinstance(element.tag, str) else ""
        skipped = tag in markup.skipped or element.get("hidden") is not None if tag else True
        if event == "start" and skipped:
            walk.skip_subtree()
        elif event in ("start", "end") and not skipped:
            if tag in markup.blocks and inside["cell"]:
                pieces.append(" ")
            elif tag in markup.blocks or tag in markup.rows:
                end_line()
            if tag in markup.spaces:
                pieces.append(" ")
            step = 1 if event == "start" else -1
            inside["verbatim"] += step * (tag in markup.verbatim)
            if tag in markup.cells:
                inside["cell"] += step
                pieces.append(" ")
            if event == "start" and element.text and (markup.texts is None or tag in markup.texts):
                pieces.append(element.text)
        if event != "start" and element is not root and element.tail and markup.texts is None:
            pieces.append(element.tail)
    end_line()
    return "\n".join(line for line in lines if line)


def read_html(_path: str, content: bytes, options: ReadOptions) -> Iterator[Section]:
    """A page's main part, its title in front of it.

    The main part is `main`, or the only `article`, or the body without navigation, footer and asides.
    """
    declared = _DECLARED.search(content[:_DECLARATION_BYTES])
    text, encoding = decode(content, options.encoding, declared[1].decode("ascii") if declared else None)
    section = html_section(text)
    if section.title and not (section.text or "").startswith(section.title):
        section = Section(f"{section.title}\n{section.text}".strip(), title=section.title, language=section.language)
    yield Section(section.text, title=section.title, language=section.language, encoding=encoding)


def html_section(text: str) -> Section:
    """Text, title and language of an HTML page.

    Raises:
        DependencyError: lxml is not installed.
        SourceError: elements are nested so deep that text would be lost.
    """
    etree, html = _lxml()
    parser = html.HTMLParser(encoding="utf-8", huge_tree=True, no_network=True)
    content = text.encode("utf-8", "surrogatepass")
    try:
        root = html.document_fromstring(content, parser=parser)
    except etree.ParserError:  # nothing in it
        return Section("")
    if any("depth" in entry.message.lower() for entry in parser.error_log):
        raise SourceError(SourceFault.FILE_UNREADABLE, "its elements are nested too deep")
    title = title_of(root.findtext(".//title"), *root.xpath("//meta[@property='og:title']/@content"))
    heading = next((markup_text(element, _WHOLE_PAGE) for element in root.iter("h1")), None)
    language = title_of(root.get("lang"), root.get("{http://www.w3.org/XML/1998/namespace}lang"))
    return Section(_main_text(root), title=title_of(title, heading), language=language)


def _main_text(root: _Element) -> str:
    mains = root.xpath("//main | //*[@role='main']") or root.xpath("//article")
    body = root.find("body")
    body = root if body is None else body
    if len(mains) == 1 and (text := markup_text(mains[0], _MAIN_PART)):
        return text
    return markup_text(body, _BODY) or markup_text(body, _WHOLE_PAGE)


def parse_xml(content: bytes) -> _Element:
    """The root of an XML file. External entities are not read, internal ones not expanded.

    Raises:
        DependencyError: lxml is not installed.
        SourceError: it is no XML.
    """
    etree, _ = _lxml()
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True, load_dtd=False)
    try:
        root: _Element = etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise SourceError(SourceFault.FILE_UNREADABLE, f"not XML ({error})") from error
    return root


def _lxml() -> tuple[Any, Any]:
    library("lxml", "HTML, OpenDocument and EPUB files", "text")
    from lxml import etree, html

    return etree, html
