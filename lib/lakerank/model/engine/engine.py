"""Document-major scoring: a document's image and prefix are computed once, and its queries as suffixes on top.

Tokens of several documents, or of several queries, go through the network as the rows of one matrix, unpadded; see
docs/scoring.md. A pair's logit has the same bits whatever is scored beside it: products of matrices give a row its bits
wherever it stands (`rows`), and every call of attention has a shape that the document or the pair decides (`layout`).
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lakerank.model.engine.budget import LEAST_TOKENS, Budget, busy_budget, cut, device_budget
from lakerank.model.engine.counters import DeviceTimer, Work
from lakerank.model.engine.decoder import Embedded, PackedDecoder, Prefix
from lakerank.model.engine.device import to_device
from lakerank.model.engine.flops import Flops, count_flops
from lakerank.model.engine.layout import PAIR_QUERY, PrefixLayout, Span, prefix_layout, suffix_layout
from lakerank.model.engine.linear import Product, RowProducts, choose_products
from lakerank.model.engine.score_head import ReadOut, ScoreHead
from lakerank.model.engine.varlen import VarlenKind, choose_varlen
from lakerank.model.engine.vision import PackedVision, Vision
from lakerank.model.engine.vision_cache import BoundedCache
from lakerank.model.inputs import NO_TOKEN, DocumentQueries, Patches, TokenSequence
from lakerank.model.preprocess.images import PatchShape

logger = logging.getLogger(__name__)

#: Visual embeddings kept for reuse. Queries that are images come back for every document; a document only when its
#: queries were split among several groups, and it must not push the queries out.
QUERY_EMBEDDINGS_BYTES = 256 * 2**20
DOCUMENT_EMBEDDINGS_BYTES = 32 * 2**20

#: Prefixes kept from one call to the next, for a document whose queries were split among groups that follow each other.
KEPT_PREFIX_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class _Pair:
    """A query on the document of a number, from position `start` on; its logit belongs at `place`."""

    document: int
    query: TokenSequence
    start: int
    place: int


class Engine:
    """Scores documents' queries on one device; to be used by one thread.

    `network` is jina-reranker-m0's, or one with a decoder of the Qwen2 or Qwen3 kind and a `read_out` of its own, and
    where that sees differently with a `vision` and `flops` of its own. `block`: rows of a long query that ask at once
    (None: all). `reproducible`: a pair's logit has the same bits whatever is scored beside it. `budget`, `products` and
    `varlen` are found on the device where they are not given.
    """

    def __init__(
        self,
        network: Any,
        shape: PatchShape,
        *,
        read_out: ReadOut | None = None,
        vision: Vision | None = None,
        flops: Flops | None = None,
        block: int | None = None,
        budget: Budget | None = None,
        products: RowProducts | None = None,
        reproducible: bool = True,
        varlen: VarlenKind | None = None,
        query_images_bytes: int = QUERY_EMBEDDINGS_BYTES,
        document_images_bytes: int = DOCUMENT_EMBEDDINGS_BYTES,
    ) -> None:
        self.work = Work()
        self._decoder = PackedDecoder(network, read_out or ScoreHead(network.score))
        self._vision = vision or PackedVision(network, shape)
        weight = network.get_input_embeddings().weight
        self.dtype, self._device = weight.dtype, weight.device
        self._image_token = int(getattr(network.config, "image_token_id", NO_TOKEN))
        self.budget = budget or device_budget(self._device, network.config, weight.dtype)
        self._products = products or (self._reproducible_products() if reproducible else RowProducts())
        self._decoder.products = self._vision.products = self._products
        heads, dim = self._decoder.heads, self._decoder.dim
        chosen = choose_varlen(self._device, self.dtype, heads, dim, reproducible=reproducible)
        self._varlen = varlen or chosen
        self._timer = DeviceTimer(self._device, self.work)
        self._block = block
        self._flops = flops or count_flops(network.config)
        self._query_images: BoundedCache[Tensor] = BoundedCache(query_images_bytes, lambda made: made.nbytes)
        self._document_images: BoundedCache[Tensor] = BoundedCache(document_images_bytes, lambda made: made.nbytes)
        self._kept: dict[bytes, Prefix] = {}

    def _reproducible_products(self) -> RowProducts:
        # Not self.budget: what is chosen, and bits with it, would go by the memory that is free.
        most = busy_budget(self._device)
        decoder = (Product(*weights, most.tokens) for weights in self._decoder.weights())
        vision = (Product(*weights, most.patches) for weights in self._vision.weights())
        return choose_products([*decoder, *vision])

    @torch.inference_mode()
    def score(self, groups: Sequence[DocumentQueries]) -> list[np.ndarray]:
        """Raw float32 logits (Q,) of each group's queries, in order."""
        started = time.perf_counter()
        prefixes, numbers = self._prefixes([group.document for group in groups])
        pairs = _pairs(groups, numbers)
        chunks = cut(pairs, [len(pair.query.token_ids) for pair in pairs], self.budget.tokens)
        made = [self._suffixes(chunk, prefixes) for chunk in chunks]
        logits = np.empty(len(pairs), dtype=np.float32)
        logits[[pair.place for pair in pairs]] = torch.cat(made).cpu().numpy()  # the device is waited for here only
        self._timer.collect()
        for group in groups:
            self._count(group)
        self.work.drive_s += time.perf_counter() - started
        return np.split(logits, np.cumsum([len(group.queries) for group in groups])[:-1])

    def release(self) -> None:
        """Give back memory after a failed allocation, so that what comes next can be scored."""
        self._query_images.clear()
        self._document_images.clear()
        self._kept.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def halve_budget(self) -> bool:
        """Do with half as much at once from now on; False where that is too little already."""
        if self.budget.tokens <= LEAST_TOKENS:
            return False
        self.budget = self.budget.halved()
        logger.warning("out of memory: %d tokens at once from now on", self.budget.tokens)
        return True

    def _prefixes(self, documents: Sequence[TokenSequence]) -> tuple[list[Prefix], list[int]]:
        """A prefix for each distinct document, and each document's number among them."""
        keys = [_key(document) for document in documents]
        distinct = dict(zip(keys, documents, strict=True))
        found = {key: self._kept[key] for key in distinct if key in self._kept}
        self.work.prefixes_reused += len(keys) - len(distinct) + len(found)
        wanted = [(key, document) for key, document in distinct.items() if key not in found]
        for chunk in cut(wanted, [len(document.token_ids) for _, document in wanted], self.budget.tokens):
            made = self._pass_documents([document for _, document in chunk])
            found |= zip((key for key, _ in chunk), made, strict=True)
        self._keep(found, keys[-1])
        order = list(found)
        places = {key: number for number, key in enumerate(order)}
        return [found[key] for key in order], [places[key] for key in keys]

    def _keep(self, prefixes: dict[bytes, Prefix], last: bytes) -> None:
        """Remember the last document's prefix: only its queries can go on in the next call."""
        if last in self._kept and len(self._kept) == 1:
            return
        prefix = prefixes[last]
        self._kept = {} if prefix.nbytes > KEPT_PREFIX_BYTES else {last: prefix.copy()}

    def _pass_documents(self, documents: Sequence[TokenSequence]) -> list[Prefix]:
        lengths = [len(document.token_ids) for document in documents]
        visual = self._images(documents, self._document_images)
        with self._timer.stage("prefix_s"):
            embedded, positions = self._embed(documents, [0] * len(documents), visual)
            self.work.flops += sum(map(self._flops.prefix, lengths))
            layout = self._prefix_layout(lengths, len(embedded.rows))
            end = max(document.end for document in documents)
            return self._decoder.prefixes(embedded, positions, end, lengths, layout)

    def _prefix_layout(self, lengths: list[int], rows: int) -> PrefixLayout:
        if self._varlen is None:
            return prefix_layout(lengths, self._device)
        filling = [rows - sum(lengths)] if rows > sum(lengths) else []
        return PrefixLayout((), (), self._varlen([*lengths, *filling], self._device))

    def _suffixes(self, pairs: Sequence[_Pair], prefixes: Sequence[Prefix]) -> Tensor:
        """Logits (P,) of pairs that fit in one pass."""
        used = {number: place for place, number in enumerate(sorted({pair.document for pair in pairs}))}
        queries = [pair.query for pair in pairs]
        starts = np.cumsum([0, *(len(query.token_ids) for query in queries)]).tolist()
        spans = [
            Span(start, len(pair.query.token_ids), used[pair.document], prefixes[pair.document].tokens)
            for start, pair in zip(starts, pairs, strict=False)
        ]
        visual = self._images(queries, self._query_images)
        with self._timer.stage("suffix_s"):
            embedded, positions = self._embed(queries, [pair.start for pair in pairs], visual)
            rows = np.zeros(self._products.filled(len(pairs)), dtype=np.int64)
            rows[: len(pairs)] = np.array(starts[1:]) - 1
            logits = self._decoder.logits(
                embedded,
                positions,
                max(pair.start + pair.query.end for pair in pairs),
                [prefixes[number] for number in used],
                suffix_layout(spans, self._decoder.repeats, self._device, block=self._block),
                suffix_layout(spans, self._decoder.repeats, self._device, last_only=True),
                to_device(rows, self._device),
            )
        return logits[: len(pairs)]

    def _embed(
        self, sides: Sequence[TokenSequence], starts: Sequence[int], visual: Sequence[Tensor]
    ) -> tuple[Embedded, Tensor]:
        """Embeddings of M rows and positions (3, M) of sides one after the other; rows that only fill are token 0."""
        token_ids = np.concatenate([side.token_ids for side in sides])
        positions = np.concatenate([side.positions + start for side, start in zip(sides, starts, strict=True)], axis=1)
        spare = self._products.filled(len(token_ids)) - len(token_ids)
        self.work.computed += len(token_ids) + spare
        self.work.padding += spare
        ids = to_device(np.pad(token_ids, (0, spare)), self._device)
        places = to_device(np.flatnonzero(token_ids == self._image_token), self._device) if visual else None
        embedded = self._decoder.embed(ids, places, torch.cat(list(visual)) if visual else None)
        return embedded, to_device(np.pad(positions, ((0, 0), (0, spare))), self._device)

    def _images(self, sides: Sequence[TokenSequence], cache: BoundedCache[Tensor]) -> list[Tensor]:
        """Visual tokens of each image of the sides, in order; each content is encoded once."""
        images = {key: image for side in sides for key, image in side.images}
        found = {key: tokens for key in images if (tokens := cache.find(key)) is not None}
        wanted = [(key, image) for key, image in images.items() if key not in found]
        for chunk in cut(wanted, [len(image.pixels) for _, image in wanted], self.budget.patches):
            for (key, _), tokens in zip(chunk, self._encode([image for _, image in chunk]), strict=True):
                found[key] = tokens
                cache.put(key, tokens.clone())  # a view would hold on to all that were encoded beside it
        return [found[key] for side in sides for key, _ in side.images]

    def _encode(self, images: Sequence[Patches]) -> list[Tensor]:
        self.work.images_encoded += len(images)
        self.work.flops += sum(self._flops.vision(len(image.pixels)) for image in images)
        with self._timer.stage("vision_s"):
            pixels = to_device(np.concatenate([image.pixels for image in images]), self._device)
            return self._vision.tokens(pixels, [image.grid for image in images])

    def _count(self, group: DocumentQueries) -> None:
        tokens = len(group.document.token_ids)
        self.work.flops += sum(self._flops.suffix(len(query.token_ids), tokens) for query in group.queries)
        self.work.documents += 1
        self.work.pairs += len(group.queries)
        self.work.pairwise += sum(tokens + len(query.token_ids) for query in group.queries)


def _key(document: TokenSequence) -> bytes:
    """What a document's prefix is made from."""
    images = "|".join(key for key, _ in document.images)
    return images.encode() + b"|" + document.token_ids.tobytes()


def _pairs(groups: Sequence[DocumentQueries], numbers: Sequence[int]) -> list[_Pair]:
    """All pairs; those of one document together, and among them those that attend in one way (see `Span.short`)."""
    place = itertools.count()
    pairs = [
        _Pair(number, query, group.document.end, next(place))
        for group, number in zip(groups, numbers, strict=True)
        for query in group.queries
    ]
    return sorted(pairs, key=lambda pair: (pair.document, len(pair.query.token_ids) > PAIR_QUERY))
