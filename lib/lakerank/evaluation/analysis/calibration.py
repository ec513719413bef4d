"""Calibration of logits: the scale and bias that fit the judgements, for pairs of texts and for pairs with an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from lakerank.errors import EvaluationError
from lakerank.evaluation.analysis.samples import Sample, Samples, Stratum, graded
from lakerank.evaluation.metrics.gain import Floats
from lakerank.evaluation.pairs import MODALITY_NAMES

#: The pairs of each of two rerankers, by its name in `model:`.
PAIRS = {"text": "pairs of texts", "image": "pairs with an image"}

_IMAGE = MODALITY_NAMES.index("image")


@dataclass(frozen=True, slots=True)
class ScaleFit:
    """relevance = sigmoid(scale × logit + bias), fitted to the judgements.

    `log_loss` is over the pairs of the fit, `held_out` that of fits to half the queries on the other half (None where a
    half has no relevant pairs, or no others), `current` that of the run's own relevance. In nats a pair.
    """

    scale: float
    bias: float
    pairs: int
    relevant: int
    log_loss: float
    held_out: float | None
    current: float

    def as_dict(self) -> dict[str, Any]:
        """For a job's summary."""
        losses = {"current": self.current, "fitted": self.log_loss, "held_out": self.held_out}
        return {
            "scale": self.scale,
            "bias": self.bias,
            "pairs": self.pairs,
            "relevant": self.relevant,
            "log_loss": {name: None if loss is None else round(loss, 4) for name, loss in losses.items()},
        }


def fit_scales(samples: Samples) -> dict[str, ScaleFit | None]:
    """Fits for the pairs of PAIRS; None where none is judged relevant, or every one.

    Pairs without a judgement count as not relevant where the judgements name relevant documents alone.

    Raises:
        EvaluationError: there is nothing to fit to, or logits fall as relevance rises.
    """
    strata, _ = graded(samples)
    fits = {name: _fit(name, [item for item in strata if _has_image(item[0]) == (name == "image")]) for name in PAIRS}
    if not any(fits.values()):
        raise EvaluationError("ranked pairs are judged neither relevant and not; judge more documents, or rank deeper")
    return fits


def platt(logit: Floats, relevant: Floats, weight: Floats) -> tuple[float, float]:
    """Scale and bias of the logistic regression of `relevant` (0 or 1) on the logit, all (N,).

    Targets are moved from 0 and 1 by the number of pairs, so that separable pairs have a finite fit (J. Platt,
    Probabilistic Outputs for Support Vector Machines, 1999).
    """
    positive, negative = (weight * relevant).sum(), (weight * (1 - relevant)).sum()
    target = np.where(relevant > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    share = weight / weight.sum()
    mean = (share * logit).sum()
    spread = float(np.sqrt((share * (logit - mean) ** 2).sum())) or 1.0
    z = (logit - mean) / spread

    def loss(parameters: Floats) -> tuple[float, Floats]:
        f = parameters[0] * z + parameters[1]
        slope = share * (_sigmoid(f) - target)
        return float((share * (np.logaddexp(0, f) - target * f)).sum()), np.array([(slope * z).sum(), slope.sum()])

    start = np.array([0.0, np.log((positive + 1) / (negative + 1))])
    slope, offset = minimize(loss, start, jac=True, method="BFGS").x.tolist()
    return slope / spread, offset - slope * mean / spread


def _fit(name: str, strata: list[tuple[Stratum, Sample]]) -> ScaleFit | None:
    samples = [sample for _, sample in strata]
    if len({bool(stratum.judgement) for stratum, sample in strata if sample.count}) < 2:
        return None
    logit, relevance, half = (
        np.concatenate([sample.column(column) for sample in samples]) for column in ("logit", "relevance", "half")
    )
    relevant = np.concatenate([np.full(len(sample.kept), float(bool(stratum.judgement))) for stratum, sample in strata])
    weight = np.concatenate([np.full(len(sample.kept), sample.weight) for sample in samples])
    scale, bias = (float(f"{value:.6g}") for value in platt(logit, relevant, weight))
    if scale <= 0:
        raise EvaluationError(
            f"{PAIRS[name]}: logits fall as relevance rises (scale {scale:g}): no calibration makes such a list right; "
            "look at the run's figures, and at the judgements"
        )
    return ScaleFit(
        scale,
        bias,
        round(weight.sum()),
        round((weight * relevant).sum()),
        log_loss(_sigmoid(scale * logit + bias), relevant, weight),
        _held_out(logit, relevant, weight, half),
        log_loss(relevance, relevant, weight),
    )


def _held_out(logit: Floats, relevant: Floats, weight: Floats, half: Floats) -> float | None:
    probability = np.zeros_like(logit)
    for part in (0, 1):
        fitted, measured = half == part, half != part
        if len(np.unique(relevant[fitted])) < 2:
            return None
        scale, bias = platt(logit[fitted], relevant[fitted], weight[fitted])
        probability[measured] = _sigmoid(scale * logit[measured] + bias)
    return log_loss(probability, relevant, weight)


def log_loss(probability: Floats, relevant: Floats, weight: Floats) -> float:
    """Mean of −log of the probability of the judgement, in nats: (N,) each."""
    likelihood = np.clip(np.where(relevant > 0, probability, 1 - probability), 1e-12, 1)
    return float(-(weight * np.log(likelihood)).sum() / weight.sum())


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def _has_image(stratum: Stratum) -> bool:
    return bool((stratum.query_modality | stratum.modality) & _IMAGE)
