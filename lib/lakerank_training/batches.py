"""What one step trains on: groups of topics, a document and a query each, hard negatives, and what is relevant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Le

from lakerank_training.dataset import Dataset, Rows, Table

Weight = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class TrainingStage:
    """Some steps of one kind: what they draw, and the weights of their losses.

    Each step draws `groups` groups of `group_size` topics, a document and a query each, and `hard_negatives` documents
    more for every query. A kind of row is drawn as often as its weight says. A stage with a `learning_rate` starts the
    schedule anew at that peak (a warm restart, Loshchilov and Hutter 2017). `ranking`: the loss of a query's logits;
    None where queries are not scored.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, where a config holds stages

    name: str
    steps: Annotated[int, Ge(1)]
    groups: Annotated[int, Ge(1)]
    group_size: Annotated[int, Ge(2)]
    hard_negatives: Annotated[int, Ge(0)] = 0
    learning_rate: Annotated[float, Gt(0)] | None = None
    ranking: Literal["listnet", "ranknet"] | None = "listnet"
    ranking_weight: Weight = 1.0
    pointwise_weight: Weight = 0.5
    distillation_weight: Weight = 0.0
    document_weights: Mapping[str, Weight] = field(default_factory=dict)
    query_weights: Mapping[str, Weight] = field(default_factory=dict)

    @property
    def loss_weights(self) -> list[float]:
        """Of every loss that the stage may have."""
        return [] if self.ranking is None else [self.ranking_weight, self.pointwise_weight, self.distillation_weight]


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
        """The groups in `count` parts, as even as can be, that are computed one after another or in parallel."""
        bounds = np.linspace(0, self.groups, min(count, self.groups) + 1).round().astype(int)
        return [self._part(int(first), int(last)) for first, last in pairwise(bounds)]

    def _part(self, first: int, last: int) -> Batch:
        height, width = self.shape
        rows, columns = slice(first * height, last * height), slice(first * width, last * width)
        teacher = None if self.teacher is None else self.teacher[rows, columns]
        grades, known = self.grades[rows, columns], self.known[rows, columns]
        return Batch(self.documents[rows], self.queries[columns], last - first, grades, known, teacher)


