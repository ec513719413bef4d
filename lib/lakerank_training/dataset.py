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
from lakerank.lake.columns import decode_text
from lakerank.lake.images.files import ImageFiles, UnreadableImage, row_images
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.limits import Limits
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.images import PatchShape, load_pixels
from lakerank.records import RejectReason
from lakerank.schemas import CANDIDATES, CONTENT, DOCUMENTS, QRELS, QUERIES

log = logging.getLogger(__name__)

#: Row numbers of a table.
Rows = npt.NDArray[np.int64]

#: For each query row, a number for some document rows.
ScoresByQuery = tuple[Mapping[int, float], ...]

#: The rows of a batch that are kept.
SelectRows = Callable[[pa.RecordBatch], pa.RecordBatch]

#: A teacher's scores, for instance `ranked/run_id=R` of a run with a larger model.
TEACHER = pa.schema([*(QRELS.field(name) for name in ("query_id", "doc_id")), pa.field("logit", pa.float32(), False)])


@dataclass(frozen=True)
class DatasetTables:
    """Where the tables of a dataset are, and the columns of documents and queries with a row's topic and its kind."""

    documents: str
    queries: str
    qrels: str
    candidates: str | None = None
    teacher: str | None = None
    topic: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Table:
    """The documents or the queries, in file order. `images` index the dataset's images, -1 for none.

    Without a column of kinds a row's is `picture` or `text`.
    """

    ids: tuple[str, ...]
    texts: tuple[str | None, ...]
    images: Rows
    topics: Rows  # -1 for a query whose topic is not known
    kinds: tuple[str, ...]


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

    `topics` are their names, None for a document by itself; `has_topics`: rows may share theirs. `grades[q]` maps the
    topics that are relevant to query q to their grade.
    `candidates[q]` and `teacher[q]` map document rows to first-stage scores, best first, and to a teacher's logits;
    both are empty where there is no such table.
    """

    documents: Table
    queries: Table
    topics: tuple[str | None, ...]
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

    def same_image(self, documents: Rows, queries: Rows) -> npt.NDArray[np.bool_]:
        """Which documents show the image that queries show: (D,), (Q,) -> (D, Q)."""
        shown = self.queries.images[queries]
        same: npt.NDArray[np.bool_] = (self.documents.images[documents][:, None] == shown[None]) & (shown >= 0)[None]
        return same

    def is_relevant(self, document: int, query: int) -> bool:
        """Whether a judgement or an equal topic makes a document row relevant to a query row."""
        topic = int(self.documents.topics[document])
        return topic in self.grades[query] or topic == self.queries.topics[query]


def read_dataset(storage: Storage, tables: DatasetTables, images: ImageStore, *, whole: bool = False) -> Dataset:
    """Read the tables and join them. Rows that scoring would reject are left out, with a warning.

    Documents that no table names for a query of the dataset are not kept or decoded, unless they share a topic with a
    query or with such a document, or the dataset is to be `whole`.

    Raises:
        SchemaError: a column is missing, or no judgement names a query and a document that are there.
        StorageError: a table cannot be read.
    """
    named = None if whole else _named_documents(storage, tables)
    documents, document_topics = _read_table(storage, tables, DOCUMENTS, images, named)
    queries, query_topics = _read_table(storage, tables, QUERIES, images)
    named_documents = zip(document_topics, documents.ids, strict=True)
    keys = [(name, None) if name else (None, doc_id) for name, doc_id in named_documents]
    numbers: dict[tuple[str | None, str | None], int] = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    documents = replace(documents, topics=np.array([numbers[key] for key in keys], dtype=np.int64))
    pairs = PairReader(storage, documents.ids, queries.ids)
    grades: list[dict[int, int]] = [{} for _ in queries.ids]
    for query, document, (relevance,) in pairs.read(tables.qrels, QRELS):
        topic = int(documents.topics[document])
        if relevance > 0:
            grades[query][topic] = max(relevance, grades[query].get(topic, 0))
    if not any(grades):
        names = f"a query of {tables.queries} and a document of {tables.documents}"
        raise SchemaError(f"{tables.qrels}: no judgement above 0 names {names}")
    # What a query is itself about comes first; a judgement may name other topics too.
    judged = [max(graded, key=lambda topic: graded[topic]) if graded else -1 for graded in grades]
    topics = [numbers.get((name, None), topic) for name, topic in zip(query_topics, judged, strict=True)]
    return Dataset(
        documents=documents,
        queries=replace(queries, topics=np.array(topics, dtype=np.int64)),
        topics=tuple(name for name, _ in numbers),
        has_topics=tables.topic is not None,
        grades=tuple(grades),
        images=images,
        candidates=pairs.scores(tables.candidates, CANDIDATES, _first_stage) if tables.candidates else (),
        teacher=pairs.scores(tables.teacher, TEACHER, lambda logit: (0.0, logit)) if tables.teacher else (),
    )


def _named_documents(storage: Storage, tables: DatasetTables) -> SelectRows:
    """Selects documents that a table names, and those of a topic that is named or requested."""
    topic = tables.topic
    queries = dict(_id_and(storage, tables.queries, "query_id", topic))
    pairs = [uri for uri in (tables.qrels, tables.candidates, tables.teacher) if uri]
    named = (pair for uri in pairs for pair in _id_and(storage, uri, "doc_id", "query_id"))
    ids = {doc_id for doc_id, query_id in named if query_id in queries}
    topics = set(queries.values())
    if topic:
        topics |= {about for doc_id, about in _id_and(storage, tables.documents, "doc_id", topic) if doc_id in ids}

    def select(batch: pa.RecordBatch) -> pa.RecordBatch:
        kept = pc.is_in(batch.column("doc_id"), pa.array(sorted(ids), pa.string()))
        if topic:
            names = pa.array(sorted(filter(None, topics)), pa.string())
            kept = pc.or_(kept, pc.is_in(batch.column(topic), names))
        return batch.filter(kept)

    return select


def _id_and(storage: Storage, uri: str, id_name: str, other: str | None) -> Iterator[tuple[str, str | None]]:
    """An id and another column of a table, row by row; None where there is no other column."""
    schema = pa.schema([pa.field(id_name, pa.string(), False), *([pa.field(other, pa.string())] if other else [])])
    return ((row[0], row[1] if other else None) for row in _rows(storage, uri, schema))


def _read_table(
    storage: Storage, tables: DatasetTables, schema: pa.Schema, images: ImageStore, select: SelectRows | None = None
) -> tuple[Table, Sequence[str | None]]:
    """The documents or the queries, by their schema, and the topic that each row names."""
    uri = tables.documents if schema is DOCUMENTS else tables.queries
    names = list(dict.fromkeys(name for name in (tables.topic, tables.kind) if name))
    read = [schema.field(name) for name in schema.names if name in (schema.names[0], *CONTENT, "instruction")]
    read += [pa.field(name, pa.string()) for name in names]
    files = ImageFiles(storage, images.limits.max_source_bytes)
    rows: list[tuple[Any, ...]] = []
    rejected: list[str] = []
    instructed = 0
    for values in _rows(storage, uri, pa.schema(read), select):
        row = dict(zip((field.name for field in read), values, strict=True))
        try:
            text, image = _content(row, files, images)
        except (RejectedInput, UnreadableImage) as error:
            rejected.append(f"{values[0]}: {error}")
            continue
        instructed += bool((row.get("instruction") or b"").strip())
        kind = row[tables.kind] if tables.kind else "text" if image < 0 else "picture"
        rows.append((values[0], text, image, kind or "", row.get(tables.topic or "")))
    if rejected:
        log.warning("%s: %d rows left out, the first of them %s", uri, len(rejected), rejected[0])
    if instructed:
        log.warning("%s: %d queries have an instruction: no model that is trained has a place for it", uri, instructed)
    ids, texts, shown, kinds, topics = zip(*rows, strict=True) if rows else ((),) * 5
    none = np.zeros(0, dtype=np.int64)
    return Table(ids, texts, np.array(shown, dtype=np.int64), none, kinds), topics


def _content(row: Mapping[str, Any], files: ImageFiles, images: ImageStore) -> tuple[str | None, int]:
    """A row's text, None where it is blank, and the index of its image."""
    try:
        text = decode_text(row["text"])
    except UnicodeDecodeError as error:
        raise RejectedInput(RejectReason.TEXT_UNDECODABLE, str(error.reason)) from error
    if text is not None and not text.strip():
        text = None
    encoded = files.images(row_images(row))
    if len(encoded) > 1:
        raise RejectedInput(RejectReason.MODALITY_UNSUPPORTED, f"{len(encoded)} images, and training reads one")
    image = images.add(next(iter(encoded), None))
    if text is None and image < 0:
        raise RejectedInput(RejectReason.EMPTY_DOCUMENT, "neither text nor image")
    return text, image


