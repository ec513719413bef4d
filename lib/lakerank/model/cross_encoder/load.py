"""Cross-encoders: document groups are flattened to pairs, and these read by an encoder many at a time, unpadded."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json
from lakerank.model.cross_encoder.config import read_shape
from lakerank.model.cross_encoder.tokenize import (
    SPECIAL,
    PairLimits,
    PairTokenizer,
    bge_limits,
    jina_limits,
    read_pair_tokens,
)
from lakerank.model.cross_encoder.weights import BGE, JINA, Naming, load_weights
from lakerank.model.engine.batching import filled, reject, score_pairs
from lakerank.model.engine.counters import Work
from lakerank.model.engine.encoder import PackedEncoder
from lakerank.model.engine.encoder_engine import EncoderEngine, Reading
from lakerank.model.inputs import EncodedInput, RejectedInput
from lakerank.model.preprocess.pipeline import Prepared, Preprocessor
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.registry import LoadOptions
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair

#: Passes of each thread whose pairs are sorted by length together. More would find more of one length; what waits are
#: token ids.
PASSES_SORTED = 32

#: By the family's name in the registry: the naming of tensors, and the limits of a pair by `max_length` and
#: `max_query_length`.
_FAMILIES: Mapping[str, tuple[Naming, Callable[[int, int], PairLimits]]] = {
    "bge-reranker": (BGE, bge_limits),
    "jina-reranker-v2": (JINA, jina_limits),
}

#: Tokens that a sequence has room for at least: half of them for the query, four special ones, and something to read.
LEAST_SEQUENCE = 16


@dataclass(frozen=True, slots=True)
class _Pair:
    """What a query and a document are read as, and how much of them that is, special tokens included."""

    readings: tuple[Reading, ...]
    query_tokens: int
    document_tokens: int
    query_truncated: bool
    document_truncated: bool


class CrossEncoder:
    """Scores document groups pair by pair; see `load_reranker`.

    A pair's logit is the largest of its windows', which for sigmoids of them is the largest sigmoid's. `work` counts
    tokens computed; no pair shares any with another, so that they are no fewer than `work.pairwise`.
    """

    def __init__(
        self,
        engine: EncoderEngine,
        preprocessor: Preprocessor,
        limits: PairLimits,
        *,
        fingerprint: str,
        logit_bias: float = 0.0,
    ) -> None:
        self.fingerprint = fingerprint
        self.logit_bias = logit_bias
        self.load_id = uuid.uuid4().hex
        self._engine = engine
        self._preprocessor = preprocessor
        self._limits = limits
        self._device = threading.Lock()

    @property
    def work(self) -> Work:
        """What has been computed since loading."""
        return self._engine.work

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
        """Raw float32 logits (P,) of pairs, in order.

        Raises:
            PairRejected: a pair cannot be scored; the first such pair is named.
        """
        return score_pairs(self.score_groups, pairs)

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """One result for each pair, group after group, queries in their order.

        Groups are pulled as they are needed, as many as fill PASSES_SORTED passes; texts are tokenised by threads ahead
        of the device, each document and each query once.
        """
        ahead = self._preprocessor.prefetch(groups, self._held(), self.work)
        read = ((prepared, self._pairs(prepared)) for prepared in ahead)
        for filling in filled(((one, _tokens(one[1])) for one in read), self._held):
            yield from self._score(filling)

    def _held(self) -> int:
        """Tokens of the pairs that are sorted together."""
        return PASSES_SORTED * self._engine.tokens_at_once

    def _pairs(self, prepared: Prepared) -> list[_Pair | RejectedInput]:
        """What each of a group's queries is read as; why not where it cannot be."""
        document = prepared.document
        if isinstance(document, RejectedInput):
            return []
        return [self._pair(query, document) for query in prepared.queries]

    def _pair(self, query: EncodedInput | RejectedInput, document: EncodedInput) -> _Pair | RejectedInput:
        if isinstance(query, RejectedInput):
            return query
        asked, ids = query.token_ids, document.token_ids
        spans = self._limits.spans(len(asked), len(ids))
        readings = (Reading(asked, ids[start:stop], stop - start + len(asked) + SPECIAL) for start, stop in spans)
        read = spans[-1][1]
        return _Pair(
            tuple(readings),
            len(asked) + SPECIAL // 2,
            read + SPECIAL // 2,
            query.truncated,
            document.truncated or read < len(ids),
        )

    def _score(self, filling: Sequence[tuple[Prepared, list[_Pair | RejectedInput]]]) -> Iterator[ScoredPair | Reject]:
        """Results of groups that share passes through the network."""
        readings = [
            reading for _, pairs in filling for pair in pairs if isinstance(pair, _Pair) for reading in pair.readings
        ]
        with self._device:
            logits = iter(self._engine.score(readings))
        for prepared, pairs in filling:
            group, document = prepared.group, prepared.document
            if isinstance(document, RejectedInput):
                yield from (reject(query, group.document, document) for query in group.queries)
                continue
            self._count(pairs)
            for query, pair in zip(group.queries, pairs, strict=True):
                if isinstance(pair, RejectedInput):
                    yield reject(query, group.document, pair)
                else:
                    yield _result(query, group.document, pair, [next(logits) for _ in pair.readings])

    def _count(self, pairs: Sequence[_Pair | RejectedInput]) -> None:
        scored = [pair for pair in pairs if isinstance(pair, _Pair)]
        self.work.documents += bool(scored)
        self.work.pairs += len(scored)
        self.work.pairwise += sum(reading.length for pair in scored for reading in pair.readings)


