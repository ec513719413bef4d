"""The batched reranker: document groups in, one scored pair or reject out for every pair in them.

Families differ in its engine and preprocessor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lakerank.model.engine.budget import MicroBatcher, batched
from lakerank.model.engine.counters import Counters
from lakerank.model.inputs import EncodedInput, RejectedInput
from lakerank.model.preprocess.pipeline import Prepared, Preprocessor
from lakerank.records import DocumentGroup, Query, Reject, RejectReason, ScoredPair

#: Document groups that are scored together at most, however small or without anything to score.
_MOST_GROUPS = 512

#: Of a pair: query tokens, document tokens, whether the query is truncated, whether the document is.
PairLengths = tuple[int, int, bool, bool]

Outcome = float | tuple[float, PairLengths] | RejectedInput

#: Of each pair of each input.
Outcomes = Sequence[Sequence[Outcome]]


class Engine(Protocol):
    """Scores preprocessed groups on one device: a raw logit, or why there is none, for each pair of each input.

    An engine that tokenises pairs itself gives their lengths, too.

    `group_tokens`: of the document groups to score together. To be used by one thread.
    """

    batcher: MicroBatcher

    @property
    def group_tokens(self) -> int: ...

    def score(self, inputs: Sequence[Any]) -> Outcomes: ...


def whole_pair(query: EncodedInput, document: EncodedInput) -> PairLengths:
    """Lengths of a pair whose query and document are scored as they are encoded."""
    return len(query.token_ids), len(document.token_ids), query.truncated, document.truncated


@dataclass(eq=False)
class BatchedReranker:
    """Scores document groups, many at a time; see `load_reranker`.

    `logit_bias`: relevance = sigmoid(logit - logit_bias). `fingerprint` names the scorer.
    `launch`: starts to score inputs, and returns what waits for the outcomes; a call is then launched before those of
    the one before it are read, so that the device never waits. None: `engine.score`, which returns when it is done.
    `lengths`: what a query's and a document's tokens make of a pair. `state_dtype`: of the states of documents that it
    can keep; None for a reranker that has none.
    """

    engine: Engine
    preprocessor: Preprocessor
    fingerprint: str
    logit_bias: float = 0.0
    lengths: Callable[[EncodedInput, EncodedInput], PairLengths] = whole_pair
    state_dtype: str | None = None
    launch: Callable[[Sequence[Any]], Callable[[], Outcomes]] | None = None

    @property
    def counters(self) -> Counters:
        """Work done since loading."""
        return self.engine.batcher.counters

    @property
    def gpu(self) -> str | None:
        """The model of the GPU that it is on, if any."""
        return self.engine.batcher.gpu

    @property
    def tokens_ahead(self) -> int:
        """Tokens of groups to have at hand, so that the device never waits: those scored together now and next."""
        return 2 * self.engine.group_tokens

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """One result for each pair, group after group, queries in their order.

        Groups are pulled as they are needed; decoding, resizing and tokenising run in threads ahead of the device.
        """
        launched: deque[tuple[list[Prepared], Callable[[], Outcomes]]] = deque()
        for batch in batched(self._sized(groups), lambda: self.engine.group_tokens, _MOST_GROUPS):
            launched.append((batch, self._launched(batch)))
            if self.launch is None or len(launched) > 1:
                yield from self._read(*launched.popleft())
        for call in launched:
            yield from self._read(*call)

    def _launched(self, batch: Sequence[Prepared]) -> Callable[[], Outcomes]:
        inputs = [group.engine_input for group in batch if group.engine_input is not None]
        with self.engine.batcher.lock:
            if self.launch is not None:
                return self.launch(inputs)
            scored = self.engine.score(inputs)
            return lambda: scored

    def _read(self, batch: Sequence[Prepared], outcomes: Callable[[], Outcomes]) -> Iterator[ScoredPair | Reject]:
        with self.engine.batcher.lock:
            scored = iter(outcomes())
        for group in batch:
            yield from self._results(group, () if group.engine_input is None else next(scored))

    def _sized(self, groups: Iterable[DocumentGroup]) -> Iterator[tuple[Prepared, int]]:
        """Preprocessed groups and their tokens; twice as many as are scored together are prepared ahead."""
        for prepared in self.preprocessor.prefetch(groups, self.tokens_ahead):
            self.counters.decode_s += prepared.seconds.decode
            self.counters.tokenise_s += prepared.seconds.tokenise
            self.counters.wait_s += prepared.seconds.wait
            yield prepared, 0 if prepared.engine_input is None else prepared.engine_input.tokens

    def _results(self, prepared: Prepared, outcomes: Sequence[Outcome]) -> Iterator[ScoredPair | Reject]:
        """One result for each of a group's queries, in order; `outcomes` are those of the queries that were encoded."""
        remaining = iter(outcomes)
        for query, side in zip(prepared.group.queries, prepared.sides, strict=True):
            outcome = next(remaining) if isinstance(side, EncodedInput) else math.nan
            yield pair_result(prepared, query, side, outcome, self.lengths)


def pair_result(
    prepared: Prepared,
    query: Query,
    side: EncodedInput | RejectedInput,
    outcome: Outcome,
    lengths: Callable[[EncodedInput, EncodedInput], PairLengths] = whole_pair,
) -> ScoredPair | Reject:
    """The result of a pair whose document is prepared, and whose query is `side`."""
    document, query_id, doc_id = prepared.document, query.query_id, prepared.group.document.doc_id
    if isinstance(document, RejectedInput) or isinstance(side, RejectedInput) or isinstance(outcome, RejectedInput):
        rejected = next(each for each in (document, side, outcome) if isinstance(each, RejectedInput))
        return Reject(query_id, doc_id, rejected.reason, rejected.detail)
    logit, sizes = outcome if isinstance(outcome, tuple) else (outcome, lengths(side, document))
    if not math.isfinite(logit):
        return Reject(query_id, doc_id, RejectReason.NON_FINITE_LOGIT, str(logit))
    images = (document.files_read or None, *map(_left_out, (document, side)))
    return ScoredPair(query_id, doc_id, logit, *sizes, *images)


def _left_out(side: EncodedInput) -> int | None:
    return side.frames_left_out if side.files_read else None
