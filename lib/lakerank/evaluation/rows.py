"""Every table of an evaluation as rows of one kind, so that sorting them by query brings together what belongs so."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum

import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.evaluation.attributes import attribute_batches
from lakerank.lake.storage import Storage
from lakerank.lake.tables import read_table_file


class Source(IntEnum):
    """The table that a row comes from."""

    QUERY = 0
    QREL = 1
    CANDIDATE = 2
    RANKED = 3
    AGAINST = 4


#: `place` is a rank, `score` the first stage's or the logit, `grade` the judgement or the label; `modality` is the
#: query's or the document's (see `Modality`). `labels` is what a query's extra columns say, as JSON.
ROWS = pa.schema(
    [
        pa.field("query_id", pa.string()),
        pa.field("doc_id", pa.string()),
        pa.field("source", pa.int8()),
        pa.field("place", pa.int32()),
        pa.field("score", pa.float64()),
        pa.field("relevance", pa.float32()),
        pa.field("grade", pa.int32()),
        pa.field("modality", pa.int8()),
        pa.field("labels", pa.string()),
    ]
)

#: Documents and what they hold.
MODALITIES = pa.schema([pa.field("doc_id", pa.string()), pa.field("modality", pa.int8())])

#: Names of the modalities by their codes: 1 for a text, 2 for an image, added.
MODALITY_NAMES = ("nothing", "text", "image", "text+image")

#: Documents looked up at once.
_LOOKED_UP_ROWS = 1_000_000

_SCHEMAS = {
    Source.QREL: schemas.QRELS,
    Source.CANDIDATE: schemas.CANDIDATES,
    Source.RANKED: schemas.RANKED,
    Source.AGAINST: schemas.RANKED,
}
_COLUMNS = {
    Source.QREL: {"relevance": "grade"},
    Source.CANDIDATE: {"first_stage_rank": "place", "first_stage_score": "score"},
    Source.RANKED: {"rank": "place", "logit": "score", "relevance": "relevance", "label": "grade"},
    Source.AGAINST: {"rank": "place"},
}


def table_rows(storage: Storage, source: Source, uri: str, row_group: int) -> Iterator[pa.RecordBatch]:
    """A row group of qrels, candidates or a ranked list as ROWS; a row without ids is left out.

    Raises:
        SchemaError: a column is missing or of the wrong type.
        StorageError: the file cannot be read.
    """
    taken = _COLUMNS[source]
    schema = _SCHEMAS[source]
    columns = ["query_id", "doc_id", *taken]
    for _, _, batch in read_table_file(storage, uri, schema, columns, row_groups=[row_group]):
        named = {taken.get(name, name): batch[name] for name in columns}
        held = pc.and_(named["query_id"].is_valid(), named["doc_id"].is_valid())
        yield _batch(batch.num_rows, source, named).filter(held)


def query_rows(storage: Storage, uri: str, row_group: int, extras: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A row group of queries as ROWS, with the extra columns asked for as labels."""
    for _, batch in attribute_batches(storage, uri, row_group, schemas.QUERIES, extras):
        found = [
            json.dumps({name: value for name, value in one.items() if value is not None}, ensure_ascii=False)
            for one in batch.select(extras).to_pylist()
        ]
        columns = {"query_id": batch["query_id"], "modality": batch["modality"], "labels": pa.array(found, pa.string())}
        yield _batch(batch.num_rows, Source.QUERY, columns)


def document_modalities(storage: Storage, uri: str, row_group: int) -> Iterator[pa.RecordBatch]:
    """What each document of a row group holds. Columns: MODALITIES."""
    for _, batch in attribute_batches(storage, uri, row_group, schemas.DOCUMENTS, ()):
        yield batch.select(MODALITIES.names)


def with_modalities(candidates: pa.Table, documents: Iterable[pa.RecordBatch]) -> pa.Table:
    """Candidates (ROWS) with the modality of their documents; of documents that share an id the first counts."""
    wanted = pc.unique(candidates["doc_id"])
    found, held, rows = [MODALITIES.empty_table()], [], 0
    for batch in itertools.chain(documents, [None]):
        if batch is not None:
            held.append(batch)
            rows += batch.num_rows
        if batch is None or rows >= _LOOKED_UP_ROWS:  # the ids to look for are hashed anew each time
            table = pa.Table.from_batches(held, MODALITIES)
            found.append(table.filter(pc.is_in(table["doc_id"], value_set=wanted)))
            held, rows = [], 0
    known = pa.concat_tables(found).combine_chunks()
    places = pc.index_in(candidates["doc_id"], value_set=known["doc_id"])
    column = known["modality"].take(places)
    return candidates.set_column(candidates.schema.get_field_index("modality"), ROWS.field("modality"), column)


def by_query(rows: pa.Table) -> pa.Table:
    """Rows in the order that `pair_up` wants."""
    return rows.sort_by([("query_id", "ascending"), ("doc_id", "ascending")])


def _batch(rows: int, source: Source, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    constant = {"source": pa.array([source] * rows, pa.int8())}
    arrays = [
        pc.cast({**constant, **columns}[field.name], field.type) if field.name in columns or field.name in constant
        else pa.nulls(rows, field.type)
        for field in ROWS
    ]  # fmt: skip
    return pa.RecordBatch.from_arrays(arrays, schema=ROWS)
