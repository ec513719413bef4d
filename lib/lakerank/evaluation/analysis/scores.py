"""Score distributions: a reservoir sample of ranked pairs by stratum, and the modality gap between strata."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum

import numpy as np

from lakerank.evaluation.metrics.bootstrap import Hashes
from lakerank.evaluation.pairs import MODALITY_NAMES, Bools, Floats, Ints, Pairs
from lakerank.fingerprint import splitmix64

#: Pairs kept of each stratum: all where there are no more.
RESERVOIR_PAIRS = 10_000

#: Columns of a kept pair; `half` is 0 or 1 by query, for fits that are measured on queries they were not fitted to.
_COLUMNS = ("draw", "logit", "relevance", "first_stage_score", "label", "half")

TEXT, IMAGE = MODALITY_NAMES.index("text"), MODALITY_NAMES.index("image")

#: Score columns by stage.
STAGES = {"first stage": "first_stage_score", "reranker": "logit"}

#: Fewer pairs of a modality are not compared.
FEWEST_PAIRS = 30

#: Distances of the AUC from one half: below SMALL there is no gap; from LARGE on, and significantly so, there is.
SMALL, LARGE = 0.1, 0.2

#: Values and the pairs that each represents: (N,), (N,).
Weighted = tuple[Floats, Floats]


@dataclass(frozen=True, slots=True)
class Stratum:
    """Pairs alike in the modalities of query and document (codes of MODALITY_NAMES) and in their judgement, if any."""

    query_modality: int
    modality: int
    judgement: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A stratum's number of pairs, and those kept, which have the smallest draws: (K, len(_COLUMNS))."""

    count: int
    kept: Floats

    @property
    def weight(self) -> float:
        """Pairs that each kept one represents."""
        return self.count / len(self.kept) if len(self.kept) else 0.0

    def column(self, name: str) -> Floats:
        """(K,) values."""
        return self.kept[:, _COLUMNS.index(name)]

    def merge(self, other: Sample) -> Sample:
        """The sample of both samples' pairs."""
        return Sample(self.count + other.count, _smallest(np.concatenate([self.kept, other.kept])))


Samples = Mapping[Stratum, Sample]


def sample_pairs(pairs: Pairs, chosen: Bools, hashes: Hashes) -> dict[Stratum, Sample]:
    """Samples of the ranked pairs of the `chosen` queries (Q,), whose `hashes` (Q,) make the draws."""
    rows = np.flatnonzero((pairs.ranked >= 0) & chosen[pairs.query])
    query = pairs.query[rows]
    with np.errstate(over="ignore"):
        steps = (pairs.ranked[rows].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        draws = splitmix64(hashes[query] + steps) >> np.uint64(11)  # 53 bits: a float64's precision
    columns = (pairs.logit, pairs.relevance, pairs.first_stage_score, pairs.label)
    halves = hashes[query] >> np.uint64(63)
    table = np.stack([draws, *(column[rows] for column in columns), halves], axis=1, dtype=np.float64)
    judgement = np.where(pairs.judged[rows], np.maximum(pairs.judgement[rows], 0), -1)
    codes = ((judgement + 1) * 4 + pairs.query_modality[query]) * 4 + pairs.modality[rows]
    samples = {}
    for code in np.unique(codes).tolist():
        of_stratum = table[codes == code]
        stratum = Stratum(code // 4 % 4, code % 4, None if code < 16 else code // 16 - 1)
        samples[stratum] = Sample(len(of_stratum), _smallest(of_stratum))
    return samples


def _smallest(rows: Floats) -> Floats:
    if len(rows) > RESERVOIR_PAIRS:
        rows = rows[np.argpartition(rows[:, 0], RESERVOIR_PAIRS - 1)[:RESERVOIR_PAIRS]]
    return rows[np.lexsort(rows.T[::-1])]


def pooled(
    samples: Samples, column: str, relevant: bool | None = None, modalities: tuple[int, int] | None = None
) -> Weighted:
    """Finite values of a column and the pairs that each represents, of several strata.

    Args:
        relevant: only pairs judged above 0, or only the others, with or without a judgement.
        modalities: only pairs of these modalities of query and document.
    """
    strata = {
        stratum: sample
        for stratum, sample in samples.items()
        if relevant in (None, bool(stratum.judgement))
        and modalities in (None, (stratum.query_modality, stratum.modality))
    }
    values = _joined(strata, lambda _, sample: sample.column(column))
    finite = np.isfinite(values)
    return values[finite], _joined(strata, lambda _, sample: sample.weight)[finite]


def _joined(samples: Samples, value: Callable[[Stratum, Sample], Floats | float]) -> Floats:
    """A value of each kept pair of all strata, those without a judgement first: (N,)."""
    order = sorted(samples, key=lambda stratum: (
        stratum.query_modality, stratum.modality, -1 if stratum.judgement is None else stratum.judgement
    ))  # fmt: skip
    parts = (np.broadcast_to(value(stratum, samples[stratum]), len(samples[stratum].kept)) for stratum in order)
    return np.concatenate([np.zeros(0), *parts])


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """Ranked pairs with a grade, as columns (N,). `weight` is the number of pairs that a sampled one represents.

    `unjudged_are_0`: the judgements name relevant documents alone, so the others count as 0, as in every measure.
    """

    logit: Floats
    relevance: Floats
    grade: Ints
    label: Ints
    weight: Floats
    half: Ints
    has_image: Bools
    unjudged_are_0: bool

    @classmethod
    def of(cls, samples: Samples) -> JudgedPairs:
        """The pairs that have a grade."""
        implied = not any(stratum.judgement == 0 for stratum in samples)
        strata = {key: sample for key, sample in samples.items() if implied or key.judgement is not None}

        def column(name: str) -> Floats:
            return _joined(strata, lambda _, sample: sample.column(name))

        logit, relevance, label, half = map(column, ("logit", "relevance", "label", "half"))
        grade = _joined(strata, lambda stratum, _: stratum.judgement or 0).astype(np.int64)
        weight = _joined(strata, lambda _, sample: sample.weight)
        has_image = _joined(strata, lambda stratum, _: (stratum.query_modality | stratum.modality) & IMAGE) > 0
        return cls(logit, relevance, grade, label.astype(np.int64), weight, half.astype(np.int64), has_image, implied)

    def where(self, rows: Bools) -> JudgedPairs:
        """Some of the pairs: (N,)."""
        columns = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "unjudged_are_0"}
        return replace(self, **{name: column[rows] for name, column in columns.items()})

    def held_out(self, predict: Callable[[JudgedPairs, JudgedPairs], Floats | None]) -> Floats | None:
        """What `predict(fitted, measured)` says of each half of the queries, fitted to the other: (N,), or None."""
        result = np.zeros(len(self.grade))
        for half in (0, 1):
            predicted = predict(self.where(self.half == half), self.where(self.half != half))
            if predicted is None:
                return None
            result[self.half != half] = predicted
        return result


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


def gaps(samples: Samples) -> list[Gap]:
    """Every stage and every modality of queries for which both texts and images have scores."""
    result = []
    for stage, column in STAGES.items():
        for query in (TEXT, IMAGE):
            relevant, others = (
                compare(*(pooled(samples, column, is_relevant, (query, modality)) for modality in (TEXT, IMAGE)))
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
