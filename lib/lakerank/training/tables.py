"""A training lake in memory: texts, pictures as pixels, and what is relevant to what, by topic."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakerank.errors import SchemaError
from lakerank.lake.storage import Storage
from lakerank.lake.tables import decode_text, fragments, read_table_file
from lakerank.limits import Limits
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.images import PatchShape, load_pixels
from lakerank.records import RejectReason
from lakerank.schemas import DOCUMENTS, QRELS, QUERIES
from lakerank.training.pair_tables import ByQuery, read_candidates, read_teacher
from lakerank.training.wanted import Wanted, wanted_documents

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """One table: its documents or its queries, in file order. `pictures` index the lake's pixels, -1 for none."""

    ids: tuple[str, ...]
    texts: tuple[str | None, ...]
    pictures: Rows
    topics: Rows  # of documents; -1 for a query whose topic is not known
    kinds: tuple[str, ...]
    columns: Mapping[str, tuple[str | None, ...]]


@dataclass(frozen=True)
class TrainingLake:
    """Documents, queries and judgements. A topic is what documents are about; without a topic, each is its own.

    `grades[q]` maps the topics that are relevant to query q to their grade; `has_topics`: some rows share theirs.
    `candidates[q]` and `teacher[q]` map document rows to first-stage scores, best first, and to a teacher's logits;
    both are empty where there is no such table.
    """

    documents: Items
    queries: Items
    topics: int
    has_topics: bool
    grades: tuple[Mapping[int, int], ...]
    pictures: Pixels  # lakes may share them
    candidates: ByQuery = ()
    teacher: ByQuery = ()

    @property
    def pixels(self) -> Sequence[npt.NDArray[np.uint8]]:
        """Pictures, each (3, height, width)."""
        return self.pictures.arrays

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


@dataclass(frozen=True)
class Sources:
    """Where the tables of a training lake are; `candidates` and `teacher` are optional."""

    documents: str
    queries: str
    qrels: str
    candidates: str | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class Columns:
    """Which extra columns of the lake say what: the topic of a row and its kind. None where there are none."""

    topic: str | None = None
    kind: str | None = None
    others: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Every column that is read beyond the contract's."""
        return tuple(dict.fromkeys(name for name in (self.topic, self.kind, *self.others) if name))


@dataclass
class Pixels:
    """Distinct pictures, in the order in which they were met, decoded and resized as scoring does with `limits`."""

    limits: Limits
    arrays: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    _known: dict[bytes, int] = field(default_factory=dict)

    def add(self, encoded: bytes | None) -> int:
        """The index of a picture; -1 for none.

        Raises:
            RejectedInput: it cannot be decoded, or is over a limit.
        """
        if encoded is None:
            return -1
        key = hashlib.blake2b(encoded, digest_size=16).digest()
        if key not in self._known:
            decoded = load_pixels(encoded, self.limits, PatchShape()).transpose(2, 0, 1).copy()
            self._known[key] = len(self.arrays)
            self.arrays.append(decoded)
        return self._known[key]


def read_lake(
    storage: Storage,
    sources: Sources,
    columns: Columns,
    picture_side: int,
    *,
    whole: bool = False,
    pictures: Pixels | None = None,
) -> TrainingLake:
    """Read the tables and tie them together. Rows that scoring would reject are left out, with a warning.

    Documents that nothing names for a query (see `wanted_documents`) are not kept, unless the lake is to be `whole`.
    Pictures keep their aspect and have about `picture_side`² pixels at most. `pictures`: another lake's, with the same
    side, whose are not decoded again.

    Raises:
        SchemaError: a column is missing, or no judgement names a query and a document that are there.
        StorageError: a table cannot be read.
    """
    pixels = pictures or Pixels(Limits(max_pixels=picture_side**2))
    pairs = [uri for uri in (sources.qrels, sources.candidates, sources.teacher) if uri]
    wanted = None if whole else wanted_documents(storage, sources.documents, sources.queries, pairs, columns.topic)
    document_rows = _read(storage, sources.documents, DOCUMENTS, "doc_id", columns, pixels, wanted)
    query_rows = _read(storage, sources.queries, QUERIES, "query_id", columns, pixels)
    names = document_rows.columns[columns.topic] if columns.topic else (None,) * len(document_rows.ids)
    keys = [(True, name) if name else (False, one) for name, one in zip(names, document_rows.ids, strict=True)]
    number = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    document_topics = np.array([number[key] for key in keys], dtype=np.int64)
    ids = (document_rows.ids, query_rows.ids)
    grades = _grades(storage, sources.qrels, *ids, document_topics)
    if not any(grades):
        raise SchemaError(
            f"{sources.qrels}: no judgement above 0 names a query of {sources.queries} "
            f"and a document of {sources.documents}"
        )
    best = np.array([max(own, key=lambda topic: own[topic]) if own else -1 for own in grades], dtype=np.int64)
    if columns.topic:  # what a query is itself about comes first; a judgement may name other topics too
        own_topics = query_rows.columns[columns.topic]
        best = np.array(
            [number.get((True, name or ""), fallback) for name, fallback in zip(own_topics, best, strict=True)]
        )
    return TrainingLake(
        documents=_with_topics(document_rows, document_topics),
        queries=_with_topics(query_rows, best),
        topics=len(number),
        has_topics=columns.topic is not None,
        grades=tuple(grades),
        pictures=pixels,
        candidates=read_candidates(storage, sources.candidates, *ids) if sources.candidates else (),
        teacher=read_teacher(storage, sources.teacher, *ids) if sources.teacher else (),
    )


