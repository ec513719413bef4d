"""Long texts in overlapping chunks, cut where a paragraph, a line, a sentence or a word ends."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

#: A cut may make a chunk shorter by this share to stand at the end of a paragraph, else of a line, a sentence, a word.
_SLACK = 0.3

#: Ends of paragraphs, lines, sentences (of any script; those with a full stop of ASCII need white space) and words.
_ENDS = tuple(
    re.compile(pattern)
    for pattern in (r"\n[ \t]*\n\s*", r"\n\s*", r"[.!?…]['\"”’»)\]]*\s+|[。！？｡।॥։؟۔።၊။៖ฯ]['\"”’»」』）]*\s*", r"\s+")
)


_WORD_ENDS = _ENDS[-1]


def chunk_spans(text: str, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """First and last+1 character of each chunk of at most `size` characters; a text that is no longer is one chunk.

    Each chunk begins at most `overlap` characters before the end of the one before, at the start of a word where there
    is one. Every character is in a chunk; letters are not cut from their marks. The same text, the same
    spans.
    """
    start = 0
    while len(text) - start > size:
        end = _cut(text, start + max(1, int(size * (1 - _SLACK))), start + size)
        end = max(_whole_letters(text, end), start + 1)
        yield start, end
        start = max(_overlapping(text, end - overlap, end), start + 1) if overlap else end
        while start < end and _is_mark(text[start]):
            start += 1
    if start < len(text) or not text:
        yield start, len(text)


def _cut(text: str, first: int, last: int) -> int:
    """The best place for a cut from `first` to `last`: the last end of the largest unit that ends there."""
    for ends in _ENDS:
        places = [match.end() for match in ends.finditer(text, first, last) if first <= match.end() <= last]
        if places:
            return places[-1]
    return last


def _overlapping(text: str, begin: int, end: int) -> int:
    """Where a chunk begins that overlaps the one before from `begin` on: at the next word, where one begins there."""
    match = _WORD_ENDS.search(text, max(begin - 1, 0), end)
    return match.end() if match and match.end() < end else begin


def _whole_letters(text: str, end: int) -> int:
    """An earlier cut that does not separate a letter from its marks, where one is near."""
    for place in range(end, max(end - 16, 0), -1):
        if not _is_mark(text[place]):
            return place
    return end


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Mc", "Me") or character in "\u200d\ufe0f"
