"""A reservoir sample of ranked pairs of judged queries, by stratum: what score distributions are estimated from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lakerank.evaluation.metrics.bootstrap import Hashes
from lakerank.evaluation.metrics.gain import Floats
from lakerank.evaluation.pairs import Pairs
from lakerank.fingerprint import splitmix64

#: Pairs kept of each stratum: all where there are no more.
RESERVOIR_PAIRS = 10_000

#: Columns of a kept pair; `half` is 0 or 1 by query, for fits that are measured on queries they were not fitted to.
_COLUMNS = ("draw", "logit", "relevance", "first_stage_score", "label", "half")


@dataclass(frozen=True, slots=True)
class Stratum:
    """Pairs alike in the modalities of query and document (codes of MODALITY_NAMES) and in their judgement, if any."""

    query_modality: int
    modality: int
    judgement: int | None

    @property
    def order(self) -> tuple[int, int, int]:
        """A sort key; pairs without a judgement come first."""
        return self.query_modality, self.modality, -1 if self.judgement is None else self.judgement


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


def sample_pairs(pairs: Pairs, chosen: npt.NDArray[np.bool_], hashes: Hashes) -> dict[Stratum, Sample]:
    """Samples of the ranked pairs of the `chosen` queries (Q,), whose `hashes` (Q,) make the draws."""
    rows = np.flatnonzero((pairs.ranked >= 0) & chosen[pairs.query])
    query = pairs.query[rows]
    with np.errstate(over="ignore"):
        steps = (pairs.ranked[rows].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        draws = splitmix64(hashes[query] + steps) >> np.uint64(11)  # 53 bits: a float64's precision
    table = np.stack(
        [
            draws.astype(np.float64),
            pairs.logit[rows],
            pairs.relevance[rows],
            pairs.first_stage_score[rows],
            pairs.label[rows].astype(np.float64),
            (hashes[query] >> np.uint64(63)).astype(np.float64),
        ],
        axis=1,
    )
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


def graded(samples: Samples) -> tuple[list[tuple[Stratum, Sample]], bool]:
    """The strata that have a grade, and whether pairs without a judgement are among them, as grade 0.

    They are where the judgements name relevant documents alone, as such pairs then count as 0 in every measure.
    """
    implied = not any(stratum.judgement == 0 for stratum in samples)
    strata = [item for item in samples.items() if implied or item[0].judgement is not None]
    return sorted(strata, key=lambda item: item[0].order), implied


def pooled(
    samples: Samples, column: str, relevant: bool | None = None, modalities: tuple[int, int] | None = None
) -> tuple[Floats, Floats]:
    """Finite values of a column and the pairs that each represents, of several strata: (N,), (N,).

    Args:
        relevant: only pairs judged above 0, or only the others, with or without a judgement.
        modalities: only pairs of these modalities of query and document.
    """
    values, weights = [np.zeros(0)], [np.zeros(0)]
    for stratum, sample in sorted(samples.items(), key=lambda item: item[0].order):
        is_relevant = bool(stratum.judgement)
        if relevant not in (None, is_relevant) or modalities not in (
            None,
            (stratum.query_modality, stratum.modality),
        ):
            continue
        finite = sample.column(column)[np.isfinite(sample.column(column))]
        values.append(finite)
        weights.append(np.full(len(finite), sample.weight))
    return np.concatenate(values), np.concatenate(weights)
