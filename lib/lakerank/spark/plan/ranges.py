"""The documents table cut into stripes of neighbouring rows, and stripes put together into bins of even size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lakerank.spark.plan.index import PLACE_BITS, Chunk

#: Stripes of a table, about: as many numbers as the driver holds, whatever the table's size.
STRIPES = 16_384

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stripes:
    """Which stripe a document falls in: stripe numbers rise with document numbers."""

    rows: int
    first: Int64
    count: Int64

    def of(self, documents: Int64) -> Int64:
        """The stripe of each document number: (N,) -> (N,)."""
        chunks, places = documents >> PLACE_BITS, documents & ((1 << PLACE_BITS) - 1)
        return np.asarray(self.first[chunks] + np.minimum(places // self.rows, self.count[chunks] - 1))


def stripes_of(chunks: Sequence[Chunk], wanted: int = STRIPES) -> Stripes:
    """About `wanted` stripes of the table that the chunks are of; small chunks share one."""
    total = sum(chunk.rows for chunk in chunks)
    rows = max(1, -(-total // wanted))
    sizes = np.array([chunk.rows for chunk in chunks] or [0], dtype=np.int64)
    count = np.maximum(1, -(-sizes // rows))
    before = np.cumsum(sizes) - sizes
    first = before // rows
    # A chunk begins no earlier than where the one before it ends.
    ends = np.maximum.accumulate(first + count - 1)
    first[1:] = np.maximum(first[1:], ends[:-1])
    return Stripes(rows, first, count)


def even_edges(sizes: Mapping[int, int], bins: int) -> npt.NDArray[Any]:
    """First numbers of all bins but the first, when numbers with these sizes are put into about `bins` even bins."""
    numbers = np.array(sorted(sizes), dtype=np.int64)
    passed = np.cumsum([sizes[number] for number in numbers.tolist()])
    if bins <= 1 or not len(numbers):
        return np.zeros(0, np.int64)
    # A bin ends with the number that reaches its share, so that a large one is not followed by a small remainder.
    firsts = np.searchsorted(passed, passed[-1] * np.arange(1, bins) / bins) + 1
    return np.unique(numbers[firsts[firsts < len(numbers)]])
