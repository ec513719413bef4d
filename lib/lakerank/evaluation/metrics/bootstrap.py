"""How sure a mean is: a Poisson bootstrap over queries, whose sums can be added up from any number of machines."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lakerank.fingerprint import splitmix64

#: Drawn anew so many times; the seed makes the interval a function of the figures alone.
RESAMPLES = 1000
SEED = 20240611
LEVEL = 0.95

#: Below so many queries no interval is given: it would claim more than it knows.
FEWEST_QUERIES = 8

#: Weights drawn and held at once.
_BLOCK = 2_000_000

Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]


def _poisson_of_16_bits() -> npt.NDArray[np.uint8]:
    """A draw from Poisson(1) for each of 65,536 equally likely numbers, by its inverse distribution function."""
    mass = [math.exp(-1) / math.factorial(count) for count in range(12)]
    edges = np.floor(np.cumsum(mass) * 65536)
    return np.searchsorted(edges, np.arange(65536), side="right").astype(np.uint8)


_POISSON = _poisson_of_16_bits()


def query_hashes(query_ids: Sequence[str]) -> Hashes:
    """64 bits of each id: what is random about a query, the same wherever it is judged."""
    digests = b"".join(
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in query_ids
    )
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def weights(hashes: Hashes) -> Floats:
    """How often each resample holds each query: (Q,) -> (RESAMPLES, Q), independent draws from Poisson(1).

    The Poisson bootstrap stands for the usual one where queries are not in one place: a query's count in a resample
    needs no knowledge of the others. Sources: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993),
    chapter 13; N. Chamandy et al., Estimating uncertainty for massive data streams (2012).
    """
    with np.errstate(over="ignore"):
        steps = (np.arange(RESAMPLES // 4, dtype=np.uint64) + np.uint64(SEED)) * np.uint64(0x9E3779B97F4A7C15)
        drawn = splitmix64(hashes[:, None] + steps[None, :])  # (Q, RESAMPLES / 4)
    return _POISSON[drawn.view(np.uint16)].T.astype(np.float64)


def resampled_sums(hashes: Hashes, values: Floats) -> Floats:
    """Sums of each resample: (Q,), (Q, C) -> (RESAMPLES, C). Add them up over all queries."""
    total = np.zeros((RESAMPLES, values.shape[1]))
    step = max(1, _BLOCK // RESAMPLES)
    for first in range(0, len(hashes), step):
        total += weights(hashes[first : first + step]) @ values[first : first + step]
    return total


def interval(resamples: Floats, queries: int) -> tuple[float | None, float | None]:
    """The percentile interval of a figure's resamples; (None, None) below FEWEST_QUERIES."""
    held = resamples[np.isfinite(resamples)]
    if queries < FEWEST_QUERIES or not len(held):
        return None, None
    low, high = np.quantile(held, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
