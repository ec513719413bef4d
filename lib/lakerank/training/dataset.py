"""A training dataset in memory: the texts of a lake, its images as pixels, and what is relevant to what, by topic."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.errors import SchemaError
from lakerank.lake.storage import Storage
from lakerank.lake.tables import decode_text, fragments, read_table_file
from lakerank.limits import Limits
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.images import PatchShape, load_pixels
from lakerank.records import RejectReason
from lakerank.schemas import CANDIDATES, DOCUMENTS, QRELS, QUERIES

log = logging.getLogger(__name__)

#: Row numbers of a table.
Rows = npt.NDArray[np.int64]

#: For each query row, a number for some document rows.
ScoresByQuery = tuple[Mapping[int, float], ...]

#: The rows of a batch that are kept.
SelectRows = Callable[[pa.RecordBatch], pa.RecordBatch]

#: A teacher's scores, for instance `ranked/run_id=R` of a run with a larger model.
TEACHER = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class TablePaths:
    """Where the tables of a dataset are; `candidates` and `teacher` are optional."""

    documents: str
    queries: str
    qrels: str
    candidates: str | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class ExtraColumns:
    """Columns beyond the contract's: the topic of a row, its kind, and those that select rows."""

    topic: str | None = None
    kind: str | None = None
    selecting: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(name for name in (self.topic, self.kind, *self.selecting) if name))


@dataclass(frozen=True)
class Table:
    """The documents or the queries, in file order. `images` index the dataset's images, -1 for none."""

    ids: tuple[str, ...]
    texts: tuple[str | None, ...]
    images: Rows
    topics: Rows  # of documents; -1 for a query whose topic is not known
    kinds: tuple[str, ...]
    columns: Mapping[str, tuple[str | None, ...]]

    def rows_where(self, only: Mapping[str, tuple[str, ...]]) -> npt.NDArray[np.bool_]:
        """Rows whose columns hold one of the values, or nothing: (N,)."""
        selected = np.ones(len(self.ids), dtype=bool)
        for name, values in only.items():
            selected &= np.array([value is None or value in values for value in self.columns[name]], dtype=bool)
        return selected


@dataclass
class ImageStore:
    """Distinct images as scoring decodes and resizes them, (height, width, 3) uint8, in the order of first use."""

    limits: Limits
    patches: PatchShape = field(default_factory=PatchShape)
    pixels: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    _indices: dict[bytes, int] = field(default_factory=dict)

    def add(self, encoded: bytes | None) -> int:
        """The index of an image; -1 for none.

        Raises:
            RejectedInput: it cannot be decoded, or is over a limit.
        """
        if encoded is None:
            return -1
        key = hashlib.blake2b(encoded, digest_size=16).digest()
        if key not in self._indices:
            self.pixels.append(load_pixels(encoded, self.limits, self.patches))
            self._indices[key] = len(self.pixels) - 1
        return self._indices[key]


@dataclass(frozen=True)
class Dataset:
    """Documents, queries and judgements. A topic is what documents are about; without a topic, each is its own.

    `grades[q]` maps the topics that are relevant to query q to their grade; `has_topics`: some rows share theirs.
    `candidates[q]` and `teacher[q]` map document rows to first-stage scores, best first, and to a teacher's logits;
    both are empty where there is no such table.
    """

    documents: Table
    queries: Table
    topics: int
    has_topics: bool
    grades: tuple[Mapping[int, int], ...]
    images: ImageStore  # datasets may share one
    candidates: ScoresByQuery = ()
    teacher: ScoresByQuery = ()

    def relevance(self, documents: Rows, queries: Rows) -> npt.NDArray[np.int64]:
        """Grades (D, Q) of rows: what judgements say of a document's topic, and at least 1 where topics are equal."""
        topics = self.documents.topics[documents]
        grades = np.array([[self.grades[query].get(int(topic), 0) for query in queries] for topic in topics])
        relevance: npt.NDArray[np.int64] = np.maximum(grades, self.same_topic(documents, queries))
        return relevance

    def same_topic(self, documents: Rows, queries: Rows) -> npt.NDArray[np.bool_]:
        """Which documents are about what queries are about: (D,), (Q,) -> (D, Q)."""
        same: npt.NDArray[np.bool_] = self.documents.topics[documents][:, None] == self.queries.topics[queries][None]
        return same

    def is_relevant(self, document: int, query: int) -> bool:
        """Whether a judgement or an equal topic makes a document row relevant to a query row."""
        topic = int(self.documents.topics[document])
        return topic in self.grades[query] or topic == self.queries.topics[query]

    def texts(self) -> list[str]:
        """Every distinct text, in order."""
        return list(dict.fromkeys(text for text in (*self.documents.texts, *self.queries.texts) if text))


