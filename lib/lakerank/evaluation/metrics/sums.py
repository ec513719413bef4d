"""Figures of many queries as sums that add up: means, differences and their intervals come out of them at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from lakerank.evaluation.metrics.bootstrap import FEWEST_QUERIES, RESAMPLES, interval, resampled_sums
from lakerank.evaluation.metrics.measures import CHANCE, NAMES

Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]

_M = len(NAMES)


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference over queries; `low` and `high` bound it with LEVEL confidence, or are None.

    `p` is that of a paired t-test, two-sided: how often chance alone would part two equal systems at least so far.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Q queries' figures: (Q, M) of each list, (Q, len(CHANCE)) of chance. `against` is None without another run."""

    first: Floats
    reranked: Floats
    chance: Floats
    against: Floats | None = None

    def of(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Figures:
        """Those of some of the queries."""
        against = None if self.against is None else self.against[chosen]
        return Figures(self.first[chosen], self.reranked[chosen], self.chance[chosen], against)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over `queries`: of the lists' figures side by side, of the squares of the run's differences to the other
    lists, of chance; and of each resample (RESAMPLES, lists × M + 1), whose last column counts queries.
    """

    queries: float
    lists: Floats
    squares: Floats
    chance: Floats
    resamples: Floats

    @classmethod
    def over(cls, figures: Figures, hashes: Hashes) -> Sums:
        """Of the queries with these hashes."""
        others = [figures.first] if figures.against is None else [figures.first, figures.against]
        lists = np.concatenate([figures.reranked, *others], axis=1)
        squares = [((figures.reranked - other) ** 2).sum(axis=0) for other in others]
        counted = np.concatenate([lists, np.ones((len(lists), 1))], axis=1)
        return cls(
            float(len(lists)),
            lists.sum(axis=0),
            np.concatenate(squares),
            figures.chance.sum(axis=0),
            resampled_sums(hashes, counted),
        )

    def packed(self) -> Floats:
        """One vector; vectors of different queries may be added."""
        parts = ([self.queries], self.lists, self.squares, self.chance, self.resamples.ravel())
        return np.concatenate([np.asarray(part, np.float64) for part in parts])

    @classmethod
    def unpacked(cls, numbers: Floats) -> Sums:
        """What `packed` made one vector of."""
        wide = len(numbers) == _packed_length(3)
        lists, others = (3, 2) if wide else (2, 1)
        ends = np.cumsum([1, lists * _M, others * _M, len(CHANCE)])
        return cls(
            float(numbers[0]),
            numbers[1 : ends[1]],
            numbers[ends[1] : ends[2]],
            numbers[ends[2] : ends[3]],
            numbers[ends[3] :].reshape(RESAMPLES, -1),
        )

    @property
    def has_against(self) -> bool:
        return len(self.lists) == 3 * _M

    def means(self, which: int) -> dict[str, float]:
        """Mean figures of a list: 0 the run, 1 the first stage, 2 the other run."""
        found = self.lists[which * _M : (which + 1) * _M] / self.queries
        return dict(zip(NAMES, found.tolist(), strict=True))

    def chance_means(self) -> dict[str, float]:
        return dict(zip(CHANCE, (self.chance / self.queries).tolist(), strict=True))

    def resampled_means(self, which: int) -> Floats:
        """(RESAMPLES, M) mean figures of a list in every resample."""
        sums, counts = self.resamples[:, which * _M : (which + 1) * _M], self.resamples[:, -1:]
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

    def intervals(self, which: int) -> dict[str, tuple[float | None, float | None]]:
        """Of the mean figures of a list."""
        drawn = self.resampled_means(which)
        return {name: interval(drawn[:, column], int(self.queries)) for column, name in enumerate(NAMES)}

    def differences(self, to: int) -> dict[str, Difference]:
        """Of the run's figures to those of another list, measure by measure."""
        drawn = self.resampled_means(0) - self.resampled_means(to)
        ours, others, squares = (
            part[start * _M : (start + 1) * _M] for part, start in
            ((self.lists, 0), (self.lists, to), (self.squares, to - 1))
        )  # fmt: skip
        found = {}
        for column, name in enumerate(NAMES):
            mean = float(ours[column] - others[column]) / self.queries
            low, high = interval(drawn[:, column], int(self.queries))
            found[name] = Difference(mean, low, high, paired_t(self.queries, mean, float(squares[column])))
        return found


def paired_t(queries: float, mean: float, squares: float) -> float | None:
    """Two-sided p of a paired t-test, from the mean and the sum of squares of the differences; None of few queries.

    Source: J. Urbano, H. Lima, A. Hanjalic, Statistical Significance Testing in Information Retrieval (SIGIR 2019),
    who find it the test to use for such figures.
    """
    if queries < FEWEST_QUERIES:
        return None
    variance = (squares - queries * mean**2) / (queries - 1)
    if variance <= 1e-18:
        return 1.0 if abs(mean) < 1e-12 else 0.0
    return float(2 * stdtr(queries - 1, -abs(mean) / math.sqrt(variance / queries)))


def _packed_length(lists: int) -> int:
    return 1 + lists * _M + (lists - 1) * _M + len(CHANCE) + RESAMPLES * (lists * _M + 1)


def rounded(figures: Mapping[str, float], digits: int = 4) -> dict[str, float]:
    """For a summary: few digits."""
    return {name: round(value, digits) for name, value in figures.items()}
