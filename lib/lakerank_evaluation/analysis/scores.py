"""Score distributions: a reservoir sample of ranked pairs, and the modality gap between their scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from lakerank.fingerprint import splitmix64
from lakerank_evaluation.metrics.bootstrap import Hashes
from lakerank_evaluation.metrics.measures import Bools, Floats
from lakerank_evaluation.pairs import MODALITY_NAMES, Pairs

#: Pairs kept of each stratum, which are alike in STRATUM: all where there are no more.
RESERVOIR_PAIRS = 10_000
STRATUM = ["query_modality", "modality", "judgement"]

#: A ranked pair of a judged query. Modalities are codes of MODALITY_NAMES; `judgement` is -1 where there is none;
#: `draw` is random; `half` is 0 or 1 by query, for fits that are measured on queries they were not fitted to; `weight`
#: is the number of pairs that a sampled one represents.
SCORED_PAIR = np.dtype([
    ("query_modality", np.int8), ("modality", np.int8), ("judgement", np.int64), ("draw", np.uint64),
    ("logit", np.float64), ("relevance", np.float64), ("first_stage_score", np.float64), ("label", np.int64),
    ("half", np.int8), ("weight", np.float64),
])  # fmt: skip
ScoredPairs = npt.NDArray[np.void]

TEXT, IMAGE = MODALITY_NAMES.index("text"), MODALITY_NAMES.index("image")

#: Score columns by stage.
STAGES = {"first stage": "first_stage_score", "reranker": "logit"}

#: Fewer pairs of a modality are not compared.
FEWEST_PAIRS = 30

#: Distances of the AUC from one half: below SMALL there is no gap; from LARGE on, and significantly so, there is.
SMALL, LARGE = 0.1, 0.2

#: Values and the pairs that each represents: (N,), (N,).
Weighted = tuple[Floats, Floats]


def scored_pairs(pairs: Pairs, chosen: Bools, hashes: Hashes) -> ScoredPairs:
    """The ranked pairs of the `chosen` queries (Q,), whose `hashes` (Q,) make the draws: (N,) of SCORED_PAIR."""
    rows = np.flatnonzero((pairs.ranked >= 0) & chosen[pairs.query])
    query = pairs.query[rows]
    result = np.ones(len(rows), SCORED_PAIR)
    with np.errstate(over="ignore"):
        steps = (pairs.ranked[rows].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        result["draw"] = splitmix64(hashes[query] + steps)
    result["query_modality"], result["modality"] = pairs.query_modality[query], pairs.modality[rows]
    result["judgement"] = np.where(pairs.judged[rows], np.maximum(pairs.judgement[rows], 0), -1)
    result["half"] = hashes[query] >> np.uint64(63)
    for name in ("logit", "relevance", "first_stage_score", "label"):
        result[name] = getattr(pairs, name)[rows]
    return result


def sampled(pairs: ScoredPairs) -> ScoredPairs:
    """Of each stratum RESERVOIR_PAIRS at most, those with the smallest draws, which represent all of it."""
    pairs = pairs[np.lexsort([pairs[name] for name in ("draw", *reversed(STRATUM))])]
    strata = pairs[STRATUM]
    stratum = np.cumsum(np.append(False, strata[1:] != strata[:-1]))[: len(pairs)]
    counts = np.bincount(stratum, pairs["weight"]).round()
    kept = np.arange(len(pairs)) - np.searchsorted(stratum, stratum) < RESERVOIR_PAIRS
    pairs, stratum = pairs[kept], stratum[kept]
    pairs["weight"] = (counts / np.bincount(stratum))[stratum]
    return pairs


def scores_of(
    pairs: ScoredPairs, column: str, relevant: bool | None = None, modalities: tuple[int, int] | None = None
) -> Weighted:
    """Finite values of a column and the pairs that each represents.

    Args:
        relevant: only pairs judged above 0, or only the others, with or without a judgement.
        modalities: only pairs of these modalities of query and document.
    """
    chosen = np.isfinite(pairs[column])
    if relevant is not None:
        chosen &= (pairs["judgement"] > 0) == relevant
    if modalities is not None:
        chosen &= (pairs["query_modality"] == modalities[0]) & (pairs["modality"] == modalities[1])
    return pairs[column][chosen], pairs["weight"][chosen]


def unjudged_are_0(pairs: ScoredPairs) -> bool:
    """Whether the judgements name relevant documents alone, so that the others count as 0, as in every measure."""
    return not (pairs["judgement"] == 0).any()


def graded(pairs: ScoredPairs) -> ScoredPairs:
    """The pairs that have a judgement; all of them where those without count as 0."""
    if not unjudged_are_0(pairs):
        return pairs[pairs["judgement"] >= 0]
    pairs = pairs.copy()
    pairs["judgement"] = np.maximum(pairs["judgement"], 0)
    return pairs


class Trust(StrEnum):
    """Whether lists that mix modalities can be trusted."""

    TRUSTED = "can be trusted"
    CARE = "are to be taken with care"
    NOT = "cannot be trusted"
    UNKNOWN = "cannot be judged"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of image documents compared with those of text documents.

    `overlap` is the area that both distributions share, 1 for equal ones. `difference` is the mean of the images less
    that of the texts, in pooled standard deviations. `auc` is the probability that an image scores above a text, a tie
    counting half; `low` and `high` bound it with 95 % confidence.
    """

    texts: int
    images: int
    overlap: float
    difference: float
    auc: float
    low: float
    high: float

    @property
    def distance(self) -> float:
        """Of the AUC from one half."""
        return abs(self.auc - 0.5)


