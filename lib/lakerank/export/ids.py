"""Ids in formats that cannot hold every string: escaped so that nothing is lost, or refused with a reason."""

from __future__ import annotations

from urllib.parse import quote

from lakerank.errors import ExportError

#: Elasticsearch and OpenSearch take no longer _id.
MOST_BYTES = 512


def escaped(text: str) -> str:
    """An id without whitespace: whitespace, control characters and % as their UTF-8 bytes in hex, as in a URL.

    `urllib.parse.unquote` gives the id back. Ids that have none of these stay as they are.

    Raises:
        ExportError: the id is empty, which no format in columns can show.
    """
    if not text:
        raise ExportError("an id is empty, and this format has no way to write it; give the document or query an id")
    if text.isascii() and text.isprintable() and " " not in text and "%" not in text:
        return text
    unsafe = {char for char in text if char == "%" or char.isspace() or not char.isprintable()}
    return "".join(quote(char, safe="") if char in unsafe else char for char in text)


def checked_bulk_id(text: str) -> str:
    """An id that a bulk request takes.

    Raises:
        ExportError: it is empty or longer than 512 bytes.
    """
    size = len(text.encode())
    if not 0 < size <= MOST_BYTES:
        raise ExportError(
            f"id {text[:40]!r}… has {size} bytes: an index takes 1 to {MOST_BYTES} as _id; shorten the lake's ids"
        )
    return text


def checked_vespa_id(text: str) -> str:
    """An id that Vespa takes: text as XML 1.1 has it, without control characters but tab and line ends.

    Source: com.yahoo.text.Text.isTextCharacter in vespa-engine/vespa.

    Raises:
        ExportError: it is empty or has a character that Vespa refuses.
    """
    if not text:
        raise ExportError("an id is empty: Vespa needs one; give the document or query an id")
    for character in text:
        point = ord(character)
        control = point < 0x20 and character not in "\t\n\r"
        if control or 0xFDD0 <= point <= 0xFDDF or (point > 0xFFFF and point & 0xFFFF >= 0xFFFE):
            raise ExportError(
                f"id {text[:40]!r} holds U+{point:04X}, which Vespa refuses in an id; rename it in the lake"
            )
    return text