@dataclass(frozen=True)
class NegativeRule:
    """Which candidates of a query count as irrelevant: those that the first stage ranks `skip` to `depth`.

    `below`: and whose first-stage score is under this share of the best relevant candidate's. Closer ones are likely
    to be relevant and unjudged (the positive-aware filter of NV-Retriever, Moreira et al. 2024). Scores must be
    positive for that.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    skip: Annotated[int, Ge(0)] = 0
    depth: Annotated[int, Ge(1)] = 100
    below: Annotated[float, Gt(0), Le(1)] | None = None

    def negatives(self, dataset: Dataset, query: int) -> list[int]:
        """Document rows that may be taken for irrelevant to a query, best first."""
        ranked = islice(dataset.candidates[query].items(), self.skip, self.depth)
        ceiling = self._ceiling(dataset, query)
        return [row for row, score in ranked if score < ceiling and not dataset.is_relevant(row, query)]

    def suspects(self, dataset: Dataset, documents: Rows, queries: Rows) -> npt.NDArray[np.bool_]:
        """Pairs (D, Q) of a batch without a judgement that the first stage scores like a relevant one."""
        marks = np.zeros((len(documents), len(queries)), dtype=bool)
        for column, query in enumerate(queries.tolist() if self.below and dataset.candidates else ()):
            ceiling, scores = self._ceiling(dataset, query), dataset.candidates[query].items()
            close = [row for row, score in scores if score >= ceiling and not dataset.is_relevant(row, query)]
            marks[:, column] = np.isin(documents, close)
        return marks

    def _ceiling(self, dataset: Dataset, query: int) -> float:
        if self.below is None:
            return np.inf
        relevant = [score for row, score in dataset.candidates[query].items() if dataset.is_relevant(row, query)]
        return self.below * max(relevant) if relevant else np.inf


class Sampler:
    """Draws batches of a stage. A batch depends on the random generator it is given and on nothing drawn before."""

    def __init__(self, dataset: Dataset, stage: TrainingStage, rule: NegativeRule = NegativeRule()) -> None:
        """`rule`: of hard negatives."""
        self.stage, self._dataset, self._rule = stage, dataset, rule
        document_topics, query_topics = _topics_by_row(dataset)
        self._documents = _Pool(dataset.documents, document_topics, stage.document_weights)
        self._queries = _Pool(dataset.queries, query_topics, stage.query_weights)
        self.topics = np.array(sorted(self._documents.topics & self._queries.topics), dtype=np.int64)

    def draw_topics(self, random: np.random.Generator) -> Rows:
        """The topics of a batch, all different."""
        drawn: Rows = random.permutation(self.topics)[: self.stage.groups * self.stage.group_size]
        return drawn

    def draw(self, random: np.random.Generator, topics: Rows) -> Batch:
        """A document and a query for each of the topics, group by group, with what is known of them."""
        documents, queries = self.draw_rows(random, topics)
        if self.stage.hard_negatives:
            documents = self._with_negatives(documents, queries, random)
        grades, known = self.relations(documents, queries)
        return Batch(documents, queries, self.stage.groups, grades, known, self._teacher(documents, queries))

    def draw_rows(self, random: np.random.Generator, topics: Rows) -> tuple[Rows, Rows]:
        """A document and a query for each of the topics."""
        documents = np.array([self._documents.draw(int(topic), random) for topic in topics])
        return documents, np.array([self._queries.draw(int(topic), random) for topic in topics])

    def _with_negatives(self, documents: Rows, queries: Rows, random: np.random.Generator) -> Rows:
        """Each group's documents, followed by its queries' hard negatives; others at random where those run out."""
        groups, count = self.stage.groups, self.stage.hard_negatives
        rows: list[int] = []
        for positives, group in zip(documents.reshape(groups, -1), queries.reshape(groups, -1), strict=True):
            rows += positives.tolist()
            for query in group.tolist():
                negatives = random.permutation(self._rule.negatives(self._dataset, query))[:count]
                rows += [int(row) for row in negatives]
                rows += [
                    self._documents.draw(int(random.choice(self.topics)), random) for _ in range(count - len(negatives))
                ]
        return np.array(rows, dtype=np.int64)

    def _teacher(self, documents: Rows, queries: Rows) -> npt.NDArray[np.float32] | None:
        if not self._dataset.teacher:
            return None
        by_query = [self._dataset.teacher[query] for query in queries]
        logits = [[known.get(int(row), np.nan) for known in by_query] for row in documents]
        return np.array(logits, dtype=np.float32)

    def relations(self, documents: Rows, queries: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Grades and what is known of them, both (D, Q)."""
        grades = self._dataset.relevance(documents, queries)
        suspects = self._rule.suspects(self._dataset, documents, queries) & (grades == 0)
        return grades, ~(self._dataset.same_image(documents, queries) | suspects)


class _Pool:
    """The rows of each topic, by kind. `topics` are those of each row."""

    def __init__(self, table: Table, topics: Sequence[Sequence[int]], weights: Mapping[str, float]) -> None:
        self._rows: dict[int, dict[str, list[int]]] = {}
        self._weights = weights
        for row, kind in enumerate(table.kinds):
            if weights.get(kind, 0 if weights else 1) > 0:
                for topic in topics[row]:
                    self._rows.setdefault(topic, {}).setdefault(kind, []).append(row)
        self.topics = set(self._rows)

    def draw(self, topic: int, random: np.random.Generator) -> int:
        kinds = self._rows[topic]
        names = list(kinds)
        weights = np.array([self._weights.get(name, 1.0) for name in names])
        rows = kinds[names[int(random.choice(len(names), p=weights / weights.sum()))]]
        return rows[int(random.integers(len(rows)))]


def _topics_by_row(dataset: Dataset) -> tuple[list[list[int]], list[list[int]]]:
    """The topics by which documents and queries are drawn; without topics, each query and what is relevant to it."""
    if dataset.has_topics:
        tables = (dataset.documents.topics.tolist(), dataset.queries.topics.tolist())
        documents, queries = ([[topic] if topic >= 0 else [] for topic in topics] for topics in tables)
        return documents, queries
    documents = [[] for _ in dataset.documents.ids]  # there each document is a topic: its row
    for query, grades in enumerate(dataset.grades):
        for row in grades:
            documents[row].append(query)
    return documents, [[query] if grades else [] for query, grades in enumerate(dataset.grades)]
