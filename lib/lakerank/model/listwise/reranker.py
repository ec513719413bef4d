"""The listwise reranker: lists of candidates in, one scored pair or reject out for every document in them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np

from lakerank.model.engine.budget import MicroBatcher, batched
from lakerank.model.engine.counters import Counters
from lakerank.model.engine.reranker import pair_result
from lakerank.model.inputs import RejectedInput
from lakerank.model.listwise.tokenize import EncodedList
from lakerank.model.preprocess.pipeline import Prepared, Preprocessor, digest
from lakerank.records import CandidateList, DocumentGroup, Reject, ScoredPair

#: Lists that are scored together at most.
_MOST_LISTS = 64


class ListEngine(Protocol):
    """Scores lists on one device: logits (N,) of each list's documents, or why there are none."""

    batcher: MicroBatcher

    def score_lists(self, lists: Sequence[EncodedList]) -> Sequence[np.ndarray | RejectedInput]: ...


@dataclass(eq=False)
class ListwiseReranker:
    """Scores lists, many at a time, each as if it were alone; see `load_reranker`.

    `passes`: a score is the mean of those in so many orders: the given one, that reversed, and others drawn by the
    list's content. `fingerprint` names the scorer.
    """

    engine: ListEngine
    preprocessor: Preprocessor
    fingerprint: str
    passes: int = 1
    logit_bias: float = 0.0

    @property
    def counters(self) -> Counters:
        """Work done since loading."""
        return self.engine.batcher.counters

    @property
    def gpu(self) -> str | None:
        """The model of the GPU that it is on, if any."""
        return self.engine.batcher.gpu

    def score_lists(self, lists: Iterable[CandidateList]) -> Iterator[ScoredPair | Reject]:
        """One result for each document, list after list, in their order; lists are pulled as they are needed."""
        for batch in batched(self._prepared(lists), lambda: self.engine.batcher.budget.group_tokens, _MOST_LISTS):
            encoded = [*map(_encoded, batch)]
            with self.engine.batcher.lock:
                scores = iter(self._scores([each for each in encoded if each is not None]))
            for members, each in zip(batch, encoded, strict=True):
                yield from _results(members, () if each is None else next(scores))

    def _prepared(self, lists: Iterable[CandidateList]) -> Iterator[tuple[list[Prepared], int]]:
        """The preprocessed documents of each list that has any, each with its query, and their tokens."""
        sizes: deque[int] = deque()

        def groups() -> Iterator[DocumentGroup]:
            for candidates in lists:
                if candidates.documents:
                    sizes.append(len(candidates.documents))
                    yield from (DocumentGroup(document, (candidates.query,)) for document in candidates.documents)

        prepared = self.preprocessor.prefetch(groups(), 2 * self.engine.batcher.budget.group_tokens)
        for first in prepared:
            members = [first, *islice(prepared, sizes.popleft() - 1)]
            yield members, sum(each.engine_input.tokens for each in members if each.engine_input is not None)

    def _scores(self, lists: Sequence[EncodedList]) -> list[Sequence[float] | RejectedInput]:
        """Logits of each list, the mean of all passes."""
        orders = [[*_orders(each, self.passes)] for each in lists]
        given = zip(lists, orders, strict=True)
        scored = iter(self.engine.score_lists([each.in_order(order) for each, several in given for order in several]))
        results: list[Sequence[float] | RejectedInput] = []
        for several in orders:
            passes: list[Any] = [*islice(scored, len(several))]
            rejected = next((scores for scores in passes if isinstance(scores, RejectedInput)), None)
            given_order = (scores[np.argsort(order)] for scores, order in zip(passes, several, strict=True))
            results.append(rejected or np.mean([*given_order], axis=0).astype(np.float32).tolist())
        return results


def _orders(each: EncodedList, passes: int) -> Iterator[list[int]]:
    """Orders of a list's documents, which depend on its content alone."""
    places = [*range(len(each.documents))]
    yield from (places, places[::-1])[:passes]
    if passes > 2:
        contents = (repr((part.token_ids.tolist(), [*dict(part.images)])) for part in (each.query, *each.documents))
        name = digest("\n".join(contents).encode())
        for number in range(2, passes):
            keys = {place: digest(f"{name}:{number}:{place}".encode()) for place in places}
            yield sorted(places, key=keys.__getitem__)


def _encoded(members: Sequence[Prepared]) -> EncodedList | None:
    """A list's query and those of its documents that can be read; None where there is nothing to score."""
    readable: list[Any] = [each.engine_input for each in members if each.engine_input is not None]
    return EncodedList(readable[0].queries[0], tuple(each.document for each in readable)) if readable else None


def _results(members: Sequence[Prepared], scores: Sequence[float] | RejectedInput) -> Iterator[ScoredPair | Reject]:
    remaining = iter(() if isinstance(scores, RejectedInput) else scores)
    for each in members:
        (query,), (side,) = each.group.queries, each.sides
        outcome = math.nan if each.engine_input is None else next(remaining, math.nan)
        yield pair_result(each, query, side, scores if isinstance(scores, RejectedInput) else outcome)