@dataclass(frozen=True)
class PairReader:
    """Reads tables of query–document pairs, of which those count that are of a dataset with these ids."""

    storage: Storage
    documents: Sequence[str]
    queries: Sequence[str]

    def scores(self, uri: str, schema: pa.Schema, place: Callable[..., tuple[float, float | None]]) -> ScoresByQuery:
        """Each query's documents with a number, by what `place` makes of the other columns: the order, and the number.

        Raises:
            SchemaError: a column is missing, or no pair is of the dataset's.
        """
        placed: list[list[tuple[float, int, float]]] = [[] for _ in self.queries]
        for query, document, values in self.read(uri, schema):
            order, number = place(*values)
            if number is not None:
                placed[query].append((order, document, number))
        if not any(placed):
            lake = "no row names a query and a document of the training lake"
            raise SchemaError(f"{uri}: {lake}; is it of another lake?")
        return tuple({document: number for _, document, number in sorted(pairs)} for pairs in placed)

    def read(self, uri: str, schema: pa.Schema) -> Iterator[tuple[int, int, list[Any]]]:
        """(query row, document row, other columns) of the pairs that are the dataset's."""
        documents, queries = ({name: row for row, name in enumerate(ids)} for ids in (self.documents, self.queries))
        for query_id, doc_id, *others in _rows(self.storage, uri, schema):
            query, document = queries.get(query_id), documents.get(doc_id)
            if query is not None and document is not None:
                yield query, document, others


def _first_stage(score: float | None, rank: int | None) -> tuple[float, float]:
    """In the order of ranks, else of scores; minus the rank where there is no score."""
    number = score if score is not None else -float(rank or 0)
    return -number if rank is None else float(rank), number


def _rows(storage: Storage, uri: str, schema: pa.Schema, select: SelectRows | None = None) -> Iterator[Any]:
    for fragment in fragments(storage, uri, schema):
        for _, _, batch in read_table_file(storage, fragment.file, schema):
            yield from zip(
                *(column.to_pylist() for column in (select(batch) if select else batch).columns), strict=True
            )
