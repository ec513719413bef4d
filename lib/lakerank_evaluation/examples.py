"""Example queries: which ones the report shows, and the contents of the top of their lists, fetched by reference."""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.lake.images.files import first_image
from lakerank.lake.ranked import first_stage_lists, ranked_lists, rows_by_id, snippet
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.model.preprocess.images import small_jpeg
from lakerank.records import RankedDocument
from lakerank_evaluation.evaluation import Evaluation, JudgedQueries
from lakerank_evaluation.inputs import NAME, Inputs
from lakerank_evaluation.metrics.measures import NAMES, PRIMARY

#: Queries shown of the largest gains and losses, and queries of each task of which the examples are chosen.
_EXTREMES, _PER_TASK = 6, 48

#: Labels shown with a query.
_LABELS = ("language", "task", "slice")

#: Documents shown of each list.
_DEPTH = 5

#: The longer side of a thumbnail, in pixels.
THUMBNAIL_SIDE = 96

#: Rejects shown of each reason, and batches of the table in which they are looked for.
PER_REASON, _REJECT_BATCHES = 4, 500


@dataclass(frozen=True, slots=True)
class Content:
    """A query's or document's content as shown: the stored image, and the beginning of the text."""

    id: str
    name: str | None = None
    text: str | None = None
    image: bytes | None = None

    @property
    def label(self) -> str:
        """One line: the text of a text, otherwise the name, or else the id."""
        return (self.text if self.image is None else None) or self.name or self.text or self.id


@dataclass(frozen=True, slots=True)
class ListedDocument:
    """A document in a list, by rank from 1. `other_rank` is its rank in the other list, None where it is not in it."""

    content: Content
    rank: int
    other_rank: int | None
    judgement: int | None
    relevance: float | None

    @property
    def is_relevant(self) -> bool:
        return self.judgement is not None and self.judgement > 0


@dataclass(frozen=True, slots=True)
class Example:
    """A query, its labels, its primary measure before (None: the candidates have no order) and after reranking, and the
    top of both lists.
    """

    query: Content
    labels: Mapping[str, str]
    first_stage: float | None
    reranked: float
    before: tuple[ListedDocument, ...]
    after: tuple[ListedDocument, ...]


def choose(queries: JudgedQueries, count: int) -> list[int]:
    """Rows of up to `count` queries, whatever their figures: task by task in turn, new languages and names first."""
    values = {name: _label(queries, name) for name in ("task", "language", NAME)}
    by_task: dict[str, list[int]] = {}
    for row in np.argsort(queries.hashes, kind="stable").tolist():  # a random order
        if len(rows := by_task.setdefault(values["task"][row], [])) < _PER_TASK:
            rows.append(row)
    waiting = [by_task[task] for task in sorted(by_task, key=lambda task: (-len(by_task[task]), task))]
    chosen: list[int] = []
    seen: set[tuple[str, str]] = set()
    while len(chosen) < count and any(waiting):
        for rows in filter(None, waiting):
            labels = [{(name, values[name][row]) for name in ("language", NAME)} for row in rows]
            news = [len(of_query - seen) for of_query in labels]
            position = news.index(max(news))
            seen |= labels[position]
            chosen.append(rows.pop(position))
    return chosen[:count]


def extremes(queries: JudgedQueries) -> tuple[list[int], list[int]]:
    """Rows of the queries with the largest gains, and of those with the largest losses."""
    gain = queries.figures.gain
    gained, lost = (np.argsort(values, kind="stable")[:_EXTREMES] for values in (-gain, gain))
    return gained[gain[gained] > 0].tolist(), lost[gain[lost] < 0].tolist()


def _label(queries: JudgedQueries, name: str) -> list[str]:
    """(Q,) values, "" where there is none."""
    has = name in queries.labels.column_names
    return queries.labels[name].fill_null("").to_pylist() if has else [""] * len(queries.hashes)


def fetch_examples(storage: Storage, evaluation: Evaluation, rows: Sequence[int]) -> list[Example]:
    """The queries of some rows, with their content and that of the documents at the top of their lists.

    Raises:
        StorageError: a table cannot be read.
    """
    queries, numbers = evaluation.queries, pa.array(rows, pa.int64())
    query_ids = queries.query_ids.take(numbers).to_pylist()
    values = queries.labels.take(numbers).to_pylist()
    labels = [{name: row[name] for name in _LABELS if row.get(name)} for row in values]
    contents = contents_of(storage, evaluation.inputs.tables.queries, schemas.QUERIES, set(query_ids))
    tops = _tops(storage, evaluation.inputs, query_ids)
    column = NAMES.index(PRIMARY)
    figures = {name: table[rows, column].tolist() for name, table in queries.figures.lists.items()}
    firsts = figures.get("first_stage", [None] * len(rows))
    return [
        Example(contents[query_id], *parts, *tops[query_id])
        for query_id, *parts in zip(query_ids, labels, firsts, figures["reranked"], strict=True)
    ]


