"""Held-out data: checks for leaks from the training data, and how well a network ranks it (nDCG@10)."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lakerank_evaluation.metrics.measures import NAMES, PRIMARY, list_figures
from lakerank_training.batches import TrainingStage
from lakerank_training.dataset import Dataset, Rows, Table
from lakerank_training.inputs import EncodedDataset
from lakerank_training.losses import Objective

log = logging.getLogger(__name__)

#: Direction → (a query is an image, a document is an image).
DIRECTIONS = {
    "text→image": (False, True),
    "image→text": (True, False),
    "text→text": (False, False),
    "image→image": (True, True),
}

#: A direction with fewer topics is not measured.
FEWEST_TOPICS = 10


@dataclass(frozen=True)
class HeldOutSlice:
    """A part of a dataset: rows of some kinds; of any, where none is named.

    `trained_on`: it is the tables that are trained on; its figures say what was learned. `same_topics`: its queries may
    be about topics that are trained on. `duplicates`: rows of queries whose content is that of a query trained on.
    """

    data: EncodedDataset
    document_kinds: tuple[str, ...] = ()
    query_kinds: tuple[str, ...] = ()
    trained_on: bool = False
    same_topics: bool = False
    duplicates: frozenset[int] = frozenset()


@dataclass(frozen=True)
class RankingGrid:
    """Documents of different topics and a query for each; `known` (D, Q) leaves out an image against itself."""

    documents: Rows
    queries: Rows
    relevant: npt.NDArray[np.bool_]
    known: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Validation:
    """What is measured: the slices, each over up to `candidates` documents of different topics, drawn by the seed."""

    slices: Mapping[str, HeldOutSlice]
    candidates: int = 100
    seed: int = 0
    bf16: bool = False

    def measure(self, objective: Objective, stage: TrainingStage) -> dict[str, float]:
        """nDCG@10 by slice and direction, for the directions that a slice has, as the stage ranks."""
        measured = {}
        network = objective.network.network.eval()
        with torch.no_grad(), torch.autocast(objective.network.device.type, torch.bfloat16, enabled=self.bf16):
            for name, part in self.slices.items():
                for direction, grid in self._grids(part).items():
                    scores = objective.grid_scores(stage, part.data, grid.documents, grid.queries)
                    measured[f"{name} {direction}"] = round(mean_ndcg(scores, grid), 4)
        network.train()
        return measured

    def _grids(self, part: HeldOutSlice) -> dict[str, RankingGrid]:
        """Of the directions in which a slice has enough topics."""
        grids = {direction: draw_grid(part, direction, self.candidates, self.seed) for direction in DIRECTIONS}
        return {direction: grid for direction, grid in grids.items() if grid is not None}

    def faults(self, trained: Dataset) -> list[str]:
        """Slices that cannot be measured, or that share queries or topics with what is trained on."""
        faults = []
        for name, part in self.slices.items():
            at, held_out = f"evaluation.slices: {name}:", part.data.dataset
            if not self._grids(part):
                faults.append(f"{at} fewer than ten topics in every direction; nothing can be measured")
            if part.trained_on:
                log.info("slice %s: queries that are trained on; its figures say what was learned", name)
            elif shared := set(held_out.queries.ids) & set(trained.queries.ids):
                faults.append(
                    f"{at} {len(shared)} of its queries are trained on ({min(shared)!r} first); "
                    "split the lake by what rows are about"
                )
            elif not part.same_topics and (topics := _query_topics(held_out) & _query_topics(trained)):
                faults.append(
                    f"{at} {len(topics)} of the topics that its queries are about are trained on "
                    f"({min(topics)!r} first); split queries by topic, or set same_topics: true to measure that"
                )
        return faults


def draw_grid(part: HeldOutSlice, direction: str, candidates: int, seed: int) -> RankingGrid | None:
    """One document and one query for up to `candidates` topics; None when there are fewer than ten."""
    query_images, document_images = DIRECTIONS[direction]
    random = np.random.default_rng(seed)
    dataset = part.data.dataset
    documents = _rows_by_topic(dataset.documents, part.document_kinds, document_images)
    queries = _rows_by_topic(dataset.queries, part.query_kinds, query_images, part.duplicates)
    pairs: list[tuple[int, int]] = []
    for topic in random.permutation(sorted(documents.keys() & queries.keys())).tolist():
        query = int(random.choice(queries[topic]))
        itself = dataset.same_image(np.array(documents[topic]), np.array([query]))[:, 0]
        others = [row for row, is_itself in zip(documents[topic], itself, strict=True) if not is_itself]
        if others and len(pairs) < candidates:
            pairs.append((int(random.choice(others)), query))
    if len(pairs) < FEWEST_TOPICS:
        return None
    rows, asked = np.array(pairs).T
    return RankingGrid(rows, asked, dataset.relevance(rows, asked) > 0, ~dataset.same_image(rows, asked))


def mean_ndcg(scores: np.ndarray, grid: RankingGrid) -> float:
    """Evaluation's nDCG@10 of scores (D, Q), the mean over queries with a relevant document; ties by row."""
    relevant = grid.relevant & grid.known
    lists, judgements = [], []
    for query in np.flatnonzero(relevant.any(0)):
        known = np.flatnonzero(grid.known[:, query])
        lists.append([str(row) for row in known[np.argsort(-scores[known, query], kind="stable")]])
        judgements.append({str(row): 1 for row in np.flatnonzero(relevant[:, query])})
    return float(list_figures(lists, judgements)[:, NAMES.index(PRIMARY)].mean())


def duplicate_queries(dataset: Dataset, trained: Dataset) -> frozenset[int]:
    """Rows of queries whose text and image are those of a query that is trained on, under whatever id."""
    known = set(_query_contents(trained))
    return frozenset(row for row, content in enumerate(_query_contents(dataset)) if content in known)


def _query_contents(dataset: Dataset) -> Iterator[tuple[str | None, bytes]]:
    shown = {int(image) for image in dataset.queries.images if image >= 0}
    digests = {image: hashlib.blake2b(dataset.images.pixels[image].tobytes()).digest() for image in shown}
    for text, image in zip(dataset.queries.texts, dataset.queries.images, strict=True):
        yield text, digests.get(int(image), b"")


def _query_topics(dataset: Dataset) -> set[str]:
    """Names of the topics that queries are about. Documents about others may be the same: only queries are learned."""
    names = {dataset.topics[topic] for topic in dataset.queries.topics.tolist() if topic >= 0}
    return {name for name in names if name is not None}


def _rows_by_topic(
    table: Table, kinds: tuple[str, ...], images: bool, left_out: frozenset[int] = frozenset()
) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(((table.images >= 0) == images) & (table.topics >= 0)).tolist():
        if row not in left_out and (not kinds or table.kinds[row] in kinds):
            rows[int(table.topics[row])].append(row)
    return rows
