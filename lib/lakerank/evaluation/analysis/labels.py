"""Labels against judgements: how relevance is calibrated, how far labels agree, and thresholds that agree best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lakerank.errors import EvaluationError
from lakerank.evaluation.analysis.samples import Kind, Sample

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BINS = 10


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """Ranked pairs with a grade, as columns (N,). `unjudged_are_0`: the judgements name relevant documents alone, so
    the others count as 0, as they do in every measure.
    """

    relevance: Floats
    grade: Ints
    label: Ints
    weight: Floats
    half: Ints
    unjudged_are_0: bool


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose relevance is near `relevance`, and the share of them that is judged relevant."""

    relevance: float
    pairs: int
    relevant: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Labels against grades. `table[label][grade]` counts pairs; `kappa` is quadratically weighted.

    `reached[g]` are the precision and the recall of "label ≥ g" as a sign of "grade ≥ g", for every grade above 0.
    """

    pairs: int
    accuracy: float
    kappa: float
    table: tuple[tuple[int, ...], ...]
    reached: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """Thresholds that agree best with the judgements. `grades[k]` is the judgement that label k stands for.

    `agreement` is over the pairs that they were fitted to, `held_out` that of thresholds fitted to half the queries
    with the other half (None where a half lacks a grade), `current` that of the run's own labels.
    """

    thresholds: tuple[float, ...]
    grades: tuple[int, ...]
    agreement: Agreement
    held_out: Agreement | None
    current: Agreement
    unjudged_are_0: bool

    def as_dict(self) -> dict[str, Any]:
        """For a job's summary. Precision and recall are those of each label above 0 and the labels above it."""

        def said(one: Agreement | None) -> dict[str, Any] | None:
            if one is None:
                return None
            grades = [{"precision": round(p, 4), "recall": round(r, 4)} for p, r in one.reached]
            return {"accuracy": round(one.accuracy, 4), "kappa": round(one.kappa, 4), "at_least": grades}

        return {
            "label_thresholds": list(self.thresholds),
            "grades": list(self.grades),
            "method": "largest quadratically weighted kappa",
            "pairs": self.agreement.pairs,
            "unjudged_are_0": self.unjudged_are_0,
            "fitted": said(self.agreement),
            "held_out": said(self.held_out),
            "current": said(self.current),
        }


def judged_pairs(samples: Mapping[Kind, Sample]) -> JudgedPairs:
    """The pairs that have a grade."""
    implied = not any(kind.judgement == 0 for kind in samples)
    parts: list[list[Floats]] = []
    for kind in sorted(
        samples, key=lambda one: (one.query_modality, one.modality, one.judgement or 0, one.judgement is None)
    ):
        if kind.judgement is None and not implied:
            continue
        sample = samples[kind]
        rows = len(sample.kept)
        grade = np.full(rows, float(kind.judgement or 0))
        columns = (sample.column("relevance"), grade, sample.column("label"), np.full(rows, sample.weight))
        parts.append([*columns, sample.column("half")])
    empty = [np.zeros(0)] * 5
    relevance, grade, label, weight, half = (np.concatenate(column) for column in zip(*(parts or [empty]), strict=True))
    whole = [column.astype(np.int64) for column in (grade, label, half)]
    return JudgedPairs(relevance, whole[0], whole[1], weight, whole[2], implied)


