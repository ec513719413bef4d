"""What is known of pairs beside judgements: the first stage's candidates, and a teacher's logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from lakerank.errors import SchemaError
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.schemas import CANDIDATES

#: For each query row, what is known of some document rows.
ByQuery = tuple[Mapping[int, float], ...]

#: A teacher's scores, for instance `ranked/run_id=R` of a run with a larger model.
TEACHER = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),
    ]
)


def read_candidates(storage: Storage, uri: str, doc_ids: Sequence[str], query_ids: Sequence[str]) -> ByQuery:
    """Each query's candidates, best first, with their first-stage scores; with minus the rank where there is no score.

    Raises:
        SchemaError: a column is missing, or no candidate is a document of the lake's for a query of the lake's.
    """
    found: list[list[tuple[float, int, float]]] = [[] for _ in query_ids]
    for query, document, (score, rank) in _pairs(storage, uri, CANDIDATES, doc_ids, query_ids):
        value = score if score is not None else -float(rank) if rank is not None else 0.0
        order = float(rank) if rank is not None else -value
        found[query].append((order, document, value))
    return tuple({document: value for _, document, value in sorted(rows)} for rows in found)


def read_teacher(storage: Storage, uri: str, doc_ids: Sequence[str], query_ids: Sequence[str]) -> ByQuery:
    """Each query's documents with the teacher's logits.

    Raises:
        SchemaError: a column is missing, or no pair is of the lake's.
    """
    found: list[dict[int, float]] = [{} for _ in query_ids]
    for query, document, (logit,) in _pairs(storage, uri, TEACHER, doc_ids, query_ids):
        if logit is not None:
            found[query][document] = float(logit)
    return tuple(found)


def _pairs(
    storage: Storage, uri: str, schema: pa.Schema, doc_ids: Sequence[str], query_ids: Sequence[str]
) -> Iterator[tuple[int, int, tuple[float | None, ...]]]:
    """(query row, document row, other columns) of the pairs that are the lake's."""
    documents = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    queries = {query_id: row for row, query_id in enumerate(query_ids)}
    others = [name for name in schema.names if name not in ("query_id", "doc_id")]
    some = False
    for fragment in fragments(storage, uri, schema):
        for _, _, batch in read_table_file(storage, fragment.file.uri, schema):
            columns = [batch.column(name).to_pylist() for name in ("query_id", "doc_id", *others)]
            for query_id, doc_id, *values in zip(*columns, strict=True):
                query, document = queries.get(query_id), documents.get(doc_id)
                if query is not None and document is not None:
                    some = True
                    yield query, document, tuple(values)
    if not some:
        raise SchemaError(f"{uri}: no row names a query and a document of the training lake; is it of another lake?")
