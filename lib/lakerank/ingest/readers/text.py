"""Plain texts and Markdown, in UTF-8 or any encoding that a mark, a declaration or the bytes themselves tell."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping

import yaml

from lakerank.ingest.readers.reader import ReadOptions, Section, library, title_of
from lakerank.ingest.rejects import SourceError, SourceFault

#: Longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

#: What browsers read under these names. Source: the labels of encoding.spec.whatwg.org.
_SUPERSETS = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "us-ascii": "cp1252", "iso-8859-9": "cp1254"} | {
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949", "ks_c_5601-1987": "cp949",
    "iso-8859-11": "cp874", "tis-620": "cp874",
}  # fmt: skip

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.{0,65536}?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_HEADING = re.compile(r"^#{1,2}[ \t]+(.+?)[ \t]*#*$|^(?=\S)(.{1,200})\n(?:={3,}|-{3,})[ \t]*$", re.MULTILINE)
_ORG_TITLE = re.compile(r"^#\+title:(.+)$", re.MULTILINE | re.IGNORECASE)

#: Characters of a text in which its title is looked for.
_HEAD = 4096

#: A line of TREC's runs and judgements.
_TREC_RUN = re.compile(r"\S+[ \t]+Q0[ \t]+\S.*[ \t]\d+[ \t]+[-+.\deE]+[ \t]+\S+\s*", re.IGNORECASE)
_TREC_QREL = re.compile(r"\S+[ \t]+(?:0|Q0)[ \t]+\S+[ \t]+-?\d+\s*")


def decode(content: bytes, encoding: str | None = None, declared: str | None = None) -> tuple[str, str | None]:
    """A text, and its encoding where that was guessed.

    What counts, in this order: a byte order mark, UTF-8, `encoding`, the `declared` encoding, a guess.

    Raises:
        SourceError: the text is in no encoding that can be told, or not in `encoding`.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            return _decoded(content[len(mark) :], name), None
    try:
        return content.decode(), None
    except UnicodeDecodeError as error:
        position = error.start
    if encoding:
        return _decoded(content, encoding), None
    if declared and not declared.lower().startswith("utf-"):
        try:
            return content.decode(_SUPERSETS.get(declared.lower(), declared)), None
        except (UnicodeError, LookupError):  # a page that declares another encoding than its own
            pass
    return _guessed(content, position)


def _decoded(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except (UnicodeError, LookupError) as error:
        raise SourceError(SourceFault.TEXT_UNDECODABLE, f"not {encoding} ({error})") from error


def _guessed(content: bytes, position: int) -> tuple[str, str]:
    files = "texts that are not UTF-8 and for which no --encoding is named"
    guesses = list(library("charset_normalizer", files, "text").from_bytes(content))
    best = guesses[0] if guesses else None
    # Among equals it names the first of the alphabet, cp1250; more texts are in Western Europe's.
    equals = (guess for guess in guesses if best and (guess.chaos, guess.coherence) == (best.chaos, best.coherence))
    best = next((guess for guess in equals if guess.encoding == "cp1252"), best)
    if best is None or b"\0" in content:
        detail = f"not UTF-8 at byte {position}, nor in an encoding that can be told; name it with --encoding"
        raise SourceError(SourceFault.TEXT_UNDECODABLE, detail)
    return str(best), best.encoding


def read_text(_path: str, content: bytes, options: ReadOptions) -> Iterator[Section]:
    """A text as it is. TREC's files of judgements and runs are no texts: they are rejects that name the command."""
    text, encoding = decode(content, options.encoding)
    if command := trec_command(text):
        raise SourceError(SourceFault.WRONG_TABLE, command)
    yield Section(text, encoding=encoding)


def read_markup(_path: str, content: bytes, options: ReadOptions) -> Iterator[Section]:
    """Markdown, reStructuredText or Org as it is; the title from its front matter or first heading."""
    text, encoding = decode(content, options.encoding)
    text = text.replace("\r\n", "\n") if "\r\n" in text[:_HEAD] else text
    matter = _front_matter(text)
    body = _FRONT_MATTER.sub("", text[: 2**17])[:_HEAD]
    heading = _ORG_TITLE.search(body) or _HEADING.search(body)
    title = title_of(matter.get("title"), next(filter(None, heading.groups()), None) if heading else None)
    language = title_of(matter.get("lang"), matter.get("language"))
    yield Section(text, title=title, language=language, encoding=encoding)


def _front_matter(text: str) -> Mapping[str, object]:
    match = _FRONT_MATTER.match(text)
    try:
        fields = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def trec_command(text: str) -> str | None:
    """What to use for a text of nothing but TREC's lines; None for any other."""
    lines = [line for line in text[: 2**15].splitlines() if line.strip()][:50]
    if lines and all(map(_TREC_RUN.fullmatch, lines)):
        return "a TREC run: give it to `lakerank candidates --run`"
    if lines and all(map(_TREC_QREL.fullmatch, lines)):
        return "judgements in TREC's form: use --as qrels"
    return None
