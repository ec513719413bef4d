"""One reranker for pairs of texts and another for pairs with an image, their logits brought to one scale."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lakerank.limits import LogitScale
from lakerank.model.registry import LoadedReranker, TokensRead
from lakerank.records import Document, DocumentGroup, Query, Reject, ScoredPair

#: Pairs of texts, and bytes of their documents, that wait at most while groups with images go through.
WAITING_PAIRS = 8192
WAITING_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class BothRead:
    """Tokens through both models."""

    computed: int
    pairwise: int


class RoutedReranker:
    """Gives each pair to one of two rerankers: an image on either side, and it is the image reranker's.

    Logits are scale × raw + bias of the reranker that scored the pair, in float32; relevance is their sigmoid. Rejects
    pass through as they are.
    """

    def __init__(
        self,
        text: LoadedReranker,
        image: LoadedReranker,
        text_scale: LogitScale,
        image_scale: LogitScale,
        fingerprint: str,
    ) -> None:
        self.fingerprint = fingerprint
        self.logit_bias = 0.0
        self.load_id = uuid.uuid4().hex
        self._text, self._image = text, image
        self._text_scale, self._image_scale = text_scale, image_scale

    @property
    def counters(self) -> TokensRead:
        """What has been computed since loading, by both."""
        counters = (self._text.counters, self._image.counters)
        return BothRead(sum(one.computed for one in counters), sum(one.pairwise for one in counters))

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
        """Calibrated float32 logits (P,) of pairs, in order.

        Raises:
            PairRejected: a pair cannot be scored.
        """
        with_image = np.array([_has_image(query, document) for query, document in pairs], dtype=bool)
        logits = np.empty(len(pairs), dtype=np.float32)
        for chosen, reranker, scale in (
            (with_image, self._image, self._image_scale),
            (~with_image, self._text, self._text_scale),
        ):
            places = np.flatnonzero(chosen)
            if len(places):
                logits[places] = calibrated(reranker.score([pairs[place] for place in places.tolist()]), scale)
        return logits

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """One result for each pair, in any order: groups with images as they come, texts when enough of them wait."""
        source = _Split(iter(groups))
        while not source.exhausted:
            yield from _scaled(self._image.score_groups(source.with_image()), self._image_scale)
            yield from _scaled(self._text.score_groups(source.texts()), self._text_scale)


class _Split:
    """Takes groups apart; texts wait until there are enough of them, so that no image waits in memory."""

    def __init__(self, groups: Iterator[DocumentGroup]) -> None:
        self.exhausted = False
        self._groups = groups
        self._waiting: list[DocumentGroup] = []

    def with_image(self) -> Iterator[DocumentGroup]:
        """Groups of pairs with an image, until there are no more or enough texts wait."""
        pairs = size = 0
        while pairs < WAITING_PAIRS and size < WAITING_BYTES:
            group = next(self._groups, None)
            if group is None:
                self.exhausted = True
                return
            texts = _part(group, lambda query, document: not _has_image(query, document))
            if texts.queries:
                self._waiting.append(texts)
                pairs += len(texts.queries)
                size += 4 * len(texts.document.text or "")
            images = _part(group, _has_image)
            if images.queries or not group.queries:
                yield images

    def texts(self) -> Iterator[DocumentGroup]:
        """The groups that wait, each once."""
        waiting, self._waiting = self._waiting, []
        yield from waiting


def calibrated(logits: np.ndarray, scale: LogitScale) -> np.ndarray:
    """scale × raw + bias: float32 (P,) to float32 (P,), computed in float64."""
    return np.asarray(logits.astype(np.float64) * scale.scale + scale.bias, dtype=np.float32)


def _scaled(results: Iterator[ScoredPair | Reject], scale: LogitScale) -> Iterator[ScoredPair | Reject]:
    for result in results:
        if isinstance(result, Reject):
            yield result
        else:
            yield replace(result, logit=float(np.float32(result.logit * scale.scale + scale.bias)))


def _part(group: DocumentGroup, wanted: Callable[[Query, Document], bool]) -> DocumentGroup:
    return DocumentGroup(group.document, tuple(query for query in group.queries if wanted(query, group.document)))


def _has_image(query: Query, document: Document) -> bool:
    return query.image is not None or document.image is not None
