"""What every reranker does with document groups: as many at a time as fill it, and a result for each pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from lakerank.errors import PairRejected
from lakerank.model.inputs import RejectedInput
from lakerank.records import Document, DocumentGroup, Query, Reject, ScoredPair

T = TypeVar("T")

#: Groups that are scored together at most, be they ever so small or without anything to score.
MOST_GROUPS = 512


def filled(sized: Iterable[tuple[T, int]], most: Callable[[], int]) -> Iterator[list[T]]:
    """Items, given with their sizes, as many together as `most` and MOST_GROUPS allow by then; a larger one alone."""
    filling: list[T] = []
    held = 0
    for item, size in sized:
        if filling and (held + size > most() or len(filling) == MOST_GROUPS):
            yield filling
            filling, held = [], 0
        filling.append(item)
        held += size
    if filling:
        yield filling


def score_pairs(
    score_groups: Callable[[Iterable[DocumentGroup]], Iterator[ScoredPair | Reject]],
    pairs: Sequence[tuple[Query, Document]],
) -> np.ndarray:
    """Raw float32 logits (P,) of pairs, in order, by what scores groups in theirs.

    Raises:
        PairRejected: a pair cannot be scored; the first such pair is named.
    """
    grouped: dict[Document, list[int]] = {}
    for place, (_, document) in enumerate(pairs):
        grouped.setdefault(document, []).append(place)
    groups = [
        DocumentGroup(document, tuple(pairs[place][0] for place in places)) for document, places in grouped.items()
    ]
    order = [place for places in grouped.values() for place in places]
    results = dict(zip(order, score_groups(groups), strict=True))
    logits = np.empty(len(pairs), dtype=np.float32)
    for place in range(len(pairs)):
        result = results[place]
        if isinstance(result, Reject):
            raise PairRejected(result.query_id, result.doc_id, result.reason, result.detail)
        logits[place] = result.logit
    return logits


def reject(query: Query, document: Document, why: RejectedInput) -> Reject:
    """The reject of a pair, one side or both of which cannot be scored."""
    return Reject(query.query_id, document.doc_id, why.reason, why.detail)