@dataclass(frozen=True, slots=True)
class Gap:
    """A stage's scores for queries of one modality; a comparison is None where a modality has too few pairs."""

    stage: str
    query: str
    relevant: Comparison | None
    others: Comparison | None

    @property
    def trust(self) -> Trust:
        """By the relevant pairs, which belong at the top whatever their modality; the others may lower it to CARE."""
        if self.relevant is None:
            return Trust.UNKNOWN
        significant = self.relevant.low > 0.5 + SMALL or self.relevant.high < 0.5 - SMALL
        if self.relevant.distance >= LARGE and significant:
            return Trust.NOT
        others_differ = self.others is not None and self.others.distance >= LARGE
        return Trust.CARE if self.relevant.distance >= SMALL or others_differ else Trust.TRUSTED

    @property
    def words(self) -> str:
        """The verdict in a sentence or two."""
        lists = f"For {self.query} queries, lists of the {self.stage} that mix texts and images {self.trust}"
        if self.relevant is None:
            return f"{lists}: fewer than {FEWEST_PAIRS} relevant texts or images have a score."
        auc, others = self.relevant.auc, self.others
        others_differ = others is not None and others.distance >= SMALL
        verdict = f"{lists}: a relevant image scores above a relevant text {auc:.0%} of the time"
        if self.relevant.distance < SMALL:
            verdict += ", where half is no gap."
            return verdict + (
                f" Among irrelevant documents an image scores above a text {others.auc:.0%} of the time."
                if others is not None and others_differ
                else ""
            )
        verdict += f", so relevant {'images' if auc > 0.5 else 'texts'} come before the others."
        if others is None:
            return verdict
        if others_differ and (others.auc - 0.5) * (auc - 0.5) > 0:
            why = "Irrelevant documents differ in the same way: it is the modality that is scored, not the match."
        else:
            why = "Irrelevant documents do not: the scorer recognises matches of one modality better than the other's."
        return f"{verdict} {why}"


def gaps(pairs: ScoredPairs) -> list[Gap]:
    """Every stage and every modality of queries for which both texts and images have scores."""
    result = []
    for stage, column in STAGES.items():
        for query in (TEXT, IMAGE):
            relevant, others = (
                compare(*(scores_of(pairs, column, is_relevant, (query, modality)) for modality in (TEXT, IMAGE)))
                for is_relevant in (True, False)
            )
            if relevant is not None or others is not None:
                result.append(Gap(stage, MODALITY_NAMES[query], relevant, others))
    return result


def compare(texts: Weighted, images: Weighted) -> Comparison | None:
    """None when one modality has fewer than FEWEST_PAIRS values."""
    sizes = len(texts[0]), len(images[0])
    if min(sizes) < FEWEST_PAIRS:
        return None
    auc = _auc(texts, images)
    # Standard error: J. Hanley, B. McNeil, The meaning and use of the area under a ROC curve, Radiology 143, 1982.
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (sizes[1] - 1) * (q1 - auc**2) + (sizes[0] - 1) * (q2 - auc**2)
    error = math.sqrt(max(variance, 0.0) / (sizes[0] * sizes[1]))
    edges = bins(np.concatenate([texts[0], images[0]]), min(sizes))
    shares = [
        np.histogram(np.clip(values, edges[0], edges[-1]), edges, weights=weights / weights.sum())[0]
        for values, weights in (texts, images)
    ]
    counts = round(texts[1].sum()), round(images[1].sum())
    bounds = max(0.0, auc - 1.96 * error), min(1.0, auc + 1.96 * error)
    return Comparison(*counts, float(np.minimum(*shares).sum()), _difference(texts, images), auc, *bounds)


def _auc(lower: Weighted, upper: Weighted) -> float:
    """The share of (lower, upper) pairs, by weight, in which the upper is larger; ties count half."""
    order = np.argsort(lower[0], kind="stable")
    below = np.concatenate([[0.0], np.cumsum(lower[1][order])])
    left, right = (below[np.searchsorted(lower[0][order], upper[0], side)] for side in ("left", "right"))
    return float(((left + right) / 2 * upper[1]).sum() / (below[-1] * upper[1].sum()))


def _difference(texts: Weighted, images: Weighted) -> float:
    """Cohen's d: the difference of the means over the pooled standard deviation."""
    means = [np.average(values, weights=weights) for values, weights in (texts, images)]
    variances = [
        np.average((values - mean) ** 2, weights=weights)
        for (values, weights), mean in zip((texts, images), means, strict=True)
    ]
    spread = math.sqrt(sum(variances) / 2)
    return float((means[1] - means[0]) / spread) if spread else 0.0


def bins(values: Floats, fewest: int) -> Floats:
    """Edges of 5 to 40 bins, the root of `fewest`, over all values but the furthest thousandth on either side."""
    if not len(values):
        return np.linspace(-1, 1, 31)
    low, high = np.quantile(values, 0.001, method="lower"), np.quantile(values, 0.999, method="higher")
    return np.linspace(low, high if high > low else low + 1, int(np.clip(math.sqrt(fewest), 5, 40)) + 1)