def _tops(storage: Storage, inputs: Inputs, query_ids: Sequence[str]) -> dict[str, list[tuple[ListedDocument, ...]]]:
    """The top of the first stage's list, empty where there is no order, and of the run's, by query."""
    tables = inputs.tables
    before = first_stage_lists(storage, tables.candidates, query_ids) if inputs.ordered else {}
    after = ranked_lists(storage, inputs.paths, query_ids)
    shown = {part.doc_id for lists in (before, after) for documents in lists.values() for part in documents[:_DEPTH]}
    contents = contents_of(storage, tables.documents, schemas.DOCUMENTS, shown)
    judgements = judgements_of(storage, inputs, query_ids)

    def top(documents: Sequence[RankedDocument], others: Sequence[RankedDocument]) -> tuple[ListedDocument, ...]:
        rank_of = {other.doc_id: other.rank for other in others}
        return tuple(
            ListedDocument(
                contents[part.doc_id],
                part.rank,
                rank_of.get(part.doc_id),
                judgements.get((part.query_id, part.doc_id)),
                None if math.isnan(part.relevance) else part.relevance,
            )
            for part in documents[:_DEPTH]
        )

    lists = {query_id: (before.get(query_id, []), after.get(query_id, [])) for query_id in query_ids}
    return {query_id: [top(first, ranked), top(ranked, first)] for query_id, (first, ranked) in lists.items()}


def judgements_of(storage: Storage, inputs: Inputs, query_ids: Collection[str]) -> dict[tuple[str, str], int]:
    """The judgements of some queries by (query_id, doc_id): of several of a pair the largest."""
    judgements: dict[tuple[str, str], int] = {}
    for row in rows_by_id(storage, inputs.tables.qrels, schemas.QRELS, query_ids):
        pair = row["query_id"], row["doc_id"]
        judgements[pair] = max(row["relevance"], judgements.get(pair, row["relevance"]))
    return judgements


def contents_of(storage: Storage, uri: str, schema: pa.Schema, ids: set[str]) -> dict[str, Content]:
    """The content of rows; of an id that no table has, the id alone, and of rows that share one the first."""
    contents: dict[str, Content] = {}
    columns = [name for name in schema.names if name in schemas.CONTENT]
    for row in rows_by_id(storage, uri, schema, ids, columns, (NAME,)):
        row_id, name = row[schema.names[0]], str(row.get(NAME) or "") or None
        if row_id not in contents:
            contents[row_id] = Content(row_id, name, snippet(row["text"]) or None, first_image(storage, row))
    return {row_id: contents.get(row_id, Content(row_id)) for row_id in ids}


def fetch_rejects(storage: Storage, inputs: Inputs) -> list[dict[str, str]]:
    """Rows of up to PER_REASON rejects of each reason near the beginning of the table, with the `query`'s text."""
    missing = dict.fromkeys(inputs.totals.rejected, PER_REASON)
    rows: list[dict[str, str]] = []
    files = fragments(storage, inputs.paths.rejected, schemas.REJECTED) if missing else []
    batches = (batch for part in files for _, _, batch in read_table_file(storage, part.file, schemas.REJECTED))
    for batch in islice(batches, _REJECT_BATCHES):
        for reason in filter(missing.get, missing):
            rejects = batch.filter(pc.equal(batch["reason"], reason)).slice(0, missing[reason]).to_pylist()
            missing[reason] -= len(rejects)
            rows += rejects
    texts = query_texts(storage, inputs.tables.queries, {row["query_id"] for row in rows})
    rows.sort(key=lambda row: (row["reason"], row["query_id"], row["doc_id"]))
    return [row | {"query": texts.get(row["query_id"], "")} for row in rows]


def query_texts(storage: Storage, uri: str, query_ids: Collection[str]) -> dict[str, str]:
    """The beginning of the texts of some queries by id; "" for an image."""
    return {
        row["query_id"]: snippet(row["text"]) for row in rows_by_id(storage, uri, schemas.QUERIES, query_ids, ["text"])
    }


def thumbnail(image: bytes) -> str | None:
    """A JPEG of at most THUMBNAIL_SIDE² pixels as a data URI; None when the image is bad or too large.

    Every thumbnail is encoded anew: no byte of the stored image, nor anything hidden in it, reaches the page.
    """
    small = small_jpeg(image, THUMBNAIL_SIDE)
    return None if small is None else f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"
