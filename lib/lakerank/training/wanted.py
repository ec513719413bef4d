"""Which documents of a lake can be trained on: the others are neither decoded nor kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file


@dataclass(frozen=True)
class Wanted:
    """Documents by id, and all of some topics where documents have one."""

    ids: frozenset[str]
    topic: str | None
    topics: frozenset[str]

    def of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of documents that are wanted."""
        ids = batch.column("doc_id").to_pylist()
        topics = batch.column(self.topic).to_pylist() if self.topic else [None] * len(ids)
        kept = [one in self.ids or topic in self.topics for one, topic in zip(ids, topics, strict=True)]
        return batch.filter(pa.array(kept, pa.bool_()))


def wanted_documents(storage: Storage, documents: str, queries: str, pairs: Sequence[str], topic: str | None) -> Wanted:
    """Documents that some table of pairs names for a query of the lake's; and, with a topic, those about what a query
    or a document named so is about: rows of one topic are relevant to each other.

    Raises:
        SchemaError: a column is missing.
        StorageError: a table cannot be read.
    """
    asking, topics = set(), set()
    for query_id, about in _rows(storage, queries, "query_id", topic):
        asking.add(query_id)
        topics.add(about)
    ids = {
        doc_id for uri in pairs for doc_id, query_id in _rows(storage, uri, "doc_id", "query_id") if query_id in asking
    }
    if topic:
        topics |= {about for doc_id, about in _rows(storage, documents, "doc_id", topic) if doc_id in ids}
    return Wanted(frozenset(ids), topic, frozenset(about for about in topics if about))


def _rows(storage: Storage, uri: str, id_name: str, other: str | None) -> Iterator[tuple[str, str | None]]:
    """An id and another column of a table, row by row; None where there is no other column."""
    names = (id_name, other) if other else (id_name,)
    schema = pa.schema([pa.field(name, pa.string(), nullable=name != id_name) for name in names])
    for fragment in fragments(storage, uri, schema):
        for _, _, batch in read_table_file(storage, fragment.file.uri, schema):
            ids = batch.column(0).to_pylist()
            yield from zip(ids, batch.column(1).to_pylist() if other else [None] * len(ids), strict=True)
