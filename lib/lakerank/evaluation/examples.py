"""Example queries: which ones the report shows, and the contents of the top of their lists, fetched by reference."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank.evaluation.inputs import NAME, Inputs, LakeTables
from lakerank.evaluation.metrics.bootstrap import Hashes
from lakerank.evaluation.metrics.measures import NAMES, QueryFigures
from lakerank.evaluation.pairs import Ints, Pairs
from lakerank.lake.ranked import query_texts, rows_by_id, snippet
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.model.preprocess.images import small_jpeg

#: Queries kept as the largest gains and as the largest losses; queries kept of each task to choose examples from.
EXTREMES, PER_TASK = 6, 48

#: Documents kept of each list.
DEPTH = 5

#: The longer side of a thumbnail, in pixels.
THUMBNAIL_SIDE = 96

#: Rejects shown of each reason, and batches of the table in which they are looked for.
PER_REASON, _REJECT_BATCHES = 4, 500

GAINED, LOST, TASK = "gained", "lost", "task"


@dataclass(frozen=True, slots=True)
class ListedDocument:
    """A document in a list, by rank from 1. `other_rank` is its rank in the other list, None where it is not in it."""

    doc_id: str
    rank: int
    other_rank: int | None
    judgement: int | None
    relevance: float | None

    @property
    def is_relevant(self) -> bool:
        return self.judgement is not None and self.judgement > 0


@dataclass(frozen=True, slots=True)
class ExampleQuery:
    """A query with its figures and the top of its lists. `first_stage` is None when the candidates have no order.

    `draw` is a hash of the query id: queries in its order are a random sample.
    """

    query_id: str
    draw: int
    labels: Mapping[str, str]
    gain: float
    first_stage: Mapping[str, float] | None
    reranked: Mapping[str, float]
    before: tuple[ListedDocument, ...]
    after: tuple[ListedDocument, ...]


#: Queries to choose from: by (GAINED, ""), (LOST, ""), and (TASK, task).
ExamplePool = dict[tuple[str, str], list[ExampleQuery]]

#: Of each kind: the number of queries kept, and the order of gain, draw and query id in which they are.
_KEPT: dict[str, tuple[int, Callable[[float, int, str], tuple[float, str]]]] = {
    GAINED: (EXTREMES, lambda gain, draw, query_id: (-gain, query_id)),
    LOST: (EXTREMES, lambda gain, draw, query_id: (gain, query_id)),
    TASK: (PER_TASK, lambda gain, draw, query_id: (draw, query_id)),
}


def pool_of(pairs: Pairs, queries: Ints, figures: QueryFigures, hashes: Hashes, by_task: bool) -> ExamplePool:
    """The example pool of some judged `queries` (J,) of a block, with their `figures` and `hashes` (J,).

    Args:
        by_task: whether the task is one of the columns that make slices.
    """
    gains, draws = figures.gain.tolist(), hashes.tolist()
    query_ids = [pairs.query_ids[number] for number in queries.tolist()]
    rows: dict[tuple[str, str], list[int]] = {
        (GAINED, ""): np.flatnonzero(figures.gain > 0).tolist(),
        (LOST, ""): np.flatnonzero(figures.gain < 0).tolist(),
    }
    for row, number in enumerate(queries.tolist()):
        rows.setdefault((TASK, pairs.labels[number].get("task", "") if by_task else ""), []).append(row)
    for (kind, task), members in rows.items():
        kept, order = _KEPT[kind]
        rows[kind, task] = nsmallest(kept, members, key=lambda row: order(gains[row], draws[row], query_ids[row]))

    def example(row: int) -> ExampleQuery:
        number = int(queries[row])
        ordered = figures.first_stage is not None
        before = _top(pairs, number, pairs.first_stage, pairs.ranked) if ordered else ()
        after = _top(pairs, number, pairs.ranked, pairs.first_stage if ordered else None, True)
        first, reranked = (
            None if table is None else dict(zip(NAMES, table[row].tolist(), strict=True))
            for table in (figures.first_stage, figures.reranked)
        )
        labels = pairs.labels[number]
        return ExampleQuery(query_ids[row], draws[row], labels, gains[row], first, reranked or {}, before, after)

    return {key: [example(row) for row in members] for key, members in rows.items()}


def merge_pools(pool: ExamplePool, other: ExamplePool) -> ExamplePool:
    """The pool of both pools' queries."""
    merged: ExamplePool = {}
    for kind, task in {**pool, **other}:
        kept, order = _KEPT[kind]
        queries = pool.get((kind, task), []) + other.get((kind, task), [])
        merged[kind, task] = nsmallest(kept, queries, key=lambda query: order(query.gain, query.draw, query.query_id))
    return merged