def _tokens(pairs: Iterable[_Pair | RejectedInput]) -> int:
    return sum(reading.length for pair in pairs if isinstance(pair, _Pair) for reading in pair.readings)


def _result(query: Query, document: Document, pair: _Pair, logits: Sequence[float | None]) -> ScoredPair | Reject:
    """A pair's result from its windows' logits."""
    fitting = [logit for logit in logits if logit is not None]
    if len(fitting) < len(logits):
        longest = max(reading.length for reading in pair.readings)
        return reject(query, document, RejectedInput(RejectReason.OUT_OF_MEMORY, f"a sequence of {longest} tokens"))
    strange = [logit for logit in fitting if not np.isfinite(logit)]
    if strange:
        return reject(query, document, RejectedInput(RejectReason.NON_FINITE_LOGIT, str(strange[0])))
    return ScoredPair(
        query.query_id,
        document.doc_id,
        max(fitting),
        pair.query_tokens,
        pair.document_tokens,
        pair.query_truncated,
        pair.document_truncated,
    )


def load(options: LoadOptions) -> CrossEncoder:
    """The checkpoint of a family on its device.

    Raises:
        CheckpointError: weights or tokenizer do not fit config.json.
    """
    folder = options.folder
    naming, pair_limits = _FAMILIES[options.family]
    limits = pair_limits(options.limits.max_length, options.limits.max_query_length)
    shape = read_shape(read_json(folder / "config.json"), str(folder))
    if limits.sequence < LEAST_SEQUENCE:
        raise CheckpointError(f"{folder}: sequences of {limits.sequence} tokens leave no room for a document")
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    tokenizer.encode_special_tokens = False  # see `tokenize`
    tokens = read_pair_tokens(tokenizer, shape.vocabulary, shape.padding, str(folder))
    weights = load_weights(folder, shape, naming, getattr(torch, options.dtype), torch.device(options.device))
    return CrossEncoder(
        EncoderEngine(PackedEncoder(shape, weights), tokens, reproducible=options.reproducible),
        Preprocessor(PairTokenizer(tokenizer, limits), options.limits, None, threads=options.host_threads),
        limits,
        fingerprint=options.fingerprint,
        logit_bias=options.logit_bias,
    )
