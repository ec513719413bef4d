"""Relevance and labels against judgements: calibration, agreement, and the thresholds and scales that fit best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from lakerank.errors import EvaluationError
from lakerank.evaluation.analysis.scores import IMAGE, ScoredPairs, graded, unjudged_are_0
from lakerank.evaluation.pairs import Bools, Floats, Ints
from lakerank.ranking import labels

#: The pairs of each of two rerankers, by its name in `model:`.
PAIRS = {"text": "pairs of texts", "image": "pairs with an image"}

_BINS = 10

#: Labels below either are worth little: of a kappa that J. Landis, G. Koch (Biometrics 33, 1977) call slight.
LEAST_KAPPA, _LEAST_PRECISION = 0.2, 0.1


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


def fit(pairs: ScoredPairs) -> Fit:
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
    held_out = _held_out(pairs, predict)
    return Fit(
        thresholds,
        tuple(grades.tolist()),
        agrees(_labels(pairs, thresholds)),
        None if held_out is None else agrees(held_out.astype(np.int64)),
        agrees(pairs["label"]),
        implied,
    )


def _labels(pairs: ScoredPairs, thresholds: tuple[float, ...]) -> Ints:
    return labels(pairs["relevance"].astype(np.float32), thresholds).astype(np.int64)


def _held_out(pairs: ScoredPairs, predict: Callable[[ScoredPairs, ScoredPairs], Floats | Ints | None]) -> Floats | None:
    """What `predict(fitted, measured)` says of each half of the queries, fitted to the other: (N,), or None."""
    result = np.zeros(len(pairs))
    for half in (0, 1):
        measured = pairs["half"] != half
        predicted = predict(pairs[~measured], pairs[measured])
        if predicted is None:
            return None
        result[measured] = predicted
    return result


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


@dataclass(frozen=True, slots=True)
class ScaleFit:
    """relevance = sigmoid(scale × logit + bias), fitted to the judgements.

    `log_loss`, in nats a pair: `current` of the run's own relevance, `fitted` over the pairs of the fit, `held_out` of
    fits to half the queries on the other half (None where a half has no relevant pairs, or no others).
    """

    scale: float
    bias: float
    pairs: int
    relevant: int
    log_loss: Mapping[str, float | None]


def fit_scales(pairs: ScoredPairs) -> dict[str, ScaleFit | None]:
    """Fits for the pairs of PAIRS; None where none is judged relevant, or every one.

    Pairs without a judgement count as not relevant where the judgements name relevant documents alone.

    Raises:
        EvaluationError: there is nothing to fit to, or logits fall as relevance rises.
    """
    pairs = graded(pairs)
    has_image = (pairs["query_modality"] | pairs["modality"]) & IMAGE > 0
    fits = {name: _fit_scale(name, pairs[has_image == (name == "image")]) for name in PAIRS}
    if not any(fits.values()):
        raise EvaluationError("ranked pairs are judged neither relevant and not; judge more documents, or rank deeper")
    return fits


def _fit_scale(name: str, pairs: ScoredPairs) -> ScaleFit | None:
    relevant, weight = pairs["judgement"] > 0, pairs["weight"]
    if len(np.unique(relevant)) < 2:
        return None
    scale, bias = (float(f"{value:.6g}") for value in platt(pairs["logit"], relevant, weight))
    if scale <= 0:
        raise EvaluationError(
            f"{PAIRS[name]}: logits fall as relevance rises (scale {scale:g}): no calibration makes such a list right; "
            "look at the run's figures, and at the judgements"
        )

    def predict(fitted: ScoredPairs, measured: ScoredPairs) -> Floats | None:
        is_relevant = fitted["judgement"] > 0
        if len(np.unique(is_relevant)) < 2:
            return None
        scale, bias = platt(fitted["logit"], is_relevant, fitted["weight"])
        return np.asarray(expit(scale * measured["logit"] + bias))

    probabilities = {
        "current": pairs["relevance"],
        "fitted": expit(scale * pairs["logit"] + bias),
        "held_out": _held_out(pairs, predict),
    }
    losses = {
        key: None if probability is None else round(log_loss(probability, relevant, weight), 4)
        for key, probability in probabilities.items()
    }
    return ScaleFit(scale, bias, round(weight.sum()), round(weight[relevant].sum()), losses)


def platt(logit: Floats, relevant: Bools, weight: Floats) -> tuple[float, float]:
    """Scale and bias of the logistic regression of `relevant` on the logit, all (N,).

    Targets are moved from 0 and 1 by the number of pairs, so that separable pairs have a finite fit (J. Platt,
    Probabilistic Outputs for Support Vector Machines, 1999).
    """
    positive, negative = weight[relevant].sum(), weight[~relevant].sum()
    target = np.where(relevant, (positive + 1) / (positive + 2), 1 / (negative + 2))
    share = weight / weight.sum()
    mean = (share * logit).sum()
    spread = float(np.sqrt((share * (logit - mean) ** 2).sum())) or 1.0
    z = (logit - mean) / spread

    def loss(parameters: Floats) -> tuple[float, Floats]:
        f = parameters[0] * z + parameters[1]
        slope = share * (expit(f) - target)
        return float((share * (np.logaddexp(0, f) - target * f)).sum()), np.array([(slope * z).sum(), slope.sum()])

    start = np.array([0.0, np.log((positive + 1) / (negative + 1))])
    slope, offset = minimize(loss, start, jac=True, method="BFGS").x.tolist()
    return slope / spread, offset - slope * mean / spread


def log_loss(probability: Floats, relevant: Bools, weight: Floats) -> float:
    """Mean of −log of the probability of the judgement, in nats: (N,) each."""
    likelihood = np.clip(np.where(relevant, probability, 1 - probability), 1e-12, 1)
    return float(-(weight * np.log(likelihood)).sum() / weight.sum())