def _top(
    pairs: Pairs, query: int, ranks: Ints, other_ranks: Ints | None, scored: bool = False
) -> tuple[ListedDocument, ...]:
    """The first DEPTH documents of a query's list."""
    start, end = pairs.query.searchsorted([query, query + 1])
    rows = [int(row) + start for row in ranks[start:end].argsort(kind="stable") if ranks[start + row] >= 0]
    return tuple(
        ListedDocument(
            pairs.doc_ids[int(row)].as_py(),
            int(ranks[row]) + 1,
            int(other_ranks[row]) + 1 if other_ranks is not None and other_ranks[row] >= 0 else None,
            int(pairs.judgement[row]) if pairs.judged[row] else None,
            float(pairs.relevance[row]) if scored else None,
        )
        for row in rows[:DEPTH]
    )


def choose(pool: ExamplePool, count: int) -> list[ExampleQuery]:
    """Up to `count` examples, whatever their figures: task by task in turn, new languages and names first."""
    by_task = sorted((-len(queries), task) for (kind, task), queries in pool.items() if kind == TASK)
    waiting = [list(pool[TASK, task]) for _, task in by_task]
    chosen: list[ExampleQuery] = []
    seen: set[tuple[str, str | None]] = set()
    while len(chosen) < count and any(waiting):
        for queries in filter(None, waiting):
            values = [{(name, query.labels.get(name)) for name in ("language", NAME)} for query in queries]
            news = [len(of_query - seen) for of_query in values]
            position = news.index(max(news))
            seen |= values[position]
            chosen.append(queries.pop(position))
    return chosen[:count]


@dataclass(frozen=True, slots=True)
class Content:
    """A query's or document's content as shown: the stored image, and the beginning of the text."""

    id: str
    name: str | None
    text: str | None
    image: bytes | None

    @property
    def label(self) -> str:
        """One line: the text of a text, otherwise the name, or else the id."""
        return (self.text if self.image is None else None) or self.name or self.text or self.id


@dataclass(frozen=True, slots=True)
class Example:
    """An example query with its content and that of the documents at the top of its lists."""

    query: Content
    entry: ExampleQuery
    before: tuple[tuple[ListedDocument, Content], ...]
    after: tuple[tuple[ListedDocument, Content], ...]

    @property
    def labels(self) -> Mapping[str, str]:
        """The extra columns of the queries table, without the name."""
        return {name: value for name, value in self.entry.labels.items() if name != NAME}


def fetch_examples(storage: Storage, tables: LakeTables, chosen: Sequence[ExampleQuery]) -> list[Example]:
    """Fetch the content of example queries and of the documents at the top of their lists.

    Raises:
        StorageError: a table cannot be read.
    """
    doc_ids = {listed.doc_id for query in chosen for listed in (*query.before, *query.after)}
    queries = _contents(storage, tables.queries, schemas.QUERIES, {query.query_id for query in chosen})
    documents = _contents(storage, tables.documents, schemas.DOCUMENTS, doc_ids)
    return [
        Example(
            queries[query.query_id],
            query,
            *(tuple((listed, documents[listed.doc_id]) for listed in part) for part in (query.before, query.after)),
        )
        for query in chosen
    ]


def _contents(storage: Storage, uri: str, schema: pa.Schema, ids: set[str]) -> dict[str, Content]:
    """The content of rows; of an id that no table has, the id alone, and of rows that share one the first."""
    contents: dict[str, Content] = {}
    for row in rows_by_id(storage, uri, schema, ids, ["text", "image"], (NAME,)):
        row_id, name = row[schema.names[0]], str(row.get(NAME) or "") or None
        contents.setdefault(row_id, Content(row_id, name, snippet(row["text"]) or None, row["image"]))
    return {row_id: contents.get(row_id, Content(row_id, None, None, None)) for row_id in ids}


def fetch_rejects(storage: Storage, inputs: Inputs) -> list[dict[str, str]]:
    """Rows of up to PER_REASON rejects of each reason near the beginning of the table, with the `query`'s text."""
    missing = dict.fromkeys(inputs.totals.rejected, PER_REASON)
    rows: list[dict[str, str]] = []
    files = fragments(storage, inputs.paths.rejected, schemas.REJECTED) if missing else []
    batches = (batch for part in files for _, _, batch in read_table_file(storage, part.file.uri, schemas.REJECTED))
    for batch in islice(batches, _REJECT_BATCHES):
        for reason in filter(missing.get, missing):
            rejects = batch.filter(pc.equal(batch["reason"], reason)).slice(0, missing[reason]).to_pylist()
            missing[reason] -= len(rejects)
            rows += rejects
    texts = query_texts(storage, inputs.tables.queries, {row["query_id"] for row in rows})
    rows.sort(key=lambda row: (row["reason"], row["query_id"], row["doc_id"]))
    return [row | {"query": texts.get(row["query_id"], "")} for row in rows]


def thumbnail(image: bytes) -> str | None:
    """A JPEG of at most THUMBNAIL_SIDE² pixels as a data URI; None when the image is bad or too large.

    Every thumbnail is encoded anew: no byte of the stored image, nor anything hidden in it, reaches the page.
    """
    small = small_jpeg(image, THUMBNAIL_SIDE)
    return None if small is None else f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"
