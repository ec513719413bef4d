"""Rows of documents and queries from sections of files and from records: their ids, chunks and metadata."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

import pyarrow as pa

from lakerank import schemas
from lakerank.ingest.readers.reader import ReadOptions, Section
from lakerank.ingest.source import SourceFile
from lakerank.ingest.tables import ContentRow

#: Columns that a row has in any case: `--keep` need not name them.
METADATA = frozenset(field.name for field in (*schemas.DOCUMENT_METADATA, *schemas.QUERY_METADATA))

#: A cut may make a chunk shorter by this share to stand at the end of a paragraph, else of a line, a sentence, a word.
_SLACK = 0.3

#: Ends of paragraphs, lines, sentences (of any script; those with a full stop of ASCII need white space) and words.
_ENDS = tuple(
    re.compile(pattern)
    for pattern in (r"\n[ \t]*\n\s*", r"\n\s*", r"[.!?…]['\"”’»)\]]*\s+|[。！？｡।॥։؟۔።၊။៖ฯ]['\"”’»」』）]*\s*", r"\s+")
)


class Metadata(NamedTuple):
    """The columns of `schemas.DOCUMENT_METADATA`, in their order."""

    path: str | None = None
    page: int | None = None
    title: str | None = None
    language: str | None = None
    size: int | None = None
    modified: datetime | None = None
    group_id: str | None = None
    place: str | None = None
    search_text: str | None = None


def extra_columns(options: ReadOptions) -> list[pa.Field]:
    """The columns of a table beside its content: its metadata, and the fields that are kept."""
    metadata = {"documents": schemas.DOCUMENT_METADATA, "queries": schemas.QUERY_METADATA}.get(options.table, [])
    return [*metadata, *(pa.field(name, pa.string()) for name in kept_fields(options))]


def kept_fields(options: ReadOptions) -> list[str]:
    """The fields of `--keep` that are no metadata of the table already, and of queries the instruction."""
    metadata = METADATA if options.table == "documents" else {"language"}
    always = ["instruction"] if options.table == "queries" else []
    return [name for name in dict.fromkeys([*always, *options.keep]) if name not in metadata]


def section_rows(file: SourceFile, section: Section, options: ReadOptions) -> Iterator[ContentRow]:
    """The rows of a section of a file: ids are the file's path and the place, `name.pdf#page=1`."""
    place = section.place or None
    metadata = Metadata(
        file.path, section.page, section.title, section.language, file.size, file.modified,
        file.path if place else None, place, section.search_text,
    )  # fmt: skip
    row = ContentRow(f"{file.path}#{place}" if place else file.path, section.text, section.image)
    return content_rows(row, metadata, (None,) * len(kept_fields(options)), options)


def content_rows(
    row: ContentRow, metadata: Metadata, kept: tuple[str | None, ...], options: ReadOptions
) -> Iterator[ContentRow]:
    """A row with its extra columns; of a long text one row a chunk (`name.txt#chunk=2`), where chunks are asked for."""
    if options.table == "queries":
        yield ContentRow(row.id, row.text, row.image, (metadata.language, *kept))
    elif options.chunk is None or row.image is not None or len(row.text or "") <= options.chunk:
        yield ContentRow(row.id, row.text, row.image, (*metadata, *kept))
    else:
        text, joint, group_id = row.text or "", "&" if metadata.place else "#", metadata.group_id or row.id
        spans = chunk_spans(text, options.chunk, options.chunk_overlap)
        for number, (first, end) in enumerate(spans, start=1):
            place = f"{f'{metadata.place}&' if metadata.place else ''}chars={first}-{end}"
            chunk = metadata._replace(group_id=group_id, place=place)
            yield ContentRow(f"{row.id}{joint}chunk={number}", text[first:end], None, (*chunk, *kept))


def chunk_spans(text: str, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """First and last+1 character of each chunk of at most `size` characters; a text that is no longer is one chunk.

    Each chunk begins at most `overlap` characters before the end of the one before, at the start of a word where there
    is one. Every character is in a chunk; letters are not cut from their marks. The same text, the same spans.
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
    match = _ENDS[-1].search(text, max(begin - 1, 0), end)
    return match.end() if match and match.end() < end else begin


def _whole_letters(text: str, end: int) -> int:
    """An earlier cut that does not separate a letter from its marks, where one is near."""
    for place in range(end, max(end - 16, 0), -1):
        if not _is_mark(text[place]):
            return place
    return end


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Mc", "Me") or character in "\u200d\ufe0f"
