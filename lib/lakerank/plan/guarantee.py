"""The guarantee of a cascade's stage: how far down each list its reranker must read, learned from queries read whole.

A rule is a margin: a document is read if the stage before gives it at most so much less than the `of_top`-th of its
list. Rules are nested and fixed before any score is seen. Learn-then-Test (Angelopoulos, Bates, Candès, Jordan, Lei,
arXiv 2110.01052, 2021) finds the narrowest that keeps a promise: from the widest on each is tested at level 1 −
confidence, up to the first that fails. So with probability ≥ confidence over the sample, the mean recall over further
queries is ≥ recall. Conformal risk control (Angelopoulos and others, ICLR 2024) bounds its expectation over samples.

The test bets against "the mean recall is at most m" (Waudby-Smith, Ramdas, Estimating Means of Bounded Random Variables
by Betting, JRSS B 86, 2024): a share of a capital of 1 is staked on each query, and pays recall / m. If the claim is
true, the capital is not expected to grow, and reaches 1 / (1 − confidence) with probability ≤ 1 − confidence (Markov).
Parts of it are staked at different shares; their sum does not depend on the order of the queries. This also holds for a
draw without replacement, whose recalls are negatively associated (Joag-Dev, Proschan, Annals of Statistics 11, 1983).

Q queries, R rules, P pairs throughout.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

#: Margins in units of the logit, from the widest: eight an octave, whatever the scale of a model's logits.
MARGINS = np.array([*(2.0 ** (step / 8) for step in range(96, -97, -1)), 0.0])

#: Shares that are staked on each query, and the part of the capital that each is of. All is best where recalls vary
#: little, but it is lost at the first query without any recall.
_STAKES = np.array([1.0, 0.75, 0.5, 0.25, 0.125, 0.0625])
_PARTS = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])

#: A sample is a tenth of a run's queries, within this many times the least number that can keep a promise.
_MOST_TIMES = 4


@dataclass(frozen=True, slots=True)
class Promise:
    """What a stage with a guarantee promises, and how its rule is learned.

    With probability ≥ `confidence`, the mean share of the reranker's own first `of_top` documents that it reads is ≥
    `recall`. `sample`: queries that the rule is learned from; None: `sample_size`. `from_run`: they are of another run,
    if tests at `shift_level` find no shift of the lists since. `otherwise`: what to do where no rule keeps the promise:
    read everything, or stop.
    """

    of_top: int
    recall: float
    confidence: float
    sample: int | None = None
    from_run: str | None = None
    shift_level: float = 0.01
    otherwise: Literal["all", "stop"] = "all"

    def __str__(self) -> str:
        return f"{self.recall:.4g} of its own top {self.of_top} with a confidence of {self.confidence:.4g}"

    def identity(self) -> dict[str, Any]:
        """What results depend on."""
        return {name: value for name, value in asdict(self).items() if name != "otherwise"}

    @property
    def least_queries(self) -> int:
        """The fewest queries from which the promise can be kept: with full recall in each."""
        gains = np.log1p(_STAKES * (1 / self.recall - 1))
        queries = np.arange(math.ceil((self._enough - math.log(_PARTS[0])) / gains[0]) + 1)
        return int((_mixed(np.outer(gains, queries)) >= self._enough).argmax())

    @property
    def most_queries(self) -> int:
        """The most queries that a sample has."""
        return self.sample or _MOST_TIMES * self.least_queries

    def sample_size(self, queries: int) -> int:
        """How many of a run's queries are read whole."""
        return min(queries, self.sample or max(self.least_queries, min(queries // 10, self.most_queries)))

    def too_few(self, queries: int) -> str | None:
        """What is wrong with a sample of so many queries, if they are too few."""
        least = self.least_queries
        return f"it takes {least} queries, and there are {queries}" if queries < least else None

    def boldest_rule(self, recalls: Float64) -> int:
        """The last of the nested rules, from the most careful on, that keeps the promise; -1 if none does.

        Args:
            recalls: (Q, R), in [0, 1].
        """
        kept = _log_capital(recalls, self.recall) >= self._enough
        return (len(kept) if kept.all() else int(kept.argmin())) - 1

    def lower_bound(self, recalls: Float64) -> float:
        """A lower bound, at the confidence, of the mean that some recalls (Q,) are drawn from."""
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if _log_capital(recalls, middle) >= self._enough else (low, middle)
        return low

    @property
    def _enough(self) -> float:
        return -math.log1p(-self.confidence)


def _log_capital(recalls: Float64, mean: float) -> Any:
    """The logarithm of the capital after bets that a mean recall is above `mean`: (Q, …) -> (…)."""
    with np.errstate(divide="ignore"):
        return _mixed(np.array([np.log1p(stake * (recalls / mean - 1)).sum(axis=0) for stake in _STAKES]))


def _mixed(parts: Float64) -> Any:
    """The logarithm of the capital of those of its parts, one a stake: (S, …) -> (…)."""
    return np.logaddexp.reduce(parts.T + np.log(_PARTS), axis=-1)


def gaps(query: npt.NDArray[np.integer], logit: npt.NDArray[np.float32], of_top: int) -> Float64:
    """How far each logit is below the `of_top`-th of its list, or below its last one: (P,) each -> (P,), at least 0.

    Pairs are in order: by query, then logit descending.
    """
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    counts = np.diff(starts, append=len(query))
    edges = logit.astype(np.float64)[starts + np.minimum(counts, of_top) - 1]
    return np.maximum(0.0, np.repeat(edges, counts) - logit)


def recalls(query: npt.NDArray[np.integer], gap: Float64) -> Float64:
    """Recall of each query by each rule, of the gaps of its best documents, sorted by query: (P,) each -> (Q, R)."""
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    read = np.add.reduceat(gap[:, None] <= MARGINS, starts, axis=0, dtype=np.float64)
    return np.asarray(read / np.diff(starts, append=len(query))[:, None])


def shift_p_value(before: Float64, now: Float64) -> float:
    """A p-value of the two-sample Kolmogorov–Smirnov test, of (N,) and (M,): the first term of the asymptotic series,
    whose signs alternate, and so an upper bound."""
    values = np.concatenate([before, now])
    if not len(before) or not len(now):
        return 1.0
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (before, now)]
    distance = np.abs(shares[0] - shares[1]).max()
    return min(1.0, 2 * math.exp(-2 * distance**2 * len(before) * len(now) / len(values)))
