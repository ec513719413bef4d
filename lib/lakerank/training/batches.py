"""What one step trains on: groups of topics, a document and a query each, and which pairs are relevant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lakerank.training.negatives import NegativeRule
from lakerank.training.tables import Items, Rows, TrainingLake

#: Topics that are easily confused with a topic, the nearest first.
Neighbours = Callable[[int], Rows]


@dataclass(frozen=True)
class Batch:
    """Rows of documents (D,) and queries (Q,), `groups` equal groups one after another.

    Over the whole grid, (D, Q): `grades`; `known`, False where a pair must not be used; and `teacher`, a teacher's
    logits, NaN where there are none. Within a group the first documents belong to its queries, hard negatives follow.
    """

    documents: Rows
    queries: Rows
    groups: int
    grades: npt.NDArray[np.int64]
    known: npt.NDArray[np.bool_]
    teacher: npt.NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Documents and queries of one group."""
        return len(self.documents) // self.groups, len(self.queries) // self.groups

    def shards(self, count: int) -> list[Batch]:
        """The groups in `count` parts, as even as can be, that are computed one after another or side by side."""
        bounds = np.linspace(0, self.groups, min(count, self.groups) + 1).round().astype(int)
        return [self._part(int(first), int(last)) for first, last in pairwise(bounds)]

    def _part(self, first: int, last: int) -> Batch:
        height, width = self.shape
        rows, columns = slice(first * height, last * height), slice(first * width, last * width)
        return Batch(
            self.documents[rows],
            self.queries[columns],
            last - first,
            self.grades[rows, columns],
            self.known[rows, columns],
            None if self.teacher is None else self.teacher[rows, columns],
        )


@dataclass(frozen=True)
class Selection:
    """Which rows a stage draws from: `only` keeps rows whose column holds one of the values, or nothing at all.

    `by_topic`: rows of one topic are relevant to each other, whatever else judgements name.
    """

    only: Mapping[str, frozenset[str]]
    document_weights: Mapping[str, float]
    query_weights: Mapping[str, float]
    hard_negatives: int = 0
    by_topic: bool = False


