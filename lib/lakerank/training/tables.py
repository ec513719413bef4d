"""A training lake in memory: texts, pictures as pixels, and what is relevant to what, by topic."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from lakerank.errors import SchemaError
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.schemas import DOCUMENTS, QRELS, QUERIES

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
    """Documents, queries and judgements. A topic is what documents are about; without a topic column, each is its own.

    `grades[q]` maps the topics that are relevant to query q to their grade.
    """

    documents: Items
    queries: Items
    topics: tuple[str, ...]
    grades: tuple[Mapping[int, int], ...]
    pixels: npt.NDArray[np.uint8]  # (N, 3, side, side)


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
    """Distinct pictures of one size, in the order in which they were met."""

    side: int
    arrays: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    _known: dict[bytes, int] = field(default_factory=dict)

    def add(self, encoded: bytes | None) -> int:
        """The index of a picture, decoded on white and brought to `side` × `side`; -1 for none."""
        if encoded is None:
            return -1
        key = hashlib.blake2b(encoded, digest_size=16).digest()
        if key not in self._known:
            self._known[key] = len(self.arrays)
            self.arrays.append(_decode(encoded, self.side))
        return self._known[key]


def read_lake(
    storage: Storage, documents: str, queries: str, qrels: str, columns: Columns, picture_side: int
) -> TrainingLake:
    """Read three tables and tie them together.

    Raises:
        SchemaError: a column is missing, or no judgement names a query and a document that are there.
        StorageError: a table cannot be read.
    """
    pixels = Pixels(picture_side)
    document_rows = _read(storage, documents, DOCUMENTS, "doc_id", columns, pixels)
    query_rows = _read(storage, queries, QUERIES, "query_id", columns, pixels)
    names = document_rows.columns[columns.topic] if columns.topic else document_rows.ids
    topics = tuple(dict.fromkeys(name or "" for name in names))
    number = {topic: index for index, topic in enumerate(topics)}
    document_topics = np.array([number[name or ""] for name in names], dtype=np.int64)
    grades = _grades(storage, qrels, document_rows.ids, query_rows.ids, document_topics)
    if not any(grades):
        raise SchemaError(f"{qrels}: no judgement above 0 names a query of {queries} and a document of {documents}")
    best = np.array([max(own, key=lambda topic: own[topic]) if own else -1 for own in grades], dtype=np.int64)
    if columns.topic:  # what a query is itself about comes first; a judgement may name other topics too
        own_topics = query_rows.columns[columns.topic]
        best = np.array([number.get(name or "", fallback) for name, fallback in zip(own_topics, best, strict=True)])
    return TrainingLake(
        documents=_with_topics(document_rows, document_topics),
        queries=_with_topics(query_rows, best),
        topics=topics,
        grades=tuple(grades),
        pixels=np.stack(pixels.arrays) if pixels.arrays else np.zeros((0, 3, picture_side, picture_side), np.uint8),
    )


def _read(storage: Storage, uri: str, schema: pa.Schema, id_name: str, columns: Columns, pixels: Pixels) -> Items:
    names = columns.names()
    wanted = pa.schema([schema.field(id_name), schema.field("text"), schema.field("image")])
    for name in names:
        wanted = wanted.append(pa.field(name, pa.string()))
    ids: list[str] = []
    texts: list[str | None] = []
    pictures: list[int] = []
    extra: dict[str, list[str | None]] = {name: [] for name in names}
    for fragment in fragments(storage, uri, wanted):
        for _, _, batch in read_table_file(storage, fragment.file.uri, wanted):
            ids += batch.column(id_name).to_pylist()
            texts += [
                None if raw is None else raw.decode("utf-8", "replace") for raw in batch.column("text").to_pylist()
            ]
            pictures += [pixels.add(encoded) for encoded in batch.column("image").to_pylist()]
            for name in names:
                extra[name] += batch.column(name).to_pylist()
    kinds = extra[columns.kind] if columns.kind else ["text" if picture < 0 else "picture" for picture in pictures]
    return Items(
        ids=tuple(ids),
        texts=tuple(texts),
        pictures=np.array(pictures, dtype=np.int64),
        topics=np.zeros(0, dtype=np.int64),
        kinds=tuple(kind or "" for kind in kinds),
        columns={name: tuple(values) for name, values in extra.items()},
    )


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


def _decode(encoded: bytes, side: int) -> npt.NDArray[np.uint8]:
    """Pixels (3, side, side) on white."""
    with Image.open(io.BytesIO(encoded)) as opened:
        picture = opened.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(flat).transpose(2, 0, 1)
