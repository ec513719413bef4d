"""Relevance and labels against judgements: calibration and agreement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lakerank_evaluation.analysis.scores import ScoredPairs
from lakerank_evaluation.metrics.measures import Floats, Ints

_BINS = 10

#: Labels below it are worth little: what J. Landis, G. Koch (Biometrics 33, 1977) call slight.
LEAST_KAPPA = 0.2


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Mean relevance of the pairs in a bin of relevance, their number, and the share that is judged relevant."""

    relevance: float
    pairs: int
    relevant: float


def calibration(pairs: ScoredPairs) -> tuple[list[CalibrationBin], float]:
    """Ten equal bins of relevance of graded pairs, and the expected calibration error.

    The error is the mean distance between relevance and the share judged relevant, over pairs (M. Pakdaman Naeini et
    al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015).
    """
    number = np.minimum((pairs["relevance"] * _BINS).astype(int), _BINS - 1)
    weight = np.bincount(number, pairs["weight"], _BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(number, pairs["weight"] * pairs["relevance"], _BINS) / weight
        share = np.bincount(number, pairs["weight"] * (pairs["judgement"] > 0), _BINS) / weight
    filled = np.flatnonzero(weight)
    bins = [CalibrationBin(float(mean[row]), round(weight[row]), float(share[row])) for row in filled]
    error = float((np.abs(mean - share) * weight)[filled].sum() / weight.sum()) if len(filled) else 0.0
    return bins, error


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

    def as_dict(self) -> dict[str, Any]:
        """For a job's summary."""
        grades = [{"precision": round(p, 4), "recall": round(r, 4)} for p, r in self.reached]
        return {"accuracy": round(self.accuracy, 4), "kappa": round(self.kappa, 4), "at_least": grades}


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

    def share(part: float, whole: float) -> float:
        return float(part / whole) if whole else 0.0

    reached = []
    for least in range(1, size):
        both = table[least:, least:].sum()
        reached.append((share(both, table[least:].sum()), share(both, table[:, least:].sum())))
    counts = tuple(tuple(round(count) for count in row) for row in table.tolist())
    return Agreement(round(total), share(np.trace(table), total), float(kappa), counts, tuple(reached))
