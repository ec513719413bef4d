"""The modality gap: whether scores of text and of image documents are comparable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from lakerank.evaluation.analysis.samples import Samples, pooled
from lakerank.evaluation.metrics.gain import Floats
from lakerank.evaluation.pairs import MODALITY_NAMES

#: Values and the pairs that each represents: (N,), (N,).
Weighted = tuple[Floats, Floats]

TEXT, IMAGE = MODALITY_NAMES.index("text"), MODALITY_NAMES.index("image")

#: Score columns by stage.
STAGES = {"first stage": "first_stage_score", "reranker": "logit"}

#: Fewer pairs of a modality are not compared.
FEWEST_PAIRS = 30

#: Distances of the AUC from one half: below SMALL there is no gap; from LARGE on, and significantly so, there is.
SMALL, LARGE = 0.1, 0.2


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
        distance = abs(self.relevant.auc - 0.5)
        significant = self.relevant.low > 0.5 + SMALL or self.relevant.high < 0.5 - SMALL
        if distance >= LARGE and significant:
            return Trust.NOT
        others_differ = self.others is not None and abs(self.others.auc - 0.5) >= LARGE
        return Trust.CARE if distance >= SMALL or others_differ else Trust.TRUSTED

    @property
    def words(self) -> str:
        """The verdict in a sentence or two."""
        lists = f"For {self.query} queries, lists of the {self.stage} that mix texts and images {self.trust}"
        if self.relevant is None:
            return f"{lists}: fewer than {FEWEST_PAIRS} relevant texts or images have a score."
        share = f"a relevant image scores above a relevant text {self.relevant.auc:.0%} of the time"
        if abs(self.relevant.auc - 0.5) < SMALL:
            return f"{lists}: {share}, where half is no gap. {self._of_others()}".strip()
        side = "images" if self.relevant.auc > 0.5 else "texts"
        return f"{lists}: {share}, so relevant {side} come before the others. {self._why()}".strip()

    def _of_others(self) -> str:
        if self.others is None or abs(self.others.auc - 0.5) < SMALL:
            return ""
        return f"Among irrelevant documents an image scores above a text {self.others.auc:.0%} of the time."

    def _why(self) -> str:
        """Whether irrelevant documents differ by modality in the same way."""
        if self.relevant is None or self.others is None:
            return ""
        same = (self.others.auc - 0.5) * (self.relevant.auc - 0.5)
        if abs(self.others.auc - 0.5) >= SMALL and same > 0:
            return "Irrelevant documents differ in the same way: it is the modality that is scored, not the match."
        return "Irrelevant documents do not: the scorer recognises matches of one modality better than the other's."


def gaps(samples: Samples) -> list[Gap]:
    """Every stage and every modality of queries for which both texts and images have scores."""
    result = []
    for stage, column in STAGES.items():
        for query in (TEXT, IMAGE):
            relevant, others = (_compared(samples, column, query, is_relevant) for is_relevant in (True, False))
            if relevant is not None or others is not None:
                result.append(Gap(stage, MODALITY_NAMES[query], relevant, others))
    return result


def _compared(samples: Samples, column: str, query: int, relevant: bool) -> Comparison | None:
    texts, images = (pooled(samples, column, relevant, (query, modality)) for modality in (TEXT, IMAGE))
    return compare(texts, images)


def compare(texts: Weighted, images: Weighted) -> Comparison | None:
    """None when one modality has fewer than FEWEST_PAIRS values."""
    if min(len(texts[0]), len(images[0])) < FEWEST_PAIRS:
        return None
    auc = _auc(texts, images)
    error = _auc_error(auc, len(texts[0]), len(images[0]))
    return Comparison(
        round(texts[1].sum()),
        round(images[1].sum()),
        _overlap(texts, images),
        _difference(texts, images),
        auc,
        max(0.0, auc - 1.96 * error),
        min(1.0, auc + 1.96 * error),
    )


def _auc(lower: Weighted, upper: Weighted) -> float:
    """The share of (lower, upper) pairs, by weight, in which the upper is larger; ties count half."""
    order = np.argsort(lower[0], kind="stable")
    below = np.concatenate([[0.0], np.cumsum(lower[1][order])])
    values = lower[0][order]
    wins = (below[np.searchsorted(values, upper[0], "left")] + below[np.searchsorted(values, upper[0], "right")]) / 2
    return float((wins * upper[1]).sum() / (below[-1] * upper[1].sum()))


def _auc_error(auc: float, lower: int, upper: int) -> float:
    """Standard error (J. Hanley, B. McNeil, The meaning and use of the area under a ROC curve, Radiology 143, 1982)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (upper - 1) * (q1 - auc**2) + (lower - 1) * (q2 - auc**2)
    return math.sqrt(max(variance, 0.0) / (lower * upper))


def _difference(texts: Weighted, images: Weighted) -> float:
    """Cohen's d: the difference of the means over the pooled standard deviation."""
    means = [np.average(values, weights=weights) for values, weights in (texts, images)]
    spread = math.sqrt(
        sum(
            np.average((values - mean) ** 2, weights=weights)
            for (values, weights), mean in zip((texts, images), means, strict=True)
        )
        / 2
    )
    return float((means[1] - means[0]) / spread) if spread else 0.0


def _overlap(texts: Weighted, images: Weighted) -> float:
    """The area that two histograms share; the number of bins goes by the smaller side."""
    edges = bins(np.concatenate([texts[0], images[0]]), min(len(texts[0]), len(images[0])))
    shares = [
        np.histogram(np.clip(values, edges[0], edges[-1]), edges, weights=weights / weights.sum())[0]
        for values, weights in (texts, images)
    ]
    return float(np.minimum(*shares).sum())


def bins(values: Floats, fewest: int) -> Floats:
    """Edges of 5 to 40 bins, the root of `fewest`, over all values but the furthest thousandth on either side."""
    if not len(values):
        return np.linspace(-1, 1, 31)
    low, high = np.quantile(values, 0.001, method="lower"), np.quantile(values, 0.999, method="higher")
    return np.linspace(low, high if high > low else low + 1, int(np.clip(math.sqrt(fewest), 5, 40)) + 1)
