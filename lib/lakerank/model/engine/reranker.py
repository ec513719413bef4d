"""A document-major reranker: document groups in, one scored pair or reject out for every pair in them."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lakerank.model.engine.batching import filled, reject, score_pairs
from lakerank.model.engine.counters import Work
from lakerank.model.engine.device import out_of_memory
from lakerank.model.engine.engine import Engine
from lakerank.model.inputs import DocumentQueries, EncodedInput, RejectedInput
from lakerank.model.preprocess.pipeline import Prepared, Preprocessor
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair

logger = logging.getLogger(__name__)


class DocumentMajorReranker:
    """Scores document groups, work on each document done once; see `load_reranker`.

    `logit_bias`: relevance = sigmoid(logit - logit_bias). `fingerprint` names the scorer, `load_id` this loading of it.
    `work` counts tokens computed and what whole pairs would have cost.
    """

    def __init__(
        self,
        engine: Engine,
        preprocessor: Preprocessor,
        *,
        fingerprint: str,
        logit_bias: float,
    ) -> None:
        self.fingerprint = fingerprint
        self.logit_bias = logit_bias
        self.load_id = uuid.uuid4().hex
        self._engine = engine
        self._preprocessor = preprocessor
        self._device = threading.Lock()

    @property
    def work(self) -> Work:
        """What has been computed since loading."""
        return self._engine.work

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
        """Raw float32 logits (P,) of pairs, in order; pairs that share a document share the work on it.

        Raises:
            PairRejected: a pair cannot be scored; the first such pair is named.
        """
        return score_pairs(self.score_groups, pairs)

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """One result for each pair, group after group, queries in their order.

        Groups are pulled as they are needed, as many as fill the device twice; decoding, resizing and tokenising run in
        threads ahead of it.
        """
        ahead = self._preprocessor.prefetch(groups, 2 * self._engine.budget.held, self.work)
        sized = ((prepared, 0 if prepared.work is None else prepared.work.tokens) for prepared in ahead)
        for filling in filled(sized, lambda: self._engine.budget.held):
            yield from self._score_prepared(filling)

    def _score_prepared(self, prepared: Sequence[Prepared]) -> Iterator[ScoredPair | Reject]:
        """Results of groups that share passes through the network."""
        works = [one.work for one in prepared]
        with self._device:
            outcomes = iter(self._logits([work for work in works if work is not None]))
        for one, work in zip(prepared, works, strict=True):
            yield from _results(one, next(outcomes) if work is not None else None)

    def _logits(self, works: Sequence[DocumentQueries]) -> list[np.ndarray | RejectedInput]:
        """Logits of each document's queries. Out of memory, halves are tried, and less at a time; what a document alone
        does not fit in is its own fault, not the job's.
        """
        if not works:
            return []
        try:
            return [*self._engine.score(works)]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        self._engine.release()
        if len(works) > 1:
            half = len(works) // 2
            return self._logits(works[:half]) + self._logits(works[half:])
        if self._engine.halve_budget():
            return self._logits(works)
        tokens = len(works[0].document.token_ids)
        logger.warning("out of memory at a document of %d tokens: its pairs are rejected", tokens)
        return [RejectedInput(RejectReason.OUT_OF_MEMORY, f"a document of {tokens} tokens")]


def _results(prepared: Prepared, outcome: np.ndarray | RejectedInput | None) -> Iterator[ScoredPair | Reject]:
    """One result for each of a group's queries, in order."""
    group, document = prepared.group, prepared.document
    if isinstance(document, RejectedInput):
        yield from (reject(query, group.document, document) for query in group.queries)
        return
    logits = iter(outcome.tolist() if isinstance(outcome, np.ndarray) else ())
    for query, side in zip(group.queries, prepared.queries, strict=True):
        if isinstance(side, RejectedInput):
            yield reject(query, group.document, side)
        elif isinstance(outcome, RejectedInput):
            yield reject(query, group.document, outcome)
        else:
            yield _scored(query, side, group.document, document, next(logits))


def _scored(
    query: Query, query_side: EncodedInput, document: Document, document_side: EncodedInput, logit: float
) -> ScoredPair | Reject:
    if not np.isfinite(logit):
        return Reject(query.query_id, document.doc_id, RejectReason.NON_FINITE_LOGIT, str(logit))
    return ScoredPair(
        query.query_id,
        document.doc_id,
        logit,
        len(query_side.token_ids),
        len(document_side.token_ids),
        query_side.truncated,
        document_side.truncated,
    )