def _read(
    storage: Storage,
    uri: str,
    schema: pa.Schema,
    id_name: str,
    columns: Columns,
    pixels: Pixels,
    wanted: Wanted | None = None,
) -> Items:
    names = columns.names()
    asked = pa.schema([schema.field(id_name), schema.field("text"), schema.field("image")])
    for name in names:
        asked = asked.append(pa.field(name, pa.string()))
    ids: list[str] = []
    texts: list[str | None] = []
    pictures: list[int] = []
    extra: dict[str, list[str | None]] = {name: [] for name in names}
    left_out: list[str] = []
    for fragment in fragments(storage, uri, asked):
        for _, _, batch in read_table_file(storage, fragment.file.uri, asked):
            rows = batch if wanted is None else wanted.of(batch)
            for ident, raw, encoded, *others in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                try:
                    text, picture = _content(raw, encoded, pixels)
                except RejectedInput as error:
                    left_out.append(f"{ident}: {error}")
                    continue
                ids.append(ident)
                texts.append(text)
                pictures.append(picture)
                for name, value in zip(names, others, strict=True):
                    extra[name].append(value)
    if left_out:
        log.warning("%s: %d rows left out, the first of them %s", uri, len(left_out), left_out[0])
    kinds = extra[columns.kind] if columns.kind else ["text" if picture < 0 else "picture" for picture in pictures]
    return Items(
        ids=tuple(ids),
        texts=tuple(texts),
        pictures=np.array(pictures, dtype=np.int64),
        topics=np.zeros(0, dtype=np.int64),
        kinds=tuple(kind or "" for kind in kinds),
        columns={name: tuple(values) for name, values in extra.items()},
    )


def _content(raw: bytes | None, encoded: bytes | None, pixels: Pixels) -> tuple[str | None, int]:
    """A row's text, None where it is blank, and the index of its picture."""
    try:
        text = decode_text(raw)
    except UnicodeDecodeError as error:
        raise RejectedInput(RejectReason.TEXT_UNDECODABLE, str(error.reason)) from error
    if text is not None and not text.strip():
        text = None
    picture = pixels.add(encoded)
    if text is None and picture < 0:
        raise RejectedInput(RejectReason.EMPTY_DOCUMENT, "neither text nor image")
    return text, picture


def _with_topics(side: Items, topics: Rows) -> Items:
    return Items(side.ids, side.texts, side.pictures, topics, side.kinds, side.columns)


def _grades(
    storage: Storage, uri: str, doc_ids: Sequence[str], query_ids: Sequence[str], document_topics: Rows
) -> list[dict[int, int]]:
    documents = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    queries = {query_id: row for row, query_id in enumerate(query_ids)}
    grades: list[dict[int, int]] = [{} for _ in query_ids]
    for fragment in fragments(storage, uri, QRELS):
        for _, _, batch in read_table_file(storage, fragment.file.uri, QRELS):
            columns: list[list[Any]] = [batch.column(name).to_pylist() for name in QRELS.names]
            for query_id, doc_id, relevance in zip(*columns, strict=True):
                query, document = queries.get(query_id), documents.get(doc_id)
                if query is not None and document is not None and relevance > 0:
                    topic = int(document_topics[document])
                    grades[query][topic] = max(relevance, grades[query].get(topic, 0))
    return grades
