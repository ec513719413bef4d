"""Counters of a reranker: tokens, padding, seconds by stage, and floating-point operations by a network's shape."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch


@dataclass(slots=True)
class Counters:
    """Work done since loading; `pairwise` is what whole pairs, unpadded, would have cost in tokens.

    Images count as visual tokens. `padding` is the part of `computed` that no pair needed: padded rows and slots.
    `flops` are floating-point operations of real tokens, two a multiply-add, without padding.

    `decode_s` (images) and `tokenise_s` are processor seconds summed over the host's threads, which run ahead of the
    device. `vision_s`, `prefix_s` and `suffix_s` are the device's: on a GPU between events on its stream, on a CPU the
    wall time of the thread that drives it, or the mean of several such threads. `host_s` is the wall time of the
    thread that scores, kernel launches and synchronisation included; `wait_s` its wait for the host's threads.
    """

    computed: int = 0
    pairwise: int = 0
    pairs: int = 0
    documents: int = 0
    images_encoded: int = 0
    padding: int = 0
    prefixes_reused: int = 0
    flops: float = 0.0
    decode_s: float = 0.0
    tokenise_s: float = 0.0
    vision_s: float = 0.0
    prefix_s: float = 0.0
    suffix_s: float = 0.0
    host_s: float = 0.0
    wait_s: float = 0.0

    def __sub__(self, earlier: Counters) -> Counters:
        """The difference to `earlier`, a copy made with `dataclasses.replace(counters)`."""
        return Counters(*(getattr(self, field.name) - getattr(earlier, field.name) for field in fields(self)))

    def take_back(self, earlier: Counters) -> None:
        """Count no work since `earlier`, such a copy: it came to nothing. Its seconds are spent."""
        for name in (field.name for field in fields(self) if not field.name.endswith("_s")):
            setattr(self, name, getattr(earlier, name))


class DeviceTimer:
    """Adds up a device's seconds by stage without synchronising: a GPU's events are read when results are.

    On a CPU, up to `threads` threads run a stage at the same time: their mean is added.
    """

    def __init__(self, device: torch.device, counters: Counters, threads: int = 1) -> None:
        self._cuda = device.type == "cuda"
        self._counters = counters
        self._threads = threads
        self._lock = threading.Lock()
        self._events: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def stage(self, field: str) -> Iterator[None]:
        """Count the seconds of the body's kernels under a field of Counters; stages do not nest."""
        if self._cuda:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            stop.record()
            self._events.append((field, start, stop))
            return
        started = time.perf_counter()
        yield
        self._add(field, time.perf_counter() - started)

    def collect(self) -> None:
        """Read the events of the stages that are finished: of those launched before what was copied back."""
        while self._events and self._events[0][2].query():  # type: ignore[no-untyped-call]
            field, start, stop = self._events.popleft()
            self._add(field, start.elapsed_time(stop) / 1000)

    def _add(self, field: str, seconds: float) -> None:
        with self._lock:
            setattr(self._counters, field, getattr(self._counters, field) + seconds / self._threads)


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations by stage, two a multiply-add.

    `token_kv`, `token_rest`: of a token in one decoder layer, keys and values apart from what the last layer omits;
    `seen`: of a token and one key that it attends to, in one layer; `head`: of the score head; vision likewise. Norms,
    rotations, activations and the embedding look-up are left out, as is usual: they are under one per cent.
    """

    layers: int
    token_kv: float
    token_rest: float
    seen: float
    head: float
    vision_layers: int
    patch_layer: float
    patch_seen: float
    patch_ends: float

    def vision(self, patches: int) -> float:
        """Of one image, the merger included."""
        layer = patches * self.patch_layer + patches * patches * self.patch_seen
        return self.vision_layers * layer + patches * self.patch_ends

    def prefix(self, tokens: int) -> float:
        """Of a document's keys and values: its last layer computes nothing else."""
        full = tokens * (self.token_kv + self.token_rest) + tokens * (tokens + 1) / 2 * self.seen
        return (self.layers - 1) * full + tokens * self.token_kv

    def suffix(self, tokens: int, prefix_tokens: int) -> float:
        """Of a query on a prefix, score head included; its last layer computes the score token alone."""
        keys = tokens * prefix_tokens + tokens * (tokens + 1) / 2
        full = tokens * (self.token_kv + self.token_rest) + keys * self.seen
        last = tokens * self.token_kv + self.token_rest + (prefix_tokens + tokens) * self.seen
        return (self.layers - 1) * full + last + self.head


def count_flops(config: Any, head: float | None = None) -> Flops:
    """Operations of a network of transformers' `config`; `head`: of its score head, jina-reranker-m0's by default."""
    text = config.get_text_config()
    hidden, heads = text.hidden_size, text.num_attention_heads
    dim = getattr(text, "head_dim", None) or hidden // heads
    return Flops(
        layers=text.num_hidden_layers,
        token_kv=4.0 * hidden * text.num_key_value_heads * dim,
        token_rest=2.0 * (2 * hidden * heads * dim + 3 * hidden * text.intermediate_size),
        seen=4.0 * heads * dim,
        head=2.0 * hidden * (hidden + 1) if head is None else head,
        **_count_vision(getattr(config, "vision_config", None)),
    )


def _count_vision(vision: Any) -> dict[str, Any]:
    """The vision encoder's fields of Flops; zeros where there is none.

    Qwen3-VL's has another name for its width, and a merger for each layer that it passes on to the decoder as well
    (DeepStack).
    """
    if vision is None:
        return {"vision_layers": 0, "patch_layer": 0.0, "patch_seen": 0.0, "patch_ends": 0.0}
    qwen3 = hasattr(vision, "out_hidden_size")
    width = vision.hidden_size if qwen3 else vision.embed_dim
    out = vision.out_hidden_size if qwen3 else vision.hidden_size
    inner = vision.intermediate_size if qwen3 else int(width * vision.mlp_ratio)
    mergers = 1 + len(vision.deepstack_visual_indexes) if qwen3 else 1
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    merged = width * vision.spatial_merge_size**2
    ends = 2.0 * patch * width + mergers * 2.0 * merged * (merged + out) / vision.spatial_merge_size**2
    layer = 2.0 * width * (4 * width + 2 * inner)
    return {"vision_layers": vision.depth, "patch_layer": layer, "patch_seen": 4.0 * width, "patch_ends": ends}
