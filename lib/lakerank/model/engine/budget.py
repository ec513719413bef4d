"""How much goes through the network at once: from the device's memory when it starts, halved when that runs out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")

#: Tokens and patches of one pass that keep a device busy: more would only take memory and, on a CPU, leave its caches.
BUSY_TOKENS_CPU = 2048
BUSY_TOKENS_GPU = 16384
PATCHES_PER_TOKEN = 4

#: Passes of documents before one of their queries: a single query a document would leave its own pass nearly empty.
PASSES_HELD = 2

#: Share of the memory that is free at the start for what passes hold; the rest is for the host's work and other tasks.
SHARE_CPU = 0.125
SHARE_GPU = 0.5

#: Fewer tokens than this are not worth a pass of their own: below, a document that does not fit is rejected.
LEAST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Budget:
    """What is in memory at once. A single document may exceed it, alone.

    `tokens` of documents or queries, or `patches` of images, go through the network in one pass. `held`: tokens of the
    groups scored together, whose prefixes are kept until the queries of all of them fill passes of their own.
    """

    tokens: int
    patches: int
    held: int

    def halved(self) -> Budget:
        """Half of it.

        Raises:
            ValueError: it is the least already.
        """
        if self.tokens <= LEAST_TOKENS:
            raise ValueError(f"a budget of {self.tokens} tokens is not halved")
        return budget_of(max(LEAST_TOKENS, self.tokens // 2))


def device_budget(device: torch.device, config: Any, dtype: torch.dtype) -> Budget:
    """What keeps the device busy, or what its free memory holds for a network of this config, whichever is less."""
    room = int(free_bytes(device) * (SHARE_CPU if device.type == "cpu" else SHARE_GPU))
    tokens = max(LEAST_TOKENS, min(busy_budget(device).tokens, room // bytes_per_token(config, dtype)))
    return budget_of(tokens)


def busy_budget(device: torch.device) -> Budget:
    """What keeps a device of this type busy, whatever memory is free: what must not depend on that goes by this."""
    return budget_of(BUSY_TOKENS_CPU if device.type == "cpu" else BUSY_TOKENS_GPU)


def budget_of(tokens: int) -> Budget:
    """The budget whose passes are of so many tokens."""
    return Budget(tokens, tokens * PATCHES_PER_TOKEN, tokens * PASSES_HELD)


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Memory that a token of a pass takes: keys and values of all layers, held for PASSES_HELD passes, and one layer's
    intermediate states.

    Its patches, that came before it, take less: a vision encoder has no cache, and its states are narrower.
    """
    text = config.get_text_config()
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kept = PASSES_HELD * 2 * text.num_hidden_layers * text.num_key_value_heads * dim
    passing = 8 * text.hidden_size + 3 * text.intermediate_size
    return int((kept + passing) * dtype.itemsize)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device: a GPU's own, or the least of the host's and its control group's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_host_free(), _group_free())


def _host_free() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _group_free() -> int:
    """What the process's control group (version 2) still allows; as good as unlimited where there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 2**62
    return 2**62 if limit == "max" else max(0, int(limit) - used)


def cut(items: Sequence[T], sizes: Sequence[int], most: int) -> Iterator[Sequence[T]]:
    """Consecutive items whose sizes sum to `most` or less; an item that is larger alone."""
    first, held = 0, 0
    for place, size in enumerate(sizes):
        if held and held + size > most:
            yield items[first:place]
            first, held = place, 0
        held += size
    if first < len(items):
        yield items[first:]
