"""How well a network ranks held-out topics while it is trained: nDCG@10 over grids of documents × queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lakerank.training.learner import Learner
from lakerank.training.objective import Material, forward, similarities
from lakerank.training.tables import Items, Rows

#: Direction → (a query is a picture, a document is a picture).
DIRECTIONS = {
    "text→image": (False, True),
    "image→text": (True, False),
    "text→text": (False, False),
    "image→image": (True, True),
}


@dataclass(frozen=True)
class Slice:
    """A part of a lake: rows whose columns hold one of the values, or nothing."""

    material: Material
    document_only: Mapping[str, frozenset[str]]
    query_only: Mapping[str, frozenset[str]]
    left_out: frozenset[int] = frozenset()  # rows of queries that say what a query that is trained on says


@dataclass(frozen=True)
class Grid:
    """Documents of different topics and a query for each; `known` (D, Q) leaves out a picture against itself."""

    documents: Rows
    queries: Rows
    relevant: npt.NDArray[np.bool_]
    known: npt.NDArray[np.bool_]


def draw_grid(part: Slice, direction: str, candidates: int, seed: int) -> Grid | None:
    """One document and one query for up to `candidates` topics; None when there are fewer than ten."""
    query_pictures, document_pictures = DIRECTIONS[direction]
    random = np.random.default_rng(seed)
    lake = part.material.lake
    documents = _by_topic(lake.documents, part.document_only, document_pictures)
    queries = _by_topic(lake.queries, part.query_only, query_pictures, part.left_out)
    topics = sorted(documents.keys() & queries.keys())
    pairs: list[tuple[int, int]] = []
    for topic in random.permutation(topics):
        query = int(random.choice(queries[int(topic)]))
        others = [row for row in documents[int(topic)] if not _same_picture(part, row, query)]
        if others and len(pairs) < candidates:
            pairs.append((int(random.choice(others)), query))
    if len(pairs) < 10:
        return None
    rows = np.array(pairs)
    known = np.array([[not _same_picture(part, d, q) for q in rows[:, 1]] for d in rows[:, 0]])
    return Grid(rows[:, 0], rows[:, 1], lake.relevance(rows[:, 0], rows[:, 1]) > 0, known)


def grid_logits(learner: Learner, material: Material, grid: Grid, bf16: bool, queries_at_once: int = 20) -> np.ndarray:
    """Logits (D, Q) of every pair of a grid."""
    columns = []
    learner.network.eval()
    with torch.no_grad(), torch.autocast(learner.device.type, torch.bfloat16, enabled=bf16):
        for start in range(0, len(grid.queries), queries_at_once):
            some = grid.queries[start : start + queries_at_once]
            shape = (len(grid.documents), len(some))
            pair_documents = torch.arange(shape[0]).repeat_interleave(shape[1])
            pair_queries = torch.arange(shape[1]).repeat(shape[0])
            states = forward(learner, material, grid.documents, some, pair_documents, pair_queries)
            if states.logits is None:
                raise ValueError("a whole forward pass gives logits")
            columns.append(states.logits.view(shape).cpu().numpy())
    learner.network.train()
    return np.concatenate(columns, axis=1)


def grid_similarities(learner: Learner, material: Material, grid: Grid, bf16: bool) -> np.ndarray:
    """Similarities (D, Q) where matching starts: what can be measured before the layers above are trained."""
    count = len(grid.queries)
    behind = torch.arange(count).roll(1)
    learner.network.eval()
    with torch.no_grad(), torch.autocast(learner.device.type, torch.bfloat16, enabled=bf16):
        states = forward(learner, material, grid.documents, grid.queries, behind, torch.arange(count), whole=False)
        similarity = similarities(learner, states, torch.arange(count, device=learner.device)).float().cpu().numpy()
    learner.network.train()
    return similarity


def ndcg(scores: np.ndarray, relevant: np.ndarray, known: np.ndarray, depth: int = 10) -> float:
    """Mean nDCG@depth over queries (columns) of binary relevance (Järvelin and Kekäläinen 2002); ties by row."""
    order = np.argsort(np.where(known, -scores, np.inf), axis=0, kind="stable")
    gains = np.take_along_axis(relevant & known, order, axis=0)[:depth]
    discounts = 1 / np.log2(np.arange(2, len(gains) + 2))
    totals = np.minimum((relevant & known).sum(0), len(gains))
    ideal = np.array([discounts[:total].sum() for total in totals])
    counted = totals > 0
    return float(((gains * discounts[:, None]).sum(0)[counted] / ideal[counted]).mean())


def chance(relevant: np.ndarray, known: np.ndarray, depth: int = 10) -> float:
    """What a random order is expected to reach."""
    share = (relevant & known).sum(0) / known.sum(0)
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    totals = np.minimum((relevant & known).sum(0), depth)
    ideal = np.array([discounts[:total].sum() for total in totals])
    return float((share * discounts.sum() / np.maximum(ideal, 1e-9))[totals > 0].mean())


def evaluate(
    learner: Learner, slices: Mapping[str, Slice], candidates: int, seed: int, bf16: bool, whole: bool = True
) -> dict[str, float]:
    """nDCG@10 by slice and direction, for the directions that a slice has; by similarity unless `whole`."""
    measure = grid_logits if whole else grid_similarities
    figures = {}
    for name, part in slices.items():
        for direction in DIRECTIONS:
            grid = draw_grid(part, direction, candidates, seed)
            if grid is not None:
                scores = measure(learner, part.material, grid, bf16)
                figures[f"{name} {direction}"] = round(ndcg(scores, grid.relevant, grid.known), 4)
    return figures


def _by_topic(
    items: Items, only: Mapping[str, frozenset[str]], pictures: bool, left_out: frozenset[int] = frozenset()
) -> dict[int, list[int]]:
    columns = [(items.columns[name], values) for name, values in only.items()]
    found: dict[int, list[int]] = {}
    for row in np.flatnonzero((items.pictures >= 0) == pictures):
        kept = all(column[row] is None or column[row] in values for column, values in columns)
        if kept and items.topics[row] >= 0 and int(row) not in left_out:
            found.setdefault(int(items.topics[row]), []).append(int(row))
    return found


def _same_picture(part: Slice, document: int, query: int) -> bool:
    lake = part.material.lake
    picture = int(lake.queries.pictures[query])
    return picture >= 0 and picture == int(lake.documents.pictures[document])
