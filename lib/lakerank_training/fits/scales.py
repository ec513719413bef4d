"""The scales of two rerankers' logits by which relevance is the probability that a pair is judged relevant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from lakerank.errors import EvaluationError
from lakerank_evaluation.analysis.scores import IMAGE, ScoredPairs, graded
from lakerank_evaluation.metrics.measures import Bools, Floats
from lakerank_training.fits.halves import held_out

#: The pairs of each of two rerankers, by its name in `model:`.
PAIRS = {"text": "pairs of texts", "image": "pairs with an image"}


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
        "held_out": held_out(pairs, predict),
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
