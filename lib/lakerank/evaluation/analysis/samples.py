"""A fair sample of the judged queries' pairs with their scores: enough to draw every distribution from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lakerank.evaluation.pairs import Pairs
from lakerank.fingerprint import splitmix64

Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]

#: Pairs kept of each kind: all where there are no more.
KEPT = 10_000

#: Columns of a kept pair; `half` is 0 or 1 by query, for figures that must not be judged on what they were fitted to.
_COLUMNS = ("draw", "logit", "relevance", "first_stage_score", "label", "half")


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """Pairs of one kind: what the query and the document hold (codes of MODALITY_NAMES), and the judgement if any."""

    query_modality: int
    modality: int
    judgement: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """Pairs of one kind: how many there are, and those kept, the ones with the smallest draws: (K, len(_COLUMNS))."""

    count: int
    kept: Floats

    @property
    def weight(self) -> float:
        """Pairs that each kept one stands for."""
        return self.count / len(self.kept) if len(self.kept) else 0.0

    def column(self, name: str) -> Floats:
        """(K,) values."""
        return self.kept[:, _COLUMNS.index(name)]

    def packed(self) -> Floats:
        return np.concatenate([[float(self.count)], self.kept.ravel()])

    @classmethod
    def unpacked(cls, numbers: Floats) -> Sample:
        """What `packed` made one vector of."""
        return cls(int(numbers[0]), numbers[1:].reshape(-1, len(_COLUMNS)))


def sampled(pairs: Pairs, chosen: npt.NDArray[np.bool_], hashes: Hashes) -> dict[Kind, Sample]:
    """Samples of the ranked pairs of the `chosen` queries (Q,), whose `hashes` (Q,) make the draws."""
    mine = np.flatnonzero((pairs.ranked >= 0) & chosen[pairs.query])
    query = pairs.query[mine]
    with np.errstate(over="ignore"):
        steps = (pairs.ranked[mine].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        draws = splitmix64(hashes[query] + steps) >> np.uint64(11)  # 53 bits: what a float64 holds
    table = np.stack(
        [
            draws.astype(np.float64),
            pairs.logit[mine],
            pairs.relevance[mine],
            pairs.first_stage_score[mine],
            pairs.label[mine].astype(np.float64),
            (hashes[query] >> np.uint64(63)).astype(np.float64),
        ],
        axis=1,
    )
    judgement = np.where(pairs.judged[mine], np.maximum(pairs.judgement[mine], 0), -1)
    of_pair = ((judgement + 1) * 4 + pairs.query_modality[query]) * 4 + pairs.modality[mine]
    found = {}
    for code in np.unique(of_pair).tolist():
        rows = table[of_pair == code]
        asked, held, grade = code // 4 % 4, code % 4, code // 16 - 1
        found[Kind(asked, held, None if grade < 0 else grade)] = Sample(len(rows), _smallest(rows))
    return found


def merged(samples: Iterable[Sample]) -> Sample:
    """A sample of what all of them are samples of."""
    parts = list(samples)
    return Sample(sum(part.count for part in parts), _smallest(np.concatenate([part.kept for part in parts])))


def _smallest(rows: Floats) -> Floats:
    if len(rows) > KEPT:
        rows = rows[np.argpartition(rows[:, 0], KEPT - 1)[:KEPT]]
    return rows[np.lexsort(rows.T[::-1])]


def pooled(
    samples: Mapping[Kind, Sample], column: str, relevant: bool | None = None, of: tuple[int, int] | None = None
) -> tuple[Floats, Floats]:
    """Values and the weights they stand for, of all kinds together: (N,), (N,); what is not finite is left out.

    Args:
        relevant: only pairs judged above 0, or only the others, those without a judgement among them.
        of: only this query's and document's modality.
    """
    values, weights = [np.zeros(0)], [np.zeros(0)]
    for kind, sample in sorted(samples.items(), key=lambda item: _order(item[0])):
        is_relevant = bool(kind.judgement)
        if relevant not in (None, is_relevant) or of not in (None, (kind.query_modality, kind.modality)):
            continue
        found = sample.column(column)
        held = np.isfinite(found)
        values.append(found[held])
        weights.append(np.full(int(held.sum()), sample.weight))
    return np.concatenate(values), np.concatenate(weights)


def _order(kind: Kind) -> tuple[int, int, int]:
    return kind.query_modality, kind.modality, -1 if kind.judgement is None else kind.judgement