class Sampler:
    """Draws batches. A batch depends on the random generator it is given and on nothing drawn before."""

    def __init__(
        self,
        lake: TrainingLake,
        selection: Selection,
        apart: Mapping[str, frozenset[str]],
        rule: NegativeRule | None = None,
    ) -> None:
        """`apart`: column → values of texts that are never paired with a picture. `rule`: of hard negatives."""
        self._lake = lake
        self._rule = rule or NegativeRule()
        self._hard_negatives = selection.hard_negatives
        self._by_topic = selection.by_topic
        document_topics, query_topics = _drawn_by(lake)
        self._documents = _Pool(lake.documents, document_topics, selection.only, selection.document_weights)
        self._queries = _Pool(lake.queries, query_topics, selection.only, selection.query_weights)
        self.topics = np.array(sorted(self._documents.topics & self._queries.topics), dtype=np.int64)
        self._document_apart = _marked(lake.documents, apart)
        self._query_apart = _marked(lake.queries, apart)

    def draw(
        self, random: np.random.Generator, groups: int, group_size: int, mined: float, neighbours: Neighbours | None
    ) -> Batch:
        """Draw topics, all different; a share `mined` of the groups is made of a topic and its near neighbours."""
        topics = self._draw_topics(random, groups, group_size, mined, neighbours)
        documents = np.array([self._documents.draw(int(topic), random) for topic in topics])
        queries = np.array([self._queries.draw(int(topic), random) for topic in topics])
        if self._by_topic:
            same = self._lake.same_topic(documents, queries).astype(np.int64)
            return Batch(documents, queries, groups, same, self._allowed(documents, queries))
        if self._hard_negatives:
            documents = self._with_negatives(documents, queries, groups, random)
        grades, known = self.relations(documents, queries)
        return Batch(documents, queries, groups, grades, known, self._teacher(documents, queries))

    def _with_negatives(self, documents: Rows, queries: Rows, groups: int, random: np.random.Generator) -> Rows:
        """Each group's documents, followed by its queries' hard negatives; others at random where those run out."""
        sides = zip(documents.reshape(groups, -1), queries.reshape(groups, -1), strict=True)
        everything: list[int] = []
        for own, asking in sides:
            everything += own.tolist()
            for query in asking.tolist():
                allowed = self._rule.allowed(self._lake, query)
                chosen = [int(row) for row in random.permutation(allowed)[: self._hard_negatives]]
                while len(chosen) < self._hard_negatives:
                    chosen.append(self._documents.draw(int(random.choice(self.topics)), random))
                everything += chosen
        return np.array(everything, dtype=np.int64)

    def _teacher(self, documents: Rows, queries: Rows) -> npt.NDArray[np.float32] | None:
        if not self._lake.teacher:
            return None
        of_queries = [self._lake.teacher[query] for query in queries]
        logits = [[known.get(int(row), np.nan) for known in of_queries] for row in documents]
        return np.array(logits, dtype=np.float32)

    def relations(self, documents: Rows, queries: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Grades and what is known of them, both (D, Q)."""
        lake = self._lake
        grades = lake.relevance(documents, queries)
        suspects = self._rule.suspects(lake, documents, queries) & (grades == 0)
        return grades, self._allowed(documents, queries) & ~suspects

    def _allowed(self, documents: Rows, queries: Rows) -> npt.NDArray[np.bool_]:
        """Pairs (D, Q) to learn from: not a picture with itself, nor a text with a picture it is kept apart from."""
        lake = self._lake
        document_pictures, query_pictures = lake.documents.pictures[documents], lake.queries.pictures[queries]
        itself = (document_pictures[:, None] == query_pictures[None]) & (query_pictures[None] >= 0)
        apart = (document_pictures[:, None] >= 0) & self._query_apart[queries][None]
        apart |= (query_pictures[None] >= 0) & self._document_apart[documents][:, None]
        allowed: npt.NDArray[np.bool_] = ~(itself | apart)
        return allowed

    def _draw_topics(
        self, random: np.random.Generator, groups: int, group_size: int, mined: float, neighbours: Neighbours | None
    ) -> Rows:
        chosen: list[int] = []
        left = set(self.topics.tolist())
        seeds = [int(topic) for topic in random.permutation(self.topics)]
        for _ in range(groups):
            seed = next(topic for topic in seeds if topic in left)
            group = [seed]
            left.discard(seed)
            if neighbours is not None and random.random() < mined:
                near = [int(topic) for topic in neighbours(seed) if int(topic) in left][: 2 * group_size]
                group += [int(topic) for topic in random.permutation(near)[: group_size - 1]]
                left.difference_update(group)
            for topic in seeds:
                if len(group) >= group_size:
                    break
                if topic in left:
                    group.append(topic)
                    left.discard(topic)
            chosen += group
        return np.array(chosen, dtype=np.int64)


class _Pool:
    """The rows of each topic, by kind. `topics` are those of each row."""

    def __init__(
        self,
        items: Items,
        topics: Sequence[Sequence[int]],
        only: Mapping[str, frozenset[str]],
        weights: Mapping[str, float],
    ) -> None:
        self._rows: dict[int, dict[str, list[int]]] = {}
        self._weights = weights
        columns = [(items.columns[name], values) for name, values in only.items()]
        for row, (own, kind) in enumerate(zip(topics, items.kinds, strict=True)):
            kept = all(column[row] is None or column[row] in values for column, values in columns)
            if not kept or weights.get(kind, 0 if weights else 1) <= 0:
                continue
            for topic in own:
                self._rows.setdefault(topic, {}).setdefault(kind, []).append(row)
        self.topics = set(self._rows)

    def draw(self, topic: int, random: np.random.Generator) -> int:
        kinds = self._rows[topic]
        names = list(kinds)
        weights = np.array([self._weights.get(name, 1.0) for name in names])
        rows = kinds[names[int(random.choice(len(names), p=weights / weights.sum()))]]
        return rows[int(random.integers(len(rows)))]


def _drawn_by(lake: TrainingLake) -> tuple[list[list[int]], list[list[int]]]:
    """The topics by which documents and queries are drawn; without topics, each query and what is relevant to it."""
    if lake.has_topics:
        sides = (lake.documents.topics.tolist(), lake.queries.topics.tolist())
        documents, queries = ([[topic] if topic >= 0 else [] for topic in side] for side in sides)
        return documents, queries
    documents = [[] for _ in lake.documents.ids]  # each document is its own topic there: its row
    for query, grades in enumerate(lake.grades):
        for row in grades:
            documents[row].append(query)
    return documents, [[query] if grades else [] for query, grades in enumerate(lake.grades)]


def _marked(items: Items, apart: Mapping[str, frozenset[str]]) -> npt.NDArray[np.bool_]:
    marks = np.zeros(len(items.ids), dtype=bool)
    for name, values in apart.items():
        marks |= np.array([value in values for value in items.columns[name]], dtype=bool)
    return marks


def text_rows(lake: TrainingLake) -> Sequence[str]:
    """Every distinct text of the lake, in order: what a tokenizer is trained on."""
    texts = [*lake.documents.texts, *lake.queries.texts]
    return list(dict.fromkeys(text for text in texts if text))
