"""Memory budgets: how much goes through a network at once, by the free memory of its device; less when it runs out.

A micro-batch is what goes through a network in one forward pass.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from lakerank.model.engine.counters import Counters, DeviceTimer
from lakerank.model.engine.device import on_device, out_of_memory, release_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

#: Tokens of a micro-batch that keep a device busy: more would only take memory and, on a CPU, leave its caches.
BUSY_TOKENS_CPU, BUSY_TOKENS_GPU = 2048, 16384
_PATCHES_PER_TOKEN = 4

#: Micro-batches of documents before one of their queries, which a single query a document would leave nearly empty.
PREFIX_BATCHES = 2

#: Share of the memory that is free at the start; the rest is for the host's work and other tasks.
_SHARE_CPU, _SHARE_GPU = 0.125, 0.5

#: The smallest micro-batch in tokens: a document that does not fit into memory then is rejected.
LEAST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Budget:
    """What is in memory at once: `tokens` of documents or queries make a micro-batch.

    A single document may exceed it, alone.
    """

    tokens: int

    @property
    def patches(self) -> int:
        """Those of images that make a micro-batch."""
        return self.tokens * _PATCHES_PER_TOKEN

    @property
    def group_tokens(self) -> int:
        """Tokens of the document groups scored together, whose prefixes are kept until all queries are scored."""
        return self.tokens * PREFIX_BATCHES

    def halved(self) -> Budget:
        """Half of it. Raises ValueError: it is the least already."""
        if self.tokens <= LEAST_TOKENS:
            raise ValueError(f"a budget of {self.tokens} tokens is not halved")
        return Budget(max(LEAST_TOKENS, self.tokens // 2))


def busy_budget(device: torch.device) -> Budget:
    """What keeps a device of this type busy, whatever memory is free: for choices that must not depend on that."""
    return Budget(BUSY_TOKENS_CPU if device.type == "cpu" else BUSY_TOKENS_GPU)


def device_budget(device: torch.device, bytes_per_token: int, threads: int = 1) -> Budget:
    """What keeps each of a device's threads busy, or fits its free memory, whichever is less."""
    tokens = min(busy_budget(device).tokens, free_tokens(device, bytes_per_token) // threads)
    return Budget(max(LEAST_TOKENS, tokens))


def decoder_bytes(config: Any, dtype: torch.dtype) -> int:
    """Memory of a token in a decoder: keys and values of all layers for PREFIX_BATCHES, and a layer's activations.

    The former twice: a GPU joins those of a micro-batch's queries. Patches, before, take less: a vision encoder has no
    cache, and is narrower. Attention takes nothing that grows with rows and keys.
    """
    text = config.get_text_config()
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * PREFIX_BATCHES * 2 * text.num_hidden_layers * text.num_key_value_heads * dim
    return int(cache * dtype.itemsize) + layer_bytes(text.hidden_size, text.intermediate_size, dtype)


def layer_bytes(hidden: int, inner: int, dtype: torch.dtype) -> int:
    """Memory of a token's activations in one layer, whose MLP is `inner` wide."""
    return (8 * hidden + 3 * inner) * dtype.itemsize


def free_tokens(device: torch.device, bytes_per_token: int) -> int:
    """Tokens that fit the usable share of a device's free memory."""
    return int(free_bytes(device) * (_SHARE_CPU if device.type == "cpu" else _SHARE_GPU)) // bytes_per_token


def free_bytes(device: torch.device) -> int:
    """Free memory of a device: a GPU's own, or the least of the host's and its control group's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_free_on_host(), _free_in_control_group())


def _free_on_host() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _free_in_control_group() -> int:
    """What the process's control group (version 2) still allows; as good as unlimited where there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 2**62
    return 2**62 if limit == "max" else max(0, int(limit) - used)


def micro_batches(items: Sequence[T], sizes: Sequence[int], most: int) -> Iterator[Sequence[T]]:
    """Consecutive items whose sizes sum to `most` or less; a larger item alone."""
    return batched(zip(items, sizes, strict=True), lambda: most, len(items))


def batched(sized: Iterable[tuple[T, int]], most: Callable[[], int], most_items: int) -> Iterator[list[T]]:
    """Batches items, given with their sizes, up to a size limit, which may change; a larger item alone."""
    batch: list[T] = []
    total = 0
    for item, size in sized:
        if batch and (total + size > most() or len(batch) == most_items):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


class MicroBatcher:
    """Runs a network within a memory budget: with smaller micro-batches, or on fewer items, when memory runs out.

    `budget` is that of the micro-batches to come; `counters` and `timer` count what was run. `lock`: of whoever runs
    networks on it, one at a time.
    """

    def __init__(self, device: torch.device, budget: Budget, threads: int = 1) -> None:
        self.budget = budget
        self.counters = Counters()
        self.timer = DeviceTimer(device, self.counters, threads)
        self._device = device
        self.gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None  # its model
        self.lock = threading.Lock()

    def run(
        self,
        network: Callable[[Sequence[T]], Sequence[R]],
        items: Sequence[T],
        *,
        smaller_batches_help: Callable[[Sequence[T]], bool],
        release: Callable[[], None] = lambda: None,
    ) -> list[R | None]:
        """The network's results in the items' order; None for an item that does not fit into memory alone.

        Out of memory, `release` is called, then the budget halved if `smaller_batches_help` with these items, else
        their number. A budget that was halved for one item is restored after it. Work that failed is not counted.
        """
        if not items:
            return []
        started, before = time.perf_counter(), replace(self.counters)
        try:
            with on_device(self._device):
                results: list[R | None] = [*network(items)]
                self.timer.collect()
            self.counters.host_s += time.perf_counter() - started
            return results
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        self.counters.take_back(before)
        release()
        release_memory()
        usual = self.budget
        if smaller_batches_help(items) and self.budget.tokens > LEAST_TOKENS:
            self.budget = self.budget.halved()
            logger.warning("out of memory: micro-batches of %d tokens", self.budget.tokens)
            parts = [items]
        elif len(items) > 1:
            parts = [items[: len(items) // 2], items[len(items) // 2 :]]
        else:
            return [None]
        rerun = (self.run(network, part, smaller_batches_help=smaller_batches_help, release=release) for part in parts)
        results = [result for results in rerun for result in results]
        self.budget = usual if len(items) == 1 else self.budget
        return results
