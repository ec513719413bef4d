"""Logits to one scale: for pairs of texts and for pairs with an image, the scale and bias that fit the judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from lakerank.errors import EvaluationError
from lakerank.evaluation.analysis.samples import Kind, Sample
from lakerank.evaluation.rows import MODALITY_NAMES

Floats = npt.NDArray[np.float64]

#: Pairs that one reranker of two scores, by what `model:` calls it.
PAIRS = {"text": "pairs of texts", "image": "pairs with an image"}

_IMAGE = MODALITY_NAMES.index("image")


@dataclass(frozen=True, slots=True)
class ScaleFit:
    """relevance = sigmoid(scale × logit + bias), as near to the judgements as it comes.

    `log_loss` is over the pairs it was fitted to, `held_out` that of fits to half the queries on the other half (None
    where a half has pairs of one kind only), `current` that of the run's own relevance. In nats a pair.
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


def fit_scales(samples: Mapping[Kind, Sample]) -> dict[str, ScaleFit | None]:
    """Fits for the pairs of PAIRS; None where none is judged relevant, or every one.

    Pairs without a judgement count as not relevant where the judgements name relevant documents alone.

    Raises:
        EvaluationError: there is nothing to fit to, or logits fall as relevance rises.
    """
    implied = not any(kind.judgement == 0 for kind in samples)
    judged = [(kind, sample) for kind, sample in samples.items() if kind.judgement is not None or implied]
    judged.sort(key=lambda item: (item[0].query_modality, item[0].modality, item[0].judgement or 0))
    fits = {name: _fit(name, [one for one in judged if _with_image(one[0]) == (name == "image")]) for name in PAIRS}
    if not any(fits.values()):
        raise EvaluationError("ranked pairs are judged neither relevant and not; judge more documents, or rank deeper")
    return fits


def platt(logit: Floats, relevant: Floats, weight: Floats) -> tuple[float, float]:
    """Scale and bias of the logistic regression of `relevant` (0 or 1) on the logit, all (N,).

    Targets are drawn in from 0 and 1 by the number of pairs, so that separable ones have a finite fit (J. Platt,
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


def _fit(name: str, kinds: list[tuple[Kind, Sample]]) -> ScaleFit | None:
    found = [(sample, float(bool(kind.judgement))) for kind, sample in kinds if sample.count]
    if len({relevant for _, relevant in found}) < 2:
        return None
    logit, relevance, half = (
        np.concatenate([sample.column(column) for sample, _ in found]) for column in ("logit", "relevance", "half")
    )
    relevant = np.concatenate([np.full(len(sample.kept), value) for sample, value in found])
    weight = np.concatenate([np.full(len(sample.kept), sample.weight) for sample, _ in found])
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
        fitted, judged = half == part, half != part
        if len(np.unique(relevant[fitted])) < 2:
            return None
        scale, bias = platt(logit[fitted], relevant[fitted], weight[fitted])
        probability[judged] = _sigmoid(scale * logit[judged] + bias)
    return log_loss(probability, relevant, weight)


def log_loss(probability: Floats, relevant: Floats, weight: Floats) -> float:
    """Mean of −log of the probability that was given to what was judged, in nats: (N,) each."""
    given = np.clip(np.where(relevant > 0, probability, 1 - probability), 1e-12, 1)
    return float(-(weight * np.log(given)).sum() / weight.sum())


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def _with_image(kind: Kind) -> bool:
    return bool((kind.query_modality | kind.modality) & _IMAGE)