def read_dataset(
    storage: Storage, paths: TablePaths, columns: ExtraColumns, images: ImageStore, *, whole: bool = False
) -> Dataset:
    """Read the tables and join them. Rows that scoring would reject are left out, with a warning.

    Documents that no table names for a query of the dataset are not kept or decoded, unless they share a topic with a
    query or with such a document, or the dataset is to be `whole`.

    Raises:
        SchemaError: a column is missing, or no judgement names a query and a document that are there.
        StorageError: a table cannot be read.
    """
    named = None if whole else _named_documents(storage, paths, columns.topic)
    documents = _read_table(storage, paths.documents, DOCUMENTS, columns, images, named)
    queries = _read_table(storage, paths.queries, QUERIES, columns, images)
    names = documents.columns[columns.topic] if columns.topic else (None,) * len(documents.ids)
    keys = [(True, name) if name else (False, doc_id) for name, doc_id in zip(names, documents.ids, strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    documents = replace(documents, topics=np.array([numbers[key] for key in keys], dtype=np.int64))
    ids = (documents.ids, queries.ids)
    grades = _read_grades(storage, paths.qrels, ids, documents.topics)
    if not any(grades):
        raise SchemaError(
            f"{paths.qrels}: no judgement above 0 names a query of {paths.queries} and a document of {paths.documents}"
        )
    # What a query is itself about comes first; a judgement may name other topics too.
    topics = [max(graded, key=lambda topic: graded[topic]) if graded else -1 for graded in grades]
    if columns.topic:
        named_topics = zip(queries.columns[columns.topic], topics, strict=True)
        topics = [numbers.get((True, name or ""), judged) for name, judged in named_topics]
    return Dataset(
        documents=documents,
        queries=replace(queries, topics=np.array(topics, dtype=np.int64)),
        topics=len(numbers),
        has_topics=columns.topic is not None,
        grades=tuple(grades),
        images=images,
        candidates=_read_candidates(storage, paths.candidates, ids) if paths.candidates else (),
        teacher=_read_teacher(storage, paths.teacher, ids) if paths.teacher else (),
    )


def _named_documents(storage: Storage, paths: TablePaths, topic: str | None) -> SelectRows:
    """Selects documents that a table names, and those of a topic that is named or asked for."""
    queries = dict(_id_and(storage, paths.queries, "query_id", topic))
    pairs = [uri for uri in (paths.qrels, paths.candidates, paths.teacher) if uri]
    named = (pair for uri in pairs for pair in _id_and(storage, uri, "doc_id", "query_id"))
    ids = {doc_id for doc_id, query_id in named if query_id in queries}
    topics = set(queries.values())
    if topic:
        topics |= {about for doc_id, about in _id_and(storage, paths.documents, "doc_id", topic) if doc_id in ids}

    def select(batch: pa.RecordBatch) -> pa.RecordBatch:
        kept = pc.is_in(batch.column("doc_id"), pa.array(sorted(ids), pa.string()))
        if topic:
            names = pa.array(sorted(filter(None, topics)), pa.string())
            kept = pc.or_(kept, pc.is_in(batch.column(topic), names))
        return batch.filter(kept)

    return select


def _id_and(storage: Storage, uri: str, id_name: str, other: str | None) -> Iterator[tuple[str, str | None]]:
    """An id and another column of a table, row by row; None where there is no other column."""
    names = (id_name, other) if other else (id_name,)
    schema = pa.schema([pa.field(name, pa.string(), nullable=name != id_name) for name in names])
    for ids, *others in _columns(storage, uri, schema):
        yield from zip(ids, others[0] if others else [None] * len(ids), strict=True)


def _read_table(
    storage: Storage,
    uri: str,
    schema: pa.Schema,
    columns: ExtraColumns,
    images: ImageStore,
    select: SelectRows | None = None,
) -> Table:
    names = columns.names()
    id_name = schema.names[0]
    wide = pa.schema([*(schema.field(name) for name in (id_name, "text", "image"))])
    for name in names:
        wide = wide.append(pa.field(name, pa.string()))
    rows: list[tuple[str, str | None, int, list[str | None]]] = []
    rejected: list[str] = []
    for batch in _batches(storage, uri, wide):
        batch = batch if select is None else select(batch)
        for item_id, raw, encoded, *others in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            try:
                rows.append((item_id, *_content(raw, encoded, images), others))
            except RejectedInput as error:
                rejected.append(f"{item_id}: {error}")
    if rejected:
        log.warning("%s: %d rows left out, the first of them %s", uri, len(rejected), rejected[0])
    extra = {name: tuple(others[place] for *_, others in rows) for place, name in enumerate(names)}
    kinds = extra[columns.kind] if columns.kind else ["text" if image < 0 else "picture" for _, _, image, _ in rows]
    return Table(
        ids=tuple(row[0] for row in rows),
        texts=tuple(row[1] for row in rows),
        images=np.array([row[2] for row in rows], dtype=np.int64),
        topics=np.zeros(0, dtype=np.int64),
        kinds=tuple(kind or "" for kind in kinds),
        columns=extra,
    )


def _content(raw: bytes | None, encoded: bytes | None, images: ImageStore) -> tuple[str | None, int]:
    """A row's text, None where it is blank, and the index of its image."""
    try:
        text = decode_text(raw)
    except UnicodeDecodeError as error:
        raise RejectedInput(RejectReason.TEXT_UNDECODABLE, str(error.reason)) from error
    if text is not None and not text.strip():
        text = None
    image = images.add(encoded)
    if text is None and image < 0:
        raise RejectedInput(RejectReason.EMPTY_DOCUMENT, "neither text nor image")
    return text, image


Ids = tuple[Sequence[str], Sequence[str]]


def _read_grades(storage: Storage, uri: str, ids: Ids, document_topics: Rows) -> list[dict[int, int]]:
    grades: list[dict[int, int]] = [{} for _ in ids[1]]
    for query, document, (relevance,) in _pairs(storage, uri, QRELS, ids):
        if relevance > 0:
            topic = int(document_topics[document])
            grades[query][topic] = max(relevance, grades[query].get(topic, 0))
    return grades


def _read_candidates(storage: Storage, uri: str, ids: Ids) -> ScoresByQuery:
    """Each query's candidates, best first, with their first-stage scores; with minus the rank where there is no score.

    Raises:
        SchemaError: a column is missing, or no candidate is a document of the dataset's for a query of the dataset's.
    """
    candidates: list[list[tuple[float, int, float]]] = [[] for _ in ids[1]]
    for query, document, (score, rank) in _pairs(storage, uri, CANDIDATES, ids):
        value = score if score is not None else -float(rank) if rank is not None else 0.0
        candidates[query].append((float(rank) if rank is not None else -value, document, value))
    if not any(candidates):
        raise _foreign(uri)
    return tuple({document: value for _, document, value in sorted(ordered)} for ordered in candidates)


def _read_teacher(storage: Storage, uri: str, ids: Ids) -> ScoresByQuery:
    """Each query's documents with the teacher's logits.

    Raises:
        SchemaError: a column is missing, or no pair is of the dataset's.
    """
    logits: list[dict[int, float]] = [{} for _ in ids[1]]
    for query, document, (logit,) in _pairs(storage, uri, TEACHER, ids):
        if logit is not None:
            logits[query][document] = float(logit)
    if not any(logits):
        raise _foreign(uri)
    return tuple(logits)


def _foreign(uri: str) -> SchemaError:
    return SchemaError(f"{uri}: no row names a query and a document of the training lake; is it of another lake?")


def _pairs(storage: Storage, uri: str, schema: pa.Schema, ids: Ids) -> Iterator[tuple[int, int, list[Any]]]:
    """(query row, document row, other columns) of the pairs that are the dataset's."""
    documents, queries = ({name: row for row, name in enumerate(names)} for names in ids)
    others = [name for name in schema.names if name not in ("query_id", "doc_id")]
    ordered = pa.schema([schema.field(name) for name in ("query_id", "doc_id", *others)])
    for columns in _columns(storage, uri, ordered):
        for query_id, doc_id, *values in zip(*columns, strict=True):
            query, document = queries.get(query_id), documents.get(doc_id)
            if query is not None and document is not None:
                yield query, document, values


def _columns(storage: Storage, uri: str, schema: pa.Schema) -> Iterator[list[list[Any]]]:
    for batch in _batches(storage, uri, schema):
        yield [column.to_pylist() for column in batch.columns]


def _batches(storage: Storage, uri: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for fragment in fragments(storage, uri, schema):
        for _, _, batch in read_table_file(storage, fragment.file.uri, schema):
            yield batch
