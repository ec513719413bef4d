"""Sequences through a cross-encoder on one device: sorted by length, packed into passes, out of memory in smaller ones.

A sequence's logit has the same bits whatever is read beside it: products of matrices give a row its bits wherever it
stands (`rows`), and a call of attention has the shape of one sequence, those of one length side by side in the batch
dimension. Nothing is padded but a pass as a whole, up to a number of rows that products are made with. On a processor
each of torch's threads reads passes of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lakerank.model.cross_encoder.config import EncoderShape
from lakerank.model.cross_encoder.tokenize import PairTokens
from lakerank.model.engine.budget import (
    LEAST_TOKENS,
    SHARE_CPU,
    SHARE_GPU,
    Budget,
    budget_of,
    busy_budget,
    cut,
    free_bytes,
)
from lakerank.model.engine.counters import DeviceTimer, Work
from lakerank.model.engine.device import out_of_memory, to_device
from lakerank.model.engine.encoder import PackedEncoder
from lakerank.model.engine.layout import Varlen
from lakerank.model.engine.linear import Product, RowProducts, choose_products
from lakerank.model.engine.thread_pool import SideBySide
from lakerank.model.engine.varlen import VarlenKind, choose_varlen

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """A sequence to read: a query's token ids, and those of a document or of a window on it."""

    query: np.ndarray
    document: np.ndarray
    length: int


class EncoderEngine:
    """Logits of sequences on one device; to be used by one thread.

    `reproducible`: a logit has the same bits whatever is read beside it. `budget`, `products` and `varlen` are found on
    the device where they are not given.
    """

    def __init__(
        self,
        encoder: PackedEncoder,
        tokens: PairTokens,
        *,
        budget: Budget | None = None,
        products: RowProducts | None = None,
        reproducible: bool = True,
        varlen: VarlenKind | None = None,
    ) -> None:
        self.work = Work()
        self._encoder, self._tokens = encoder, tokens
        self._device = encoder.device
        self._threads = SideBySide(torch.get_num_threads() if self._device.type == "cpu" else 1)
        self._room = room_for(self._device, encoder.shape, encoder.dtype)
        each = min(busy_budget(self._device).tokens, self._room // self._threads.count)
        self.budget = budget or budget_of(max(LEAST_TOKENS, each))
        if products is None and reproducible:
            most = busy_budget(self._device).tokens  # whatever memory is free, or bits would go by it
            wanted = [Product(made.weight, made.bias, most) for made in encoder.products_made()]
            products = self._threads.call(lambda: choose_products(wanted))
        self._products = encoder.products = products or RowProducts()
        heads = encoder.shape.heads
        self._varlen = varlen or choose_varlen(
            self._device,
            encoder.dtype,
            heads,
            encoder.shape.hidden // heads,
            reproducible=reproducible,
            causal=False,
        )
        self._timer = DeviceTimer(self._device, self.work, self._threads.count)

    @property
    def tokens_at_once(self) -> int:
        """Tokens of the passes that are computed at the same time."""
        return self.budget.tokens * self._threads.count

    def score(self, readings: Sequence[Reading]) -> list[float | None]:
        """The logit of each sequence; None where it does not fit in memory, alone.

        Out of memory, passes are made smaller, those to come as well; halves are tried where sequences are longer than
        a pass.
        """
        if not readings:
            return []
        try:
            return [*map(float, self._logits(readings))]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        self._release()
        if len(readings) == 1:
            logger.warning("out of memory at a sequence of %d tokens: its pair is rejected", readings[0].length)
            return [None]
        if max(reading.length for reading in readings) <= self.budget.tokens > LEAST_TOKENS:
            self.budget = self.budget.halved()
            logger.warning("out of memory: passes of %d tokens from now on", self.budget.tokens)
            return self.score(readings)
        half = len(readings) // 2
        return self.score(readings[:half]) + self.score(readings[half:])

    def _logits(self, readings: Sequence[Reading]) -> np.ndarray:
        started = time.perf_counter()
        longest_first = sorted(range(len(readings)), key=lambda place: -readings[place].length)
        passes = self._passes([readings[place] for place in longest_first])
        read = torch.cat([logits for some in self._batches(passes) for logits in self._threads.map(self._read, some)])
        found = read.cpu().numpy()
        self._timer.collect()
        for some in passes:
            self._count([reading.length for reading in some])
        logits = np.empty(len(readings), dtype=np.float32)
        logits[longest_first] = found
        self.work.drive_s += time.perf_counter() - started
        return logits

    def _passes(self, longest_first: Sequence[Reading]) -> list[Sequence[Reading]]:
        """Passes of the budget, or smaller ones, where that leaves a thread without any. The last one, which all
        threads wait for, is the cheapest.
        """
        lengths = [reading.length for reading in longest_first]
        share = -(-sum(lengths) // self._threads.count)
        return [*cut(longest_first, lengths, min(self.budget.tokens, max(LEAST_TOKENS, share)))]

    def _batches(self, passes: Sequence[Sequence[Reading]]) -> list[Sequence[Sequence[Reading]]]:
        """Passes that may be computed at the same time: of sequences longer than a pass, as many as memory has room
        for; then all others.
        """
        long = [some for some in passes if some[0].length > self.budget.tokens]
        return [*cut(long, [some[0].length for some in long], self._room), passes[len(long) :]]

    def _read(self, readings: Sequence[Reading]) -> Tensor:
        """Logits (N,) of sequences that share a pass, on the device."""
        lengths = [reading.length for reading in readings]
        spare = self._spare(lengths)
        sequences = [self._tokens.sequence(reading.query, reading.document) for reading in readings]
        token_ids = np.pad(np.concatenate(sequences), (0, spare))
        positions = np.pad(np.concatenate(list(map(self._tokens.positions, sequences))), (0, spare))
        with self._timer.stage("suffix_s"):
            varlen = self._attention([*lengths, spare] if spare else lengths)
            return self._encoder.logits(
                to_device(token_ids, self._device), to_device(positions, self._device), lengths, varlen
            )

    def _attention(self, lengths: Sequence[int]) -> Varlen | None:
        return None if self._varlen is None else self._varlen(lengths, self._device)

    def _count(self, lengths: Sequence[int]) -> None:
        spare = self._spare(lengths)
        self.work.computed += sum(lengths) + spare
        self.work.padding += spare
        self.work.flops += sum(map(self._encoder.shape.flops, lengths))

    def _spare(self, lengths: Sequence[int]) -> int:
        """Rows that only fill a pass."""
        rows = sum(lengths)
        return self._products.filled(rows) - rows

    def _release(self) -> None:
        """Give memory back to the device."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def room_for(device: torch.device, shape: EncoderShape, dtype: torch.dtype) -> int:
    """Tokens that a device's free memory has room for at once."""
    room = int(free_bytes(device) * (SHARE_CPU if device.type == "cpu" else SHARE_GPU))
    return room // ((8 * shape.hidden + 3 * shape.inner) * dtype.itemsize)  # one layer's states; nothing is kept
