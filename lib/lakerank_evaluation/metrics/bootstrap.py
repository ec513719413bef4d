"""Means over queries with their uncertainty: Poisson bootstrap intervals and paired t-tests."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from lakerank.fingerprint import splitmix64
from lakerank_evaluation.metrics.measures import NAMES, RANDOM_BASELINE, Floats, QueryFigures

#: Resamples; with a fixed seed an interval is a function of the figures alone.
RESAMPLES = 1000
SEED = 20240611
LEVEL = 0.95

#: No interval is given for fewer queries.
FEWEST_QUERIES = 8

#: Queries whose weights are in memory at once.
_BATCH_QUERIES = 2000

Hashes = npt.NDArray[np.uint64]
Interval = tuple[float | None, float | None]


#: A draw from Poisson(1) for each of 65,536 equally likely numbers, by its inverse distribution function.
_MASS = [math.exp(-1) / math.factorial(count) for count in range(12)]
_POISSON = np.searchsorted(np.floor(np.cumsum(_MASS) * 65536), np.arange(65536), side="right").astype(np.uint8)


def query_hashes(query_ids: Sequence[str]) -> Hashes:
    """64 bits of each id, from which everything random about a query is drawn."""
    encoded = (query_id.encode("utf-8", "surrogatepass") for query_id in query_ids)
    digests = b"".join(hashlib.blake2b(query_id, digest_size=8).digest() for query_id in encoded)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def weights(hashes: Hashes) -> Floats:
    """How often each resample contains each query: (Q,) -> (RESAMPLES, Q), independent draws from Poisson(1).

    In a Poisson bootstrap the count of a query depends on no other query, so queries can be resampled in batches.
    Sources: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; N. Chamandy et al.,
    Estimating uncertainty for massive data streams (2012).
    """
    with np.errstate(over="ignore"):
        steps = (np.arange(RESAMPLES // 4, dtype=np.uint64) + np.uint64(SEED)) * np.uint64(0x9E3779B97F4A7C15)
        bits = splitmix64(hashes[:, None] + steps[None, :])  # (Q, RESAMPLES / 4), 16 bits a draw
    return _POISSON[bits.view(np.uint16)].T.astype(np.float64)


def resampled_sums(hashes: Hashes, values: Floats) -> Floats:
    """Sums over each resample: (Q,), (Q, C) -> (RESAMPLES, C + 1); the last column counts queries."""
    total = np.zeros((RESAMPLES, values.shape[1] + 1))
    for first in range(0, len(hashes), _BATCH_QUERIES):
        batch = slice(first, first + _BATCH_QUERIES)
        counted = np.concatenate([values[batch], np.ones((len(hashes[batch]), 1))], axis=1)
        total += weights(hashes[batch]) @ counted
    return total


def interval(resamples: Floats, queries: int) -> Interval:
    """The percentile interval of a figure's resamples; (None, None) below FEWEST_QUERIES."""
    finite = resamples[np.isfinite(resamples)]
    if queries < FEWEST_QUERIES or not len(finite):
        return None, None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference over queries; `low` and `high` bound it with LEVEL confidence, or are None.

    `p` is that of a two-sided paired t-test.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None = None


class Summary:
    """Means over the queries of `figures`, whose `hashes` (Q,) make the resamples."""

    def __init__(self, figures: QueryFigures, hashes: Hashes) -> None:
        lists = figures.lists
        self.queries = len(hashes)
        self._sums = {name: table.sum(axis=0) for name, table in lists.items()}
        self._squares = {name: ((lists["reranked"] - table) ** 2).sum(axis=0) for name, table in lists.items()}
        self._random = figures.random.sum(axis=0)
        sums = resampled_sums(hashes, np.concatenate(list(lists.values()), axis=1))
        means = np.divide(sums, sums[:, -1:], out=np.full_like(sums, np.nan), where=sums[:, -1:] > 0)
        self._resamples = dict(zip(lists, np.split(means[:, :-1], len(lists), axis=1), strict=True))

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def means(self, name: str) -> dict[str, float]:
        """Mean figures of a list: reranked, first_stage, baseline or ceiling."""
        return dict(zip(NAMES, (self._sums[name] / self.queries).tolist(), strict=True))

    def random_means(self) -> dict[str, float]:
        """Mean expected figures of a random order."""
        return dict(zip(RANDOM_BASELINE, (self._random / self.queries).tolist(), strict=True))

    def resampled_means(self, name: str) -> Floats:
        """(RESAMPLES, M) mean figures of a list in every resample."""
        return self._resamples[name]

    def intervals(self, name: str) -> dict[str, Interval]:
        """Of the mean figures of a list."""
        columns = self._resamples[name].T
        return {measure: interval(column, self.queries) for measure, column in zip(NAMES, columns, strict=True)}

    def differences(self, to: str) -> dict[str, Difference]:
        """Of the reranked lists' figures to those of another list."""
        resamples = (self._resamples["reranked"] - self._resamples[to]).T
        differences = {}
        for column, measure in enumerate(NAMES):
            mean = float(self._sums["reranked"][column] - self._sums[to][column]) / self.queries
            low, high = interval(resamples[column], self.queries)
            p = paired_t(self.queries, mean, float(self._squares[to][column]))
            differences[measure] = Difference(mean, low, high, p)
        return differences


def paired_t(queries: int, mean: float, squares: float) -> float | None:
    """Two-sided p of a paired t-test, from the mean and the sum of squares of the differences; None for few queries.

    Source: J. Urbano, H. Lima, A. Hanjalic, Statistical Significance Testing in Information Retrieval (SIGIR 2019),
    who recommend it for such figures.
    """
    if queries < FEWEST_QUERIES:
        return None
    variance = (squares - queries * mean**2) / (queries - 1)
    if variance <= 1e-18:
        return 1.0 if abs(mean) < 1e-12 else 0.0
    return float(2 * stdtr(queries - 1, -abs(mean) / math.sqrt(variance / queries)))
