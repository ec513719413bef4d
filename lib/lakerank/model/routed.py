"""One reranker for pairs of texts and another for pairs with an image, their logits calibrated to one scale."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np

from lakerank.errors import CheckpointError
from lakerank.fingerprint import fingerprint
from lakerank.limits import Limits, LogitScale
from lakerank.model.registry import LoadedReranker, TokenCounters
from lakerank.model.spec import CheckpointSpec, RuntimeOptions, ScorerIdentity, identify, load
from lakerank.records import Document, DocumentGroup, Query, Reject, ScoredPair

#: Changes when two rerankers with the same names and scales would score other pairs, or otherwise.
ROUTING_PROTOCOL = 1

#: Pairs of texts, and bytes of their documents, that are buffered at most while groups with images are scored.
BUFFERED_PAIRS = 8192
BUFFERED_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class RoutedSpec:
    """One checkpoint for pairs of texts and one for pairs with an image; the scales bring their logits together."""

    text: CheckpointSpec
    image: CheckpointSpec
    text_scale: LogitScale
    image_scale: LogitScale

    def identify(self, limits: Limits) -> ScorerIdentity:
        """Find both checkpoints.

        Raises CheckpointError: one cannot be found, is not one, or (the one for images) reads text alone.
        """
        text, image = identify(self.text, limits), identify(self.image, limits)
        if not image.accepts_images:
            raise CheckpointError(f"model.image: {image.family} reads text alone; name a reranker that reads images")
        parts = {
            "routing": ROUTING_PROTOCOL,
            "text": [text.fingerprint, asdict(self.text_scale)],
            "image": [image.fingerprint, asdict(self.image_scale)],
        }
        return ScorerIdentity(fingerprint(parts), 0.0, (text, image))

    def load(
        self, device: str, limits: Limits, options: RuntimeOptions, scorer: ScorerIdentity | None = None
    ) -> LoadedReranker:
        """Both rerankers in memory, as one; see `CheckpointSpec.load`."""
        scorer = scorer or self.identify(limits)
        text, image = (
            CalibratedReranker(load(checkpoint.load_options(device, limits, options, identity)), scale)
            for checkpoint, scale, identity in zip(
                (self.text, self.image), (self.text_scale, self.image_scale), scorer.identities, strict=True
            )
        )
        return RoutedReranker(text, image, scorer.fingerprint)


ModelSpec = CheckpointSpec | RoutedSpec


class TokenSums(NamedTuple):
    """Tokens through both models."""

    computed: int
    pairwise: int


@dataclass(frozen=True, slots=True)
class CalibratedReranker:
    """A reranker whose logits are calibrated: scale × raw + bias, computed in float64. Rejects pass as they are."""

    reranker: LoadedReranker
    scale: LogitScale

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
        self.gpu = getattr(text.reranker, "gpu", None)
        self._text, self._image = text, image
        self._buffered_pairs, self._buffered_bytes = buffered_pairs, buffered_bytes

    @property
    def members(self) -> tuple[CalibratedReranker, CalibratedReranker]:
        """The reranker for texts and the one for images."""
        return self._text, self._image

    @property
    def counters(self) -> TokenCounters:
        """Work of both models since loading."""
        text, image = self._text.reranker.counters, self._image.reranker.counters
        return TokenSums(text.computed + image.computed, text.pairwise + image.pairwise)

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """One result for each pair, in any order: groups with images as they come, texts once the buffer is full."""
        remaining, exhausted = iter(groups), False
        buffer: list[DocumentGroup] = []  # of texts, so that no image is buffered

        def with_image() -> Iterator[DocumentGroup]:
            """Groups of pairs with an image, until there are no more or the buffer of texts is full."""
            nonlocal exhausted
            pairs = size = 0
            while pairs < self._buffered_pairs and size < self._buffered_bytes:
                group = next(remaining, None)
                if group is None:
                    exhausted = True
                    return
                images = tuple(query for query in group.queries if _has_image(query, group.document))
                texts = tuple(query for query in group.queries if not _has_image(query, group.document))
                if texts:
                    buffer.append(replace(group, queries=texts))
                    pairs += len(texts)
                    size += 4 * len(group.document.text or "")
                if images or not group.queries:
                    yield replace(group, queries=images)

        while not exhausted:
            yield from self._image.score_groups(with_image())
            texts, buffer = buffer, []
            yield from self._text.score_groups(texts)


def _has_image(query: Query, document: Document) -> bool:
    return query.image is not None or document.image is not None