def calibration(pairs: JudgedPairs) -> tuple[list[Bin], float]:
    """Ten equal bins of relevance with the share judged relevant in each, and the expected calibration error.

    The error is the mean distance between relevance and that share, by pairs (M. Pakdaman Naeini et al., Obtaining
    Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015).
    """
    number = np.minimum((pairs.relevance * _BINS).astype(int), _BINS - 1)
    weight = np.bincount(number, pairs.weight, _BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(number, pairs.weight * pairs.relevance, _BINS) / weight
        share = np.bincount(number, pairs.weight * (pairs.grade > 0), _BINS) / weight
    held = weight > 0
    bins = [Bin(float(mean[one]), round(weight[one]), float(share[one])) for one in np.flatnonzero(held)]
    error = float((np.abs(mean - share) * weight)[held].sum() / weight.sum()) if held.any() else 0.0
    return bins, error


def agreement(label: Ints, grade: Ints, weight: Floats) -> Agreement:
    """How far labels agree with grades, both from 0.

    Weighted kappa: J. Cohen, Weighted kappa (Psychological Bulletin 70, 1968), with squared distances.
    """
    size = int(max(label.max(initial=0), grade.max(initial=0))) + 1
    table = np.bincount(label * size + grade, weight, size * size).reshape(size, size)
    total = table.sum()
    distance = (np.arange(size)[:, None] - np.arange(size)[None, :]) ** 2
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / total if total else table
    by_chance = (distance * expected).sum()
    kappa = 1 - (distance * table).sum() / by_chance if by_chance else 0.0
    reached = []
    for least in range(1, size):
        both, predicted, actual = table[least:, least:].sum(), table[least:].sum(), table[:, least:].sum()
        reached.append((float(both / predicted) if predicted else 0.0, float(both / actual) if actual else 0.0))
    counts = tuple(tuple(round(count) for count in row) for row in table.tolist())
    accuracy = float(np.trace(table) / total) if total else 0.0
    return Agreement(round(total), accuracy, float(kappa), counts, tuple(reached))


def fit(pairs: JudgedPairs) -> Fit:
    """Fit a threshold for every grade above the lowest.

    Raises:
        EvaluationError: fewer than two grades were judged, or relevance takes too few values to part them.
    """
    grades = tuple(int(grade) for grade in np.unique(pairs.grade))
    if len(grades) < 2:
        raise EvaluationError(
            f"ranked pairs have {len(grades)} grade(s) {list(grades)}: labels are fitted to two or more; "
            "judge more documents, or rank deeper"
        )
    rank = np.searchsorted(grades, pairs.grade)
    thresholds = fitted_thresholds(pairs.relevance, rank, pairs.weight, len(grades))
    return Fit(
        thresholds,
        grades,
        agreement(_labelled(pairs.relevance, thresholds), rank, pairs.weight),
        _held_out(pairs, rank, len(grades)),
        agreement(pairs.label, rank, pairs.weight),
        pairs.unjudged_are_0,
    )


def _held_out(pairs: JudgedPairs, rank: Ints, grades: int) -> Agreement | None:
    label = np.zeros_like(rank)
    for half in (0, 1):
        fitted, judged = pairs.half == half, pairs.half != half
        if len(np.unique(rank[fitted])) < grades or len(np.unique(pairs.relevance[fitted])) < grades:
            return None
        thresholds = fitted_thresholds(pairs.relevance[fitted], rank[fitted], pairs.weight[fitted], grades)
        label[judged] = _labelled(pairs.relevance[judged], thresholds)
    return agreement(label, rank, pairs.weight)


def _labelled(relevance: Floats, thresholds: Sequence[float]) -> Ints:
    return np.searchsorted(np.asarray(thresholds, np.float32), relevance.astype(np.float32), side="right").astype(
        np.int64
    )


def fitted_thresholds(relevance: Floats, grade: Ints, weight: Floats, grades: int) -> tuple[float, ...]:
    """The rising thresholds, one less than `grades`, whose labels have the highest weighted kappa; no others do better.

    Kappa is 1 − N/D, and for given grades both N, the observed disagreement, and D, that by chance, are sums over
    pairs. So the best ratio is found by Dinkelbach's method (Management Science 13, 1967): the thresholds that make
    N − λD least, by dynamic programming over the distinct relevances, then λ = N/D, until nothing changes.

    Raises:
        EvaluationError: relevance takes fewer values than there are grades.
    """
    values, of_pair = np.unique(relevance, return_inverse=True)
    if len(values) < grades:
        raise EvaluationError(f"relevance takes {len(values)} value(s) only: too few to tell {grades} grades apart")
    mass = np.zeros((grades, len(values)))
    np.add.at(mass, (grade, of_pair), weight)
    steps = (np.arange(grades)[:, None] - np.arange(grades)[None, :]) ** 2  # (label, grade)
    observed = steps @ mass  # (label, value): disagreement if all pairs of a value get a label
    chance = (steps @ (mass.sum(axis=1) / mass.sum()))[:, None] * mass.sum(axis=0)[None, :]
    columns = np.arange(len(values))
    cuts, ratio = np.arange(1, grades), np.inf
    for _ in range(100):
        label = np.searchsorted(cuts, columns, side="right")
        reached = float(observed[label, columns].sum() / chance[label, columns].sum())
        if reached >= ratio - 1e-12:
            break
        ratio, cuts = reached, _least(observed - reached * chance)
    return tuple(_between(values[cut - 1], values[cut]) for cut in cuts)


def _least(costs: Floats) -> Ints:
    """Where each label after the first begins, so that the sum of costs (label, value) is least; no label is empty."""
    labels, values = costs.shape
    sums = np.concatenate([np.zeros((labels, 1)), np.cumsum(costs, axis=1)], axis=1)  # (L, V + 1)
    best = np.where(np.arange(values + 1) >= 1, sums[0], np.inf)
    came_from = []
    for label in range(1, labels):
        open_cost = best - sums[label]
        # Strictly before: each label gets a value at least.
        earlier = np.concatenate([[np.inf], np.minimum.accumulate(open_cost)[:-1]])
        is_new = np.concatenate([[True], open_cost[1:] < np.minimum.accumulate(open_cost)[:-1]])
        latest = np.maximum.accumulate(np.where(is_new, np.arange(values + 1), 0))
        came_from.append(np.concatenate([[0], latest[:-1]]))
        best = earlier + sums[label]
    cuts, end = [], values
    for origin in reversed(came_from):
        end = int(origin[end])
        cuts.append(end)
    return np.array(cuts[::-1], np.int64)


def _between(low: float, high: float) -> float:
    """The shortest decimal above one relevance and at most the next, as float32 has them."""
    lower, upper = np.float32(low), np.float32(high)
    for digits in range(2, 9):
        short = round((float(lower) + float(upper)) / 2, digits)
        if lower < np.float32(short) <= upper:
            return short
    return float(upper)
