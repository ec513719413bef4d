"""Document-major scoring: a document's image and prefix are computed once, and its queries as suffixes on top.

A pair's logit has the same bits whatever is scored beside it, for every operation sees shapes that the pair alone
decides: a document's prefix is one unpadded sequence, an image is encoded alone, and a suffix takes a slot whose length
follows from its own, in a row of a constant number of slots.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.cache import BoundedCache
from lakerank.model.flops import count_flops
from lakerank.model.images import Patches, PatchShape, channel_table
from lakerank.model.network import JinaVLForRanking, Prefix
from lakerank.model.tokens import Side
from lakerank.model.work import DeviceTimer, Work

#: A slot is a multiple of so many tokens long: a multiple of 8 while it is short, of 64 when it is longer than that.
SLOT_STEP = 8
LONG_SLOT_STEP = 64

#: Tokens that a row of slots holds at most, or one slot. On a CPU the linear layers are at four fifths of their speed
#: at 64 rows already, and a single query pays for the whole row; a GPU reads all weights for every row, so it wants
#: more work in one.
ROW_TOKENS_CPU = 64
ROW_TOKENS_GPU = 256

#: Rows of the score head's product: the most slots that a row holds.
HEAD_ROWS = ROW_TOKENS_GPU // SLOT_STEP

#: Visual embeddings kept for reuse. Queries that are images come back for every document; a document only when its
#: queries were split among several groups, and it must not push the queries out.
QUERY_EMBEDDINGS_BYTES = 256 * 2**20
DOCUMENT_EMBEDDINGS_BYTES = 32 * 2**20


class Engine:
    """Scores one document's queries at a time on one device; to be used by one thread."""

    def __init__(self, network: JinaVLForRanking, shape: PatchShape, reproducible: bool = True) -> None:
        self.work = Work()
        self._network = network
        self._shape = shape
        self._reproducible = reproducible
        self._device = network.model.language_model.embed_tokens.weight.device
        self._row_tokens = ROW_TOKENS_CPU if self._device.type == "cpu" else ROW_TOKENS_GPU
        self._timer = DeviceTimer(self._device, self.work)
        self._flops = count_flops(network.config)
        self._table = torch.from_numpy(channel_table(shape.mean, shape.std)).to(self._device)
        self._query_images: BoundedCache[Tensor] = BoundedCache(QUERY_EMBEDDINGS_BYTES, lambda made: made.nbytes)
        self._document_images: BoundedCache[Tensor] = BoundedCache(DOCUMENT_EMBEDDINGS_BYTES, lambda made: made.nbytes)

    @torch.inference_mode()
    def score(self, document: Side, queries: Sequence[Side]) -> np.ndarray:
        """Raw float32 logits (Q,) of queries against a document, in order."""
        started = time.perf_counter()
        logits = np.empty(len(queries), dtype=np.float32)
        prefix = self._prefix(document)
        for length, places in _rows(queries, self._row_tokens):
            slots = max(1, self._row_tokens // length) if self._reproducible else len(places)
            row = self._row([queries[place] for place in places], slots, length, document.end)
            with self._timer.stage("suffix_s"):
                hidden = self._network.suffix(prefix, *row)[0]  # (slots, length, h)
                last = torch.tensor([len(queries[place].token_ids) - 1 for place in places], device=self._device)
                at_score = hidden[torch.arange(len(places), device=self._device), last]  # (Q, h)
                row_logits = self._head(at_score)
            logits[places] = row_logits.cpu().numpy()
            self.work.computed += slots * length
            self.work.padding += slots * length - sum(len(queries[place].token_ids) for place in places)
        self._timer.collect()
        self._count(document, queries)
        self.work.drive_s += time.perf_counter() - started
        return logits

    def release(self) -> None:
        """Give back memory after a failed allocation, so that the next document can be scored."""
        self._query_images.clear()
        self._document_images.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _prefix(self, document: Side) -> Prefix:
        token_ids = torch.from_numpy(document.token_ids).to(self._device)
        positions = torch.from_numpy(document.positions).to(self._device)
        images = None if document.image is None else self._image(document, document.image, self._document_images)
        embeds = self._network.embed(token_ids, images)
        self.work.computed += len(document.token_ids)
        with self._timer.stage("prefix_s"):
            return self._network.prefix(embeds.unsqueeze(0), positions.unsqueeze(1))

    def _row(self, queries: Sequence[Side], slots: int, length: int, start: int) -> tuple[Tensor, Tensor]:
        """Embeddings (1, slots, length, h) and positions (3, 1, slots, length); what no query fills is token 0."""
        token_ids = np.zeros((slots, length), dtype=np.int64)
        positions = np.zeros((3, 1, slots, length), dtype=np.int64)
        for slot, query in enumerate(queries):
            token_ids[slot, : len(query.token_ids)] = query.token_ids
            positions[:, 0, slot, : len(query.token_ids)] = query.positions + start
        images = [self._image(query, query.image, self._query_images) for query in queries if query.image is not None]
        stacked = torch.cat(images) if images else None
        embeds = self._network.embed(torch.from_numpy(token_ids).to(self._device), stacked)
        return embeds.unsqueeze(0), torch.from_numpy(positions).to(self._device)

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits of (Q, h) -> (Q,), computed in HEAD_ROWS rows however few there are: products of a few rows round
        differently from those of many.
        """
        padded = F.pad(hidden, (0, 0, 0, max(0, HEAD_ROWS - len(hidden))))
        return self._network.logits(padded)[: len(hidden)]

    def _image(self, side: Side, image: Patches, cache: BoundedCache[Tensor]) -> Tensor:
        """Visual tokens (V, h) of one image, from memory when its content was met before."""

        def encode() -> Tensor:
            self.work.images_encoded += 1
            self.work.flops += self._flops.vision(len(image.pixels))
            with self._timer.stage("vision_s"):
                return self._network.image_embeddings(self._pixel_values(image), [image.grid])

        return cache.get(side.image_key, encode)

    def _pixel_values(self, image: Patches) -> Tensor:
        """Normalised patches (P, 3 * frames * side²), a still image repeated in every frame."""
        pixels = torch.from_numpy(image.pixels).to(self._device).long()  # (P, 3, side, side)
        channel = torch.arange(3, device=self._device)[None, :, None, None]
        values = self._table[channel, pixels].unsqueeze(2)
        return values.expand(-1, -1, self._shape.frames, -1, -1).reshape(len(pixels), -1)

    def _count(self, document: Side, queries: Sequence[Side]) -> None:
        tokens = len(document.token_ids)
        self.work.flops += self._flops.prefix(tokens)
        self.work.flops += sum(self._flops.suffix(len(query.token_ids), tokens) for query in queries)
        self.work.documents += 1
        self.work.pairs += len(queries)
        self.work.pairwise += sum(tokens + len(query.token_ids) for query in queries)


def slot_length(tokens: int) -> int:
    """Length of the slot that a suffix of so many tokens takes."""
    step = SLOT_STEP if tokens <= LONG_SLOT_STEP else LONG_SLOT_STEP
    return -(-tokens // step) * step


def _rows(queries: Sequence[Side], row_tokens: int) -> Iterator[tuple[int, list[int]]]:
    """Queries cut into rows: the slots' length, and the places of the queries that share the row."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, query in enumerate(queries):
        by_length[slot_length(len(query.token_ids))].append(place)
    for length, places in sorted(by_length.items()):
        slots = max(1, row_tokens // length)
        for first in range(0, len(places), slots):
            yield length, places[first : first + slots]
