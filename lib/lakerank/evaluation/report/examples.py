"""Queries to look at: what stood at the top of their lists before and after, fetched by reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from lakerank import schemas
from lakerank.evaluation.attributes import Attributes, fetch_rows, read_attributes
from lakerank.evaluation.inputs import NAME, LakeTables
from lakerank.evaluation.report.shortlist import Line, Shortlisted
from lakerank.lake.blobs import Blob
from lakerank.lake.storage import Storage

#: Characters of a text that are shown.
SNIPPET = 240


@dataclass(frozen=True, slots=True)
class Shown:
    """A query or document as people see it. `image` is the stored image; `text` is cut to `SNIPPET` characters."""

    id: str
    name: str | None
    text: str | None
    image: bytes | None

    @property
    def label(self) -> str:
        """One line: the text of what is a text, else its name, else its id."""
        return (self.text if self.image is None else None) or self.name or self.text or self.id


@dataclass(frozen=True, slots=True)
class Placed:
    """A document at a place of a list."""

    document: Shown
    line: Line

    @property
    def is_relevant(self) -> bool:
        return self.line.judgement is not None and self.line.judgement > 0


@dataclass(frozen=True, slots=True)
class Example:
    """A query with the top of its lists before and after reranking."""

    query: Shown
    entry: Shortlisted
    before: tuple[Placed, ...]
    after: tuple[Placed, ...]

    @property
    def labels(self) -> Mapping[str, str]:
        """What the queries table says of the query, besides its name."""
        return {name: value for name, value in self.entry.labels.items() if name != NAME}


def build(storage: Storage, tables: LakeTables, chosen: Sequence[Shortlisted]) -> list[Example]:
    """The chosen queries with their content and that of the documents at the top of their lists.

    Raises:
        StorageError: a table has changed since it was read.
    """
    wanted = {line.doc_id for one in chosen for line in (*one.before, *one.after)}
    queries = _rows(storage, tables.queries, schemas.QUERIES, {one.query_id for one in chosen})
    documents = _rows(storage, tables.documents, schemas.DOCUMENTS, wanted)
    return [
        Example(
            queries[one.query_id],
            one,
            tuple(Placed(documents[line.doc_id], line) for line in one.before),
            tuple(Placed(documents[line.doc_id], line) for line in one.after),
        )
        for one in chosen
    ]


def _rows(storage: Storage, uri: str, schema: pa.Schema, ids: set[str]) -> dict[str, Shown]:
    attributes = read_attributes(storage, uri, schema, (NAME,), ids)
    found = fetch_rows(storage, attributes, ids, schema.names[0])
    return {ident: _shown(ident, found.get(ident), attributes.get(ident)) for ident in ids}


def _shown(ident: str, blob: Blob | None, attributes: Attributes | None) -> Shown:
    """What is known of a row; an id that is in no table is shown as it is."""
    name = attributes.extra.get(NAME) if attributes else None
    if blob is None:
        return Shown(ident, name, None, None)
    text = None if blob.text is None else " ".join(blob.text.decode(errors="replace").split())
    if text and len(text) > SNIPPET:
        text = f"{text[:SNIPPET].rstrip()}…"
    return Shown(ident, name, text, blob.image)
