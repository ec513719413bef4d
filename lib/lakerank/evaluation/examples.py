"""Queries to look at: which ones, and what stood at the top of their lists before and after."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lakerank import schemas
from lakerank.evaluation.attributes import Attributes, fetch_rows
from lakerank.evaluation.evaluation import NAME, Evaluation
from lakerank.evaluation.lists import QueryResult
from lakerank.evaluation.run_tables import LakeTables
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
    """A document at a place of a list. `other_rank` is its place in the other list (None: it has none there)."""

    document: Shown
    rank: int
    other_rank: int | None
    judgement: int | None
    relevance: float | None

    @property
    def is_relevant(self) -> bool:
        return self.judgement is not None and self.judgement > 0


@dataclass(frozen=True, slots=True)
class Example:
    """A query with the top of its lists before and after reranking."""

    query: Shown
    labels: Mapping[str, str]
    result: QueryResult
    before: tuple[Placed, ...]
    after: tuple[Placed, ...]


def choose(results: Sequence[QueryResult], queries: Mapping[str, Attributes], count: int) -> list[QueryResult]:
    """Up to `count` queries, whatever their results: task by task in turn, languages and names not shown yet first.

    Within that the order is that of a hash of the query id, so the choice is fixed and nobody's.
    """
    waiting: defaultdict[str, list[QueryResult]] = defaultdict(list)
    for result in sorted(results, key=lambda one: hashlib.blake2b(one.query_id.encode()).digest()):
        waiting[queries[result.query_id].extra.get("task", "")].append(result)
    tasks = sorted(waiting, key=lambda task: (-len(waiting[task]), task))
    chosen: list[QueryResult] = []
    languages: set[str | None] = set()
    names: set[str | None] = set()
    while len(chosen) < count and any(waiting.values()):
        for task in tasks:
            if waiting[task]:
                extras = [queries[one.query_id].extra for one in waiting[task]]
                news = [(one.get("language") not in languages) + (one.get(NAME) not in names) for one in extras]
                position = news.index(max(news))
                languages.add(extras[position].get("language"))
                names.add(extras[position].get(NAME))
                chosen.append(waiting[task].pop(position))
    return chosen[:count]


def extremes(results: Sequence[QueryResult], count: int) -> tuple[list[QueryResult], list[QueryResult]]:
    """The queries that gained most and those that lost most, at most `count` of each, the furthest first."""
    by_gain = sorted(results, key=lambda one: (-one.gain, one.query_id))
    gained = [one for one in by_gain[:count] if one.gain > 0]
    lost = [one for one in by_gain[::-1][:count] if one.gain < 0]
    return gained, lost


def build(
    storage: Storage, tables: LakeTables, evaluation: Evaluation, chosen: Sequence[QueryResult], depth: int
) -> list[Example]:
    """The chosen queries with the first `depth` documents of their lists, fetched by reference.

    Raises:
        StorageError: a table has changed since it was read.
    """
    lists, ids = evaluation.lists, {one.query_id for one in chosen}
    tops = {
        query: [one.doc_id for one in lists.candidates.get(query, ())[:depth]]
        + [one.doc_id for one in lists.ranked.get(query, ())[:depth]]
        for query in ids
    }
    wanted = {doc for top in tops.values() for doc in top}
    queries = fetch_rows(storage, evaluation.queries, ids, schemas.QUERIES.names[0])
    documents = fetch_rows(storage, evaluation.documents, wanted, schemas.DOCUMENTS.names[0])
    shown = {doc: _shown(doc, documents.get(doc), evaluation.documents.get(doc)) for doc in wanted}
    examples = []
    for result in chosen:
        attributes = evaluation.queries[result.query_id]
        query = _shown(result.query_id, queries.get(result.query_id), attributes)
        before, after = _placed(evaluation, result.query_id, shown, depth)
        labels = {name: value for name, value in attributes.extra.items() if name != NAME}
        examples.append(Example(query, labels, result, before, after))
    return examples


def _placed(
    evaluation: Evaluation, query_id: str, shown: Mapping[str, Shown], depth: int
) -> tuple[tuple[Placed, ...], tuple[Placed, ...]]:
    judgements = evaluation.lists.judgements.get(query_id, {})
    first = [one.doc_id for one in evaluation.lists.candidates.get(query_id, ())] if evaluation.lists.ordered else []
    ranked = evaluation.lists.ranked.get(query_id, [])
    first_ranks = {doc: rank for rank, doc in enumerate(first, start=1)}
    final_ranks = {one.doc_id: one.rank for one in ranked}
    before = tuple(
        Placed(shown[doc], rank, final_ranks.get(doc), judgements.get(doc), None)
        for rank, doc in enumerate(first[:depth], start=1)
    )
    after = tuple(
        Placed(shown[one.doc_id], one.rank, first_ranks.get(one.doc_id), judgements.get(one.doc_id), one.relevance)
        for one in ranked[:depth]
    )
    return before, after


def _shown(ident: str, blob: Blob | None, attributes: Attributes | None) -> Shown:
    """What is known of a row; an id that is in no table is shown as it is."""
    name = attributes.extra.get(NAME) if attributes else None
    if blob is None:
        return Shown(ident, name, None, None)
    text = None if blob.text is None else " ".join(blob.text.decode(errors="replace").split())
    if text and len(text) > SNIPPET:
        text = f"{text[:SNIPPET].rstrip()}…"
    return Shown(ident, name, text, blob.image)
