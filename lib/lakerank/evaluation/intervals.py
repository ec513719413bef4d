"""How sure a mean difference is: a paired bootstrap over queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Drawn anew so many times; the seed makes the interval a function of the figures alone.
RESAMPLES = 2000
SEED = 20240611
LEVEL = 0.95

#: Below so many queries no interval is given: it would claim more than it knows.
FEWEST_QUERIES = 8

#: Numbers drawn and held at once.
_BLOCK = 2_000_000


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference over queries; `low` and `high` bound it with `LEVEL` confidence, or are None."""

    mean: float
    low: float | None
    high: float | None


def paired_differences(before: np.ndarray, after: np.ndarray) -> list[Difference]:
    """Mean of `after - before`, both (queries, measures), for each measure, with percentile bootstrap intervals.

    Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)  # (Q, M)
    queries, measures = differences.shape
    means = differences.mean(axis=0)
    if queries < FEWEST_QUERIES:
        return [Difference(float(mean), None, None) for mean in means]
    generator = np.random.Generator(np.random.PCG64(SEED))
    rows = max(1, _BLOCK // (queries * measures))
    resampled = np.concatenate(
        [
            differences[generator.integers(0, queries, (min(rows, RESAMPLES - done), queries))].mean(axis=1)
            for done in range(0, RESAMPLES, rows)
        ]
    )  # (RESAMPLES, M)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [Difference(*map(float, bounds)) for bounds in zip(means, low, high, strict=True)]
