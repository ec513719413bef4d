"""One reranker for pairs of texts and another for pairs with an image, their logits calibrated to one scale."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lakerank.limits import LogitScale
from lakerank.model.registry import LoadedReranker, TokenCounters
from lakerank.records import Document, DocumentGroup, Query, Reject, ScoredPair

#: Pairs of texts, and bytes of their documents, that are buffered at most while groups with images are scored.
BUFFERED_PAIRS = 8192
BUFFERED_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class TokenSums:
    """Tokens through both models."""

    computed: int
    pairwise: int


@dataclass(frozen=True, slots=True)
class CalibratedReranker:
    """A reranker whose logits are calibrated: scale × raw + bias, computed in float64. Rejects pass
    through as they are."""

    reranker: LoadedReranker
    scale: LogitScale

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
        """Calibrated logits (P,) of pairs, in order."""
        logits = self.reranker.score(pairs).astype(np.float64)
        return np.asarray(logits * self.scale.scale + self.scale.bias, dtype=np.float32)

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """One result for each pair of each group."""
        for result in self.reranker.score_groups(groups):
            if isinstance(result, Reject):
                yield result
            else:
                yield replace(result, logit=float(np.float32(result.logit * self.scale.scale + self.scale.bias)))


class RoutedReranker:
    """Gives each pair to one of two rerankers: with an image in query or document to the one for images.

    Relevance is the sigmoid of the calibrated logit. At most `buffered_pairs` and `buffered_bytes` of texts wait
    while groups with images are scored.
    """

    def __init__(
        self,
        text: CalibratedReranker,
        image: CalibratedReranker,
        fingerprint: str,
        *,
        buffered_pairs: int = BUFFERED_PAIRS,
        buffered_bytes: int = BUFFERED_BYTES,
    ) -> None:
        self.fingerprint = fingerprint
        self.logit_bias = 0.0
        self.load_id = uuid.uuid4().hex
        self._text, self._image = text, image
        self._buffered_pairs, self._buffered_bytes = buffered_pairs, buffered_bytes

    @property
    def counters(self) -> TokenCounters:
        """Work of both models since loading."""
        text, image = self._text.reranker.counters, self._image.reranker.counters
        return TokenSums(text.computed + image.computed, text.pairwise + image.pairwise)

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
        """Calibrated float32 logits (P,) of pairs, in order.

        Raises:
            PairRejected: a pair cannot be scored.
        """
        with_image = np.array([_has_image(query, document) for query, document in pairs], dtype=bool)
        logits = np.empty(len(pairs), dtype=np.float32)
        for mask, reranker in ((with_image, self._image), (~with_image, self._text)):
            numbers = np.flatnonzero(mask)
            if len(numbers):
                logits[numbers] = reranker.score([pairs[number] for number in numbers.tolist()])
        return logits

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """One result for each pair, in any order: groups with images as they come, texts once the buffer is full."""
        router = _Router(iter(groups), self._buffered_pairs, self._buffered_bytes)
        while not router.exhausted:
            yield from self._image.score_groups(router.with_image())
            yield from self._text.score_groups(router.texts())


class _Router:
    """Splits groups into pairs of texts and pairs with an image; texts are buffered, so that no image is."""

    def __init__(self, groups: Iterator[DocumentGroup], buffered_pairs: int, buffered_bytes: int) -> None:
        self.exhausted = False
        self._groups = groups
        self._buffered_pairs, self._buffered_bytes = buffered_pairs, buffered_bytes
        self._buffer: list[DocumentGroup] = []

    def with_image(self) -> Iterator[DocumentGroup]:
        """Groups of pairs with an image, until there are no more or the buffer of texts is full."""
        pairs = size = 0
        while pairs < self._buffered_pairs and size < self._buffered_bytes:
            group = next(self._groups, None)
            if group is None:
                self.exhausted = True
                return
            texts = _part(group, lambda query, document: not _has_image(query, document))
            if texts.queries:
                self._buffer.append(texts)
                pairs += len(texts.queries)
                size += 4 * len(texts.document.text or "")
            images = _part(group, _has_image)
            if images.queries or not group.queries:
                yield images

    def texts(self) -> Iterator[DocumentGroup]:
        """The buffered groups, each once."""
        buffer, self._buffer = self._buffer, []
        yield from buffer


def _part(group: DocumentGroup, belongs: Callable[[Query, Document], bool]) -> DocumentGroup:
    return DocumentGroup(group.document, tuple(query for query in group.queries if belongs(query, group.document)))


def _has_image(query: Query, document: Document) -> bool:
    return query.image is not None or document.image is not None
