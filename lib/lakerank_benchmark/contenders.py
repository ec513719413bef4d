"""Those who score the same groups on the same weights, each with what its run took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lakerank.errors import ConfigError
from lakerank.limits import Limits
from lakerank.model.api import load_reranker
from lakerank.model.checkpoint import locate, read_json
from lakerank.model.engine.counters import Counters, Flops, count_flops
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.registry import M0, family_of
from lakerank.records import DocumentGroup, Reject, ScoredPair
from lakerank_benchmark.arithmetic import whole_pair
from lakerank_benchmark.cross_encoder import load_cross_encoder
from lakerank_benchmark.encoder_contenders import load_padded
from lakerank_benchmark.encoder_shapes import KINDS as ENCODERS
from lakerank_benchmark.runs import CannotRun, Contender, Run
from lakerank_benchmark.workloads import pairs_of
from oracles.generative_reference import PublishedGenerativeLoop
from oracles.reference import PublishedLoop

REPRODUCIBLE, FAST, PUBLISHED, CROSS_ENCODER = NAMES = ("lakerank", "lakerank fast", "published loop", "CrossEncoder")


class Ours:
    """This project's reranker."""

    def __init__(self, name: str, reranker: BatchedReranker) -> None:
        self.name = name
        self.reranker = reranker

    def run(self, groups: Sequence[DocumentGroup]) -> Run:
        """Score every pair once; rejects count as no pair.

        Raises:
            ConfigError: there are none but rejects.
        """
        before = replace(self.reranker.counters)
        started = time.perf_counter()
        results = list(self.reranker.score_groups(groups))
        seconds = time.perf_counter() - started
        work = self.reranker.counters - before
        scored = [result for result in results if isinstance(result, ScoredPair)]
        if not scored:
            reasons = sorted({result.reason.value for result in results if isinstance(result, Reject)})
            raise ConfigError([f"this reranker scores nothing of the workload ({', '.join(reasons)}): choose another"])
        logits = {(one.query_id, one.doc_id): one.logit for one in scored}
        return Run(seconds, len(scored), work.computed, work.padding, work.flops, _stages(work, seconds), logits)


def _stages(work: Counters, seconds: float) -> dict[str, float]:
    device = {"vision": work.vision_s, "prefix": work.prefix_s, "suffix": work.suffix_s}
    idle = max(0.0, seconds - sum(device.values()))
    wait = min(work.wait_s, idle)  # a GPU may be busy meanwhile
    host = {"decode": work.decode_s, "tokenise": work.tokenise_s}
    return {**host, **device, "wait": wait, "rest": idle - wait}


class PairByPair:
    """The published loop, counted from outside by hooks on its network."""

    name = PUBLISHED

    def __init__(self, loop: PublishedLoop | PublishedGenerativeLoop, network: Any, flops: Flops) -> None:
        self._loop = loop
        self._flops = flops
        self._calls = _Calls()
        self._calls.watch(network)

    def run(self, groups: Sequence[DocumentGroup]) -> Run:
        """Score every pair once, in the published batches."""
        pairs = pairs_of(groups)
        self._calls.clear()
        started = time.perf_counter()
        logits = self._loop.logits(pairs)
        seconds = time.perf_counter() - started
        lengths = [length for mask in self._calls.masks for length in mask.sum(dim=1).tolist()]
        patches = [int(grid.prod()) for grids in self._calls.grids for grid in grids]
        tokens = sum(mask.numel() for mask in self._calls.masks)
        needed = sum(self._flops.vision(count) for count in patches) + sum(whole_pair(self._flops, n) for n in lengths)
        found = {
            (query.query_id, document.doc_id): float(x) for (query, document), x in zip(pairs, logits, strict=True)
        }
        return Run(seconds, len(pairs), tokens, tokens - sum(lengths), needed, self._calls.stages(seconds), found)


class _Calls:
    """What a network was called with, and on a CPU how long it took."""

    def __init__(self) -> None:
        self.masks: list[Tensor] = []
        self.grids: list[Tensor] = []
        self._seconds = {"vision": 0.0, "language": 0.0}
        self._started = 0.0

    def watch(self, network: Any) -> None:
        """Count every call of the vision encoder and of the language model from now on."""
        model = network.model
        parts = {"vision": model.visual, "language": model.language_model} if hasattr(model, "visual") else {}
        parts = parts or {"language": model}
        self._timed = next(network.parameters()).device.type == "cpu"
        for name, module in parts.items():
            module.register_forward_pre_hook(self._before, with_kwargs=True)
            module.register_forward_hook(self._after(name))

    def clear(self) -> None:
        """Forget every call."""
        self.masks.clear()
        self.grids.clear()
        self._seconds = dict.fromkeys(self._seconds, 0.0)

    def stages(self, seconds: float) -> dict[str, float]:
        """Seconds by stage; on a GPU, where calls return before they are done, none."""
        if not self._timed:
            return {}
        return {**self._seconds, "rest": max(0.0, seconds - sum(self._seconds.values()))}

    def _before(self, _: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if "attention_mask" in kwargs:
            self.masks.append(kwargs["attention_mask"])
        if "grid_thw" in kwargs:
            self.grids.append(kwargs["grid_thw"])
        self._started = time.perf_counter()

    def _after(self, name: str) -> Any:
        def add(*_: Any) -> None:
            self._seconds[name] += time.perf_counter() - self._started

        return add


def published_loop(checkpoint: str, dtype: str, device: str, threads: int) -> PublishedLoop:
    """The published loop on so many of torch's threads, for the whole process."""
    torch.set_num_threads(threads)
    return PublishedLoop(checkpoint, dtype=dtype, device=device)


def load(
    name: str, checkpoint: str, dtype: str, device: str, host_threads: int, max_length: int | None = None
) -> Contender:
    """A contender with its weights on the device.

    Args:
        max_length: tokens of a pair, instead of those that its family is published with.

    Raises:
        CannotRun: it cannot load these weights; says why.
        CheckpointError: nobody can.
    """
    if name in (REPRODUCIBLE, FAST):
        reranker = load_reranker(
            checkpoint, dtype=dtype, device=device, host_threads=host_threads, reproducible=name == REPRODUCIBLE,
            max_length=max_length,
        )  # fmt: skip
        if not isinstance(reranker, BatchedReranker):
            raise CannotRun(f"{checkpoint}: its work is not counted")
        return Ours(name, reranker)
    folder = locate(checkpoint)
    config = read_json(folder / "config.json")
    family = family_of(config, None, checkpoint)
    if family.name in ENCODERS:
        limits = family.limits(config, Limits(), max_length, checkpoint)
        return load_padded(name, folder, family.name, dtype, device, limits.max_length)
    if name == PUBLISHED:
        return _published(checkpoint, dtype, device)
    return load_cross_encoder(name, checkpoint, dtype, device)


def _published(checkpoint: str, dtype: str, device: str) -> PairByPair:
    """The published loop of the checkpoint's family."""
    family = family_of(read_json(locate(checkpoint) / "config.json"), None, checkpoint)
    if family.name == M0:
        loop = PublishedLoop(checkpoint, dtype=dtype, device=device)
        return PairByPair(loop, loop._network, count_flops(loop._network.config))
    generative = PublishedGenerativeLoop(checkpoint, dtype=dtype, device=device)
    config = generative.network.config
    head = 2.0 * config.get_text_config().hidden_size
    return PairByPair(generative, generative.network, count_flops(config, head))
