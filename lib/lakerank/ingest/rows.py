"""Rows of documents and queries from sections of files and from records: their ids, chunks and metadata."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

import pyarrow as pa

from lakerank import schemas
from lakerank.ingest.chunks import chunk_spans
from lakerank.ingest.readers.reader import ReadOptions, Section
from lakerank.ingest.source import SourceFile
from lakerank.ingest.tables import ContentRow

#: Columns that a row has in any case: `--keep` need not name them.
METADATA = frozenset(field.name for field in (*schemas.DOCUMENT_METADATA, *schemas.QUERY_METADATA))


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


def extra_columns(options: ReadOptions) -> list[pa.Field | str]:
    """The columns of a table beside its content: its metadata, and the fields that are kept."""
    metadata = {"documents": schemas.DOCUMENT_METADATA, "queries": schemas.QUERY_METADATA}.get(options.table, [])
    return [*metadata, *kept_fields(options)]


def kept_fields(options: ReadOptions) -> list[str]:
    """The fields of `--keep` that are no metadata of the table already."""
    metadata = METADATA if options.table == "documents" else {"language"}
    return [name for name in options.keep if name not in metadata]


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
