"""Labels and judgements: calibration of relevance, agreement of labels, and the thresholds that agree best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lakerank.errors import EvaluationError
from lakerank.evaluation.analysis.samples import Samples, graded
from lakerank.evaluation.metrics.gain import Floats, Ints

_BINS = 10


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """Ranked pairs with a grade, as columns (N,). `unjudged_are_0`: the judgements name relevant documents alone, so
    the others count as 0, as they do in every measure. `weight` is the number of pairs that a sampled one represents.
    """

    relevance: Floats
    grade: Ints
    label: Ints
    weight: Floats
    half: Ints
    unjudged_are_0: bool


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Mean relevance of the pairs in a bin of relevance, their number, and the share that is judged relevant."""

    relevance: float
    pairs: int
    relevant: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Labels against grades. `table[label][grade]` counts pairs; `kappa` is quadratically weighted.

    `reached[g - 1]` are precision and recall of "label ≥ g" as a prediction of "grade ≥ g".
    """

    pairs: int
    accuracy: float
    kappa: float
    table: tuple[tuple[int, ...], ...]
    reached: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """Thresholds that agree best with the judgements. `grades[k]` is the judgement of label k.

    `agreement` is over the pairs of the fit, `held_out` that of thresholds fitted to half the queries with the other
    half (None where a half lacks a grade), `current` that of the run's own labels.
    """

    thresholds: tuple[float, ...]
    grades: tuple[int, ...]
    agreement: Agreement
    held_out: Agreement | None
    current: Agreement
    unjudged_are_0: bool

    def as_dict(self) -> dict[str, Any]:
        """For a job's summary. Precision and recall are those of each label above 0 and the labels above it."""

        def rounded(agreement: Agreement | None) -> dict[str, Any] | None:
            if agreement is None:
                return None
            grades = [{"precision": round(p, 4), "recall": round(r, 4)} for p, r in agreement.reached]
            return {"accuracy": round(agreement.accuracy, 4), "kappa": round(agreement.kappa, 4), "at_least": grades}

        return {
            "label_thresholds": list(self.thresholds),
            "grades": list(self.grades),
            "method": "largest quadratically weighted kappa",
            "pairs": self.agreement.pairs,
            "unjudged_are_0": self.unjudged_are_0,
            "fitted": rounded(self.agreement),
            "held_out": rounded(self.held_out),
            "current": rounded(self.current),
        }


def judged_pairs(samples: Samples) -> JudgedPairs:
    """The pairs that have a grade."""
    strata, implied = graded(samples)

    def column(name: str) -> Floats:
        return np.concatenate([np.zeros(0), *(sample.column(name) for _, sample in strata)])

    rows = [len(sample.kept) for _, sample in strata]
    return JudgedPairs(
        column("relevance"),
        np.repeat([stratum.judgement or 0 for stratum, _ in strata], rows).astype(np.int64),
        column("label").astype(np.int64),
        np.repeat([sample.weight for _, sample in strata], rows).astype(np.float64),
        column("half").astype(np.int64),
        implied,
    )


def calibration(pairs: JudgedPairs) -> tuple[list[CalibrationBin], float]:
    """Ten equal bins of relevance, and the expected calibration error.

    The error is the mean distance between relevance and the share judged relevant, over pairs (M. Pakdaman Naeini et
    al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015).
    """
    number = np.minimum((pairs.relevance * _BINS).astype(int), _BINS - 1)
    weight = np.bincount(number, pairs.weight, _BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(number, pairs.weight * pairs.relevance, _BINS) / weight
        share = np.bincount(number, pairs.weight * (pairs.grade > 0), _BINS) / weight
    filled = np.flatnonzero(weight)
    bins = [CalibrationBin(float(mean[row]), round(weight[row]), float(share[row])) for row in filled]
    error = float((np.abs(mean - share) * weight)[filled].sum() / weight.sum()) if len(filled) else 0.0
    return bins, error


def agreement(label: Ints, grade: Ints, weight: Floats) -> Agreement:
    """Agreement of labels with grades, both from 0.

    Weighted kappa: J. Cohen, Weighted kappa (Psychological Bulletin 70, 1968), with squared distances.
    """
    size = int(max(label.max(initial=0), grade.max(initial=0))) + 1
    table = np.bincount(label * size + grade, weight, size * size).reshape(size, size)
    total = table.sum()
    distance = (np.arange(size)[:, None] - np.arange(size)[None, :]) ** 2
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / total if total else table
    expected_disagreement = (distance * expected).sum()
    kappa = 1 - (distance * table).sum() / expected_disagreement if expected_disagreement else 0.0
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
        EvaluationError: the judgements have fewer than two grades, or relevance has fewer values than grades.
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
        agreement(_labels(pairs.relevance, thresholds), rank, pairs.weight),
        _held_out(pairs, rank, len(grades)),
        agreement(pairs.label, rank, pairs.weight),
        pairs.unjudged_are_0,
    )


def _held_out(pairs: JudgedPairs, rank: Ints, grades: int) -> Agreement | None:
    label = np.zeros_like(rank)
    for half in (0, 1):
        fitted, measured = pairs.half == half, pairs.half != half
        if len(np.unique(rank[fitted])) < grades or len(np.unique(pairs.relevance[fitted])) < grades:
            return None
        thresholds = fitted_thresholds(pairs.relevance[fitted], rank[fitted], pairs.weight[fitted], grades)
        label[measured] = _labels(pairs.relevance[measured], thresholds)
    return agreement(label, rank, pairs.weight)


def _labels(relevance: Floats, thresholds: Sequence[float]) -> Ints:
    return np.searchsorted(np.asarray(thresholds, np.float32), relevance.astype(np.float32), side="right").astype(
        np.int64
    )


def fitted_thresholds(relevance: Floats, grade: Ints, weight: Floats, grades: int) -> tuple[float, ...]:
    """The rising thresholds, one less than `grades`, whose labels have the highest weighted kappa: the exact optimum.

    Kappa is 1 − N/D, where both N, the observed disagreement, and D, the disagreement expected by chance, are sums over
    pairs. So Dinkelbach's method (Management Science 13, 1967) finds the smallest ratio: the thresholds that minimise
    N − λD, by dynamic programming over the distinct relevances, then λ = N/D, until nothing changes.

    Raises:
        EvaluationError: relevance has fewer values than there are grades.
    """
    values, of_pair = np.unique(relevance, return_inverse=True)
    if len(values) < grades:
        raise EvaluationError(f"relevance takes {len(values)} value(s) only: too few to tell {grades} grades apart")
    mass = np.zeros((grades, len(values)))
    np.add.at(mass, (grade, of_pair), weight)
    steps = (np.arange(grades)[:, None] - np.arange(grades)[None, :]) ** 2  # (label, grade)
    observed = steps @ mass  # (label, value): disagreement if all pairs of a value get a label
    expected = (steps @ (mass.sum(axis=1) / mass.sum()))[:, None] * mass.sum(axis=0)[None, :]
    columns = np.arange(len(values))
    cuts, ratio = np.arange(1, grades), np.inf
    for _ in range(100):
        label = np.searchsorted(cuts, columns, side="right")
        reached = float(observed[label, columns].sum() / expected[label, columns].sum())
        if reached >= ratio - 1e-12:
            break
        ratio, cuts = reached, _least(observed - reached * expected)
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
