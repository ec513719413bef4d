"""Document-major scoring: a document's image and prefix are computed once, and its queries as suffixes on it.

Tokens of several documents, or of several queries, are packed rows of one matrix, unpadded; see docs/scoring.md. A
pair's logit has the same bits whatever is scored beside it: linear layers are batch-invariant (`linear`), and the shape
of every call of attention depends on one document or pair alone (`layout`).
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lakerank.model.engine.attention import HeadShape, attend_visibly, choose_varlen, document_attention
from lakerank.model.engine.budget import MicroBatcher, busy_budget, device_budget, micro_batches
from lakerank.model.engine.counters import Counters
from lakerank.model.engine.decoder import Embeddings, PackedDecoder, Prefix
from lakerank.model.engine.device import to_device, to_host
from lakerank.model.engine.layout import PAIR_QUERY, Layouts, Span, Varlen
from lakerank.model.engine.linear import BatchInvariantLinear, LinearProbe, LinearWeights, any_packed, choose_linear
from lakerank.model.engine.vision import PackedVision
from lakerank.model.inputs import DocumentQueries, EncodedInput, Patches, RejectedInput
from lakerank.model.preprocess.pipeline import BoundedCache
from lakerank.records import RejectReason

logger = logging.getLogger(__name__)

#: Bytes of visual tokens kept for reuse, of queries and of documents. Queries that are images come back for every
#: document; a document only when its queries were split among several groups, and it must not evict the queries.
IMAGE_CACHE_BYTES = (256 * 2**20, 32 * 2**20)

#: Bytes of a prefix kept from one call to the next, for a document whose queries are in several consecutive groups.
_PREFIX_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Pair:
    """A query on the document of a number, at positions from `start` on; `number` is its own among all pairs."""

    document: int
    query: EncodedInput
    start: int
    number: int


#: Waits for the logits of groups' queries.
ReadLogits = Callable[[], list[list[float | RejectedInput]]]


class DocumentEncoder(Protocol):
    """Computes prefixes of documents where it is not the decoder that reads them."""

    heads: HeadShape
    layouts: Layouts

    def weights(self) -> Iterable[LinearWeights]: ...

    def prefixes(self, documents: Sequence[EncodedInput], counters: Counters) -> list[Prefix]: ...


class DocumentMajorEngine:
    """Scores documents' queries on one device; to be used by one thread.

    `vision`: None where inputs have no images. `encoder`: None where the decoder reads documents. `reproducible`: a
    pair's logit has the same bits whatever is scored beside it, by a linear function that `choose_linear` finds.
    `varlen`: attention of packed sequences, chosen for the device where None.
    `query_block`: rows of a long query that attend at once (None: all). `image_cache_bytes`: of queries and of
    documents.
    """

    def __init__(
        self,
        decoder: PackedDecoder,
        vision: PackedVision | None,
        *,
        encoder: DocumentEncoder | None = None,
        reproducible: bool = True,
        choose_linear: Callable[[Iterable[LinearProbe]], BatchInvariantLinear] = choose_linear,
        varlen: Varlen | None = None,
        query_block: int | None = None,
        image_cache_bytes: tuple[int, int] = IMAGE_CACHE_BYTES,
    ) -> None:
        self.dtype, self._device = decoder.dtype, decoder.device
        self._decoder, self._vision, self._encoder = decoder, vision, encoder
        self.batcher = MicroBatcher(self._device, device_budget(self._device, decoder.bytes_per_token))
        probes = self._probes()
        self._linear = choose_linear(probes) if reproducible else BatchInvariantLinear(packed=any_packed(probes))
        for network in (decoder, vision):
            if network is not None:
                network.linear = self._linear
        shapes = [(decoder.heads, decoder.kv_heads, decoder.head_dim), *([encoder.heads] if encoder else [])]
        kernel = varlen or choose_varlen(self._device, self.dtype, shapes, reproducible)
        self.layouts = Layouts(self._device, decoder.heads // decoder.kv_heads, kernel, query_block)
        if encoder is not None:
            encoder.layouts = self.layouts
        if vision is not None:
            vision.varlen = varlen or choose_varlen(self._device, self.dtype, [vision.heads], reproducible)
        self._query_images, self._document_images = (
            BoundedCache[Tensor](size, lambda tokens: tokens.nbytes) for size in image_cache_bytes
        )
        self._last_prefix: dict[bytes, Prefix] = {}

    def _probes(self) -> list[LinearProbe]:
        # Not of the present budget: the choice, and bits with it, would depend on free memory.
        most = busy_budget(self._device)
        encoder = () if self._encoder is None else self._encoder.weights()
        decoder = [LinearProbe(weights, most.tokens) for weights in (*self._decoder.weights(), *encoder)]
        vision = () if self._vision is None else self._vision.weights()
        return [*decoder, *(LinearProbe(weights, most.patches) for weights in vision)]

    @property
    def group_tokens(self) -> int:
        """Tokens of the document groups to score together."""
        return self.batcher.budget.group_tokens

    def score(self, groups: Sequence[DocumentQueries]) -> list[list[float | RejectedInput]]:
        """The raw logit of each group's queries; a reject for each where a document does not fit into memory alone."""
        return self.launch(groups)()

    @property
    def overlapped(self) -> Callable[[Sequence[DocumentQueries]], ReadLogits] | None:
        """`launch`, where the device computes by itself meanwhile."""
        return self.launch if self._device.type == "cuda" else None

    @torch.inference_mode()
    def launch(self, groups: Sequence[DocumentQueries]) -> ReadLogits:
        """Have the device score groups; what is returned waits for it, and is `score`'s result."""
        launched = self.batcher.run(
            self._launch, groups, smaller_batches_help=lambda part: len(part) == 1, release=self.release
        )

        def read() -> list[list[float | RejectedInput]]:
            started = time.perf_counter()
            results = [
                _rejects(group) if logits is None else logits() for group, logits in zip(groups, launched, strict=True)
            ]
            self.batcher.timer.collect()
            self.batcher.counters.host_s += time.perf_counter() - started
            return results

        return read

    @torch.inference_mode()
    def attention(self, groups: Sequence[DocumentQueries], layer: int) -> list[np.ndarray]:
        """What the tokens of each query take of its document's in a layer: (L, S) float32 a pair, group after group.

        The probability times the norm of the value, averaged over the heads. No score depends on it.
        """
        parts = micro_batches(groups, [group.tokens for group in groups], self.batcher.budget.tokens)
        return [taken for part in parts for taken in self._attention(part, layer)]

    def _attention(self, groups: Sequence[DocumentQueries], layer: int) -> list[np.ndarray]:
        prefixes = self._compute_prefixes([group.document for group in groups], layer + 1)
        pairs = [
            (prefix, g.document.end, query) for prefix, g in zip(prefixes, groups, strict=True) for query in g.queries
        ]
        documents, starts, queries = zip(*pairs, strict=True)
        ends = np.cumsum([0, *(len(query.token_ids) for query in queries)]).tolist()
        taken: list[np.ndarray] = []

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            attended = torch.zeros_like(query)
            for prefix, own in zip(documents, map(slice, ends, ends[1:]), strict=True):
                states = zip(prefix[number], (key[own], value[own]), strict=True)
                attended[own], shares = attend_visibly(query[own], *map(torch.cat, states))
                if number == layer:
                    taken.append(shares[:, : prefix.shape[2]].cpu().numpy())
            return attended.flatten(1)

        embedded = self.embed(queries, starts, self._visual_tokens(queries, self._query_images))
        end = max(start + query.end for _, start, query in pairs)
        attend(layer, *self._decoder.states(*embedded, end, attend, layer))
        return taken

    def release(self) -> None:
        """Drop all caches."""
        self._query_images.clear()
        self._document_images.clear()
        self._last_prefix.clear()

    def _launch(self, groups: Sequence[DocumentQueries]) -> list[Callable[[], list[float | RejectedInput]]]:
        """What waits for the raw float32 logits (Q,) of each group's queries."""
        prefixes, numbers = self.prefixes([group.document for group in groups])
        pairs = _pairs(groups, numbers)
        parts = micro_batches(pairs, [len(pair.query.token_ids) for pair in pairs], self.batcher.budget.tokens)
        computed = [self.suffixes(part, prefixes) for part in parts]
        copied = to_host(torch.cat(computed))
        for group in groups:
            self._count(group)
        ends = np.cumsum([len(group.queries) for group in groups])[:-1]

        @functools.cache
        def logits() -> list[np.ndarray]:
            by_number = np.empty(len(pairs), dtype=np.float32)
            by_number[[pair.number for pair in pairs]] = copied()  # the only synchronisation
            return np.split(by_number, ends)

        def read(number: int) -> list[float | RejectedInput]:
            return [*logits()[number].tolist()]

        return [functools.partial(read, number) for number in range(len(groups))]

    def prefixes(self, documents: Sequence[EncodedInput]) -> tuple[list[Prefix], list[int]]:
        """A prefix for each distinct document, and each document's number among them."""
        keys = [_key(document) for document in documents]
        distinct = dict(zip(keys, documents, strict=True))
        prefixes = {key: self._last_prefix[key] for key in distinct if key in self._last_prefix}
        self.batcher.counters.prefixes_reused += len(keys) - len(distinct) + len(prefixes)
        missing = [(key, document) for key, document in distinct.items() if key not in prefixes]
        sizes = [len(document.token_ids) for _, document in missing]
        for part in micro_batches(missing, sizes, self.batcher.budget.tokens):
            computed = self._compute_prefixes([document for _, document in part])
            prefixes |= zip((key for key, _ in part), computed, strict=True)
        last = keys[-1]
        if last not in self._last_prefix:  # only the last document's queries can be continued by the next call
            kept = prefixes[last].nbytes <= _PREFIX_CACHE_BYTES
            self._last_prefix = {last: prefixes[last].clone()} if kept else {}
        numbers = {key: number for number, key in enumerate(prefixes)}
        return [*prefixes.values()], [numbers[key] for key in keys]

    def _compute_prefixes(self, documents: Sequence[EncodedInput], layers: int | None = None) -> list[Prefix]:
        """Prefixes of documents in one micro-batch, all layers' or only the first few's."""
        if self._encoder is not None:
            with self.batcher.timer.stage("prefix_s"):
                return self._encoder.prefixes(documents, self.batcher.counters)
        lengths = [len(document.token_ids) for document in documents]
        visual = self._visual_tokens(documents, self._document_images)
        with self.batcher.timer.stage("prefix_s"):
            embeddings, positions = self.embed(documents, [0] * len(documents), visual)
            self.batcher.counters.flops += sum(map(self._decoder.flops.prefix, lengths))
            layout = self.layouts.documents(lengths, len(embeddings.rows))

            def attention(_number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                return document_attention(query, key, value, layout)

            end = max(document.end for document in documents)
            return self._decoder.prefixes(embeddings, positions, end, lengths, attention, layers)

    def suffixes(self, pairs: Sequence[Pair], prefixes: Sequence[Prefix]) -> Tensor:
        """Logits (P,) of pairs in one micro-batch."""
        documents = sorted({pair.document for pair in pairs})
        numbers = {document: number for number, document in enumerate(documents)}
        queries = [pair.query for pair in pairs]
        starts = np.cumsum([0, *(len(query.token_ids) for query in queries)]).tolist()
        spans = [
            Span(start, len(pair.query.token_ids), numbers[pair.document], prefixes[pair.document].shape[2])
            for start, pair in zip(starts, pairs, strict=False)
        ]
        visual = self._visual_tokens(queries, self._query_images)
        with self.batcher.timer.stage("suffix_s"):
            embeddings, positions = self.embed(queries, [pair.start for pair in pairs], visual)
            last_rows = np.zeros(self._linear.padded(len(pairs)), dtype=np.int64)
            last_rows[: len(pairs)] = np.array(starts[1:]) - 1
            end = max(pair.start + pair.query.end for pair in pairs)
            layouts = (
                self.layouts.queries(spans, len(embeddings.rows)),
                self.layouts.queries(spans, len(last_rows), last_only=True),
            )
            shared = [prefixes[document] for document in documents]
            rows = to_device(last_rows, self._device)
            return self._decoder.logits(embeddings, positions, end, shared, layouts, rows)[: len(pairs)]

    def embed(
        self, inputs: Sequence[EncodedInput], starts: Sequence[int], visual: Sequence[Tensor]
    ) -> tuple[Embeddings, Tensor]:
        """Embeddings of M rows and positions (3, M) of concatenated inputs; padding is token 0."""
        token_ids = np.concatenate([rows.token_ids for rows in inputs])
        positions = np.concatenate([rows.positions + start for rows, start in zip(inputs, starts, strict=True)], axis=1)
        padding = self._linear.padded(len(token_ids)) - len(token_ids)
        self.batcher.counters.computed += len(token_ids) + padding
        self.batcher.counters.padding += padding
        ids = to_device(np.pad(token_ids, (0, padding)), self._device)
        visual_rows = None
        if visual:
            visual_rows = to_device(np.flatnonzero(token_ids == self._decoder.image_token), self._device)
        embeddings = self._decoder.embed(ids, visual_rows, torch.cat(list(visual)) if visual else None)
        return embeddings, to_device(np.pad(positions, ((0, 0), (0, padding))), self._device)

    def _visual_tokens(self, inputs: Sequence[EncodedInput], cache: BoundedCache[Tensor]) -> list[Tensor]:
        """Visual tokens of each image of the inputs, in order; each content is encoded once."""
        images = {key: image for rows in inputs for key, image in rows.images}
        visual = {key: tokens for key in images if (tokens := cache.find(key)) is not None}
        missing = [(key, image) for key, image in images.items() if key not in visual]
        for part in micro_batches(missing, [len(image.pixels) for _, image in missing], self.batcher.budget.patches):
            for (key, _), tokens in zip(part, self._encode([image for _, image in part]), strict=True):
                visual[key] = tokens
                cache.put(key, tokens.clone())  # a view would keep all that were encoded with it in memory
        return [visual[key] for rows in inputs for key, _ in rows.images]

    def _encode(self, images: Sequence[Patches]) -> list[Tensor]:
        if self._vision is None:
            raise NotImplementedError("a text model was given an image")
        self.batcher.counters.images_encoded += len(images)
        self.batcher.counters.flops += sum(self._decoder.flops.vision(len(image.pixels)) for image in images)
        with self.batcher.timer.stage("vision_s"):
            pixels = to_device(np.concatenate([image.pixels for image in images]), self._device)
            return self._vision.tokens(pixels, [image.grid for image in images])

    def _count(self, group: DocumentQueries) -> None:
        tokens, counters = len(group.document.token_ids), self.batcher.counters
        counters.flops += sum(self._decoder.flops.suffix(len(query.token_ids), tokens) for query in group.queries)
        counters.documents += 1
        counters.pairs += len(group.queries)
        counters.pairwise += sum(tokens + len(query.token_ids) for query in group.queries)


def _key(document: EncodedInput) -> bytes:
    """The content of a document's prefix."""
    images = "|".join(key for key, _ in document.images)
    preamble = b"" if document.preamble is None else document.preamble.token_ids.tobytes()
    kept = b"" if document.state is None else document.state.encoded
    return b"|".join((images.encode(), document.token_ids.tobytes(), preamble, kept))


def _pairs(groups: Sequence[DocumentQueries], documents: Sequence[int]) -> list[Pair]:
    """All pairs; those of a document adjacent, and among them those of one kind of attention (see `Span.short`)."""
    numbers = count()
    pairs = [
        Pair(document, query, group.document.end, next(numbers))
        for group, document in zip(groups, documents, strict=True)
        for query in group.queries
    ]
    return sorted(pairs, key=lambda pair: (pair.document, len(pair.query.token_ids) > PAIR_QUERY))


def _rejects(group: DocumentQueries) -> list[float | RejectedInput]:
    tokens = len(group.document.token_ids)
    logger.warning("out of memory at a document of %d tokens: its pairs are rejected", tokens)
    return [RejectedInput(RejectReason.OUT_OF_MEMORY, f"a document of {tokens} tokens")] * len(group.queries)
