"""The thresholds of labels that agree best with judgements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lakerank.errors import EvaluationError
from lakerank.ranking import labels
from lakerank_evaluation.analysis.calibration import LEAST_KAPPA, Agreement, agreement
from lakerank_evaluation.analysis.scores import ScoredPairs, graded, unjudged_are_0
from lakerank_evaluation.metrics.measures import Floats, Ints
from lakerank_training.fits.halves import held_out

#: Labels of a lower one are worth little, as those below LEAST_KAPPA are.
_LEAST_PRECISION = 0.1


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

    @property
    def warning(self) -> str | None:
        """Why the thresholds are worth little; None: they are not."""
        measured = self.held_out or self.agreement
        precision = min((precision for precision, _ in measured.reached), default=1.0)
        if measured.kappa >= LEAST_KAPPA and precision >= _LEAST_PRECISION:
            return None
        return (
            f"these thresholds are worth little: kappa {measured.kappa:.3f}, and of the pairs with one of the labels "
            f"only {precision:.1%} are judged so well. Judge a sample of ranked documents, the bad ones too, or take "
            "another model; until then do not use the labels"
        )

    def as_dict(self) -> dict[str, Any]:
        """For a job's summary. Precision and recall are those of each label above 0 and the labels above it."""
        return {
            "label_thresholds": list(self.thresholds),
            "grades": list(self.grades),
            "method": "largest quadratically weighted kappa",
            "pairs": self.agreement.pairs,
            "unjudged_are_0": self.unjudged_are_0,
            "warning": self.warning,
            "fitted": self.agreement.as_dict(),
            "held_out": self.held_out and self.held_out.as_dict(),
            "current": self.current.as_dict(),
        }


def fit_thresholds(pairs: ScoredPairs) -> Fit:
    """Fit a threshold for every grade above the lowest.

    Raises:
        EvaluationError: the judgements have fewer than two grades, or relevance has fewer values than grades.
    """
    implied, pairs = unjudged_are_0(pairs), graded(pairs)
    grades, grade = np.unique(pairs["judgement"], return_inverse=True)
    if len(grades) < 2:
        raise EvaluationError(
            f"ranked pairs have {len(grades)} grade(s) {grades.tolist()}: labels are fitted to two or more; "
            "judge more documents, or rank deeper"
        )
    pairs["judgement"] = grade

    def predict(fitted: ScoredPairs, measured: ScoredPairs) -> Ints | None:
        if min(len(np.unique(fitted["judgement"])), len(np.unique(fitted["relevance"]))) < len(grades):
            return None
        return _labels(measured, fitted_thresholds(fitted, len(grades)))

    def agrees(label: Ints) -> Agreement:
        return agreement(label, grade, pairs["weight"])

    thresholds = fitted_thresholds(pairs, len(grades))
    predicted = held_out(pairs, predict)
    return Fit(
        thresholds,
        tuple(grades.tolist()),
        agrees(_labels(pairs, thresholds)),
        None if predicted is None else agrees(predicted.astype(np.int64)),
        agrees(pairs["label"]),
        implied,
    )


def _labels(pairs: ScoredPairs, thresholds: tuple[float, ...]) -> Ints:
    return labels(pairs["relevance"].astype(np.float32), thresholds).astype(np.int64)


def fitted_thresholds(pairs: ScoredPairs, grades: int) -> tuple[float, ...]:
    """The rising thresholds, one less than `grades`, whose labels have the highest weighted kappa: the exact optimum.

    Judgements are numbers of grades, from 0.

    Kappa is 1 − N/D, where both N, the observed disagreement, and D, the disagreement expected at random, are sums over
    pairs. So Dinkelbach's method (Management Science 13, 1967) finds the smallest ratio: the thresholds that minimise
    N − λD, by dynamic programming over the distinct relevances, then λ = N/D, until nothing changes.

    Raises:
        EvaluationError: relevance has fewer values than there are grades.
    """
    values, of_pair = np.unique(pairs["relevance"], return_inverse=True)
    if len(values) < grades:
        raise EvaluationError(f"relevance takes {len(values)} value(s) only: too few to tell {grades} grades apart")
    mass = np.zeros((grades, len(values)))
    np.add.at(mass, (pairs["judgement"], of_pair), pairs["weight"])
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
    sums = np.concatenate([np.zeros((len(costs), 1)), np.cumsum(costs, axis=1)], axis=1)  # (L, V + 1)
    best, origins = np.concatenate([[np.inf], sums[0, 1:]]), []
    for of_label in sums[1:]:
        lowest = np.minimum.accumulate(best - of_label)[:-1]  # strictly before: each label gets a value at least
        origins.append(np.concatenate([[0], np.searchsorted(-lowest, -lowest)]))  # where each was reached first
        best = np.concatenate([[np.inf], lowest]) + of_label
    cuts = [costs.shape[1]]
    for origin in reversed(origins):
        cuts.append(int(origin[cuts[-1]]))
    return np.array(cuts[:0:-1], np.int64)


def _between(low: float, high: float) -> float:
    """The shortest decimal above one relevance and at most the next, as float32 has them."""
    lower, upper = np.float32(low), np.float32(high)
    for digits in range(2, 9):
        short = round((float(lower) + float(upper)) / 2, digits)
        if lower < np.float32(short) <= upper:
            return short
    return float(upper)
