"""Contenders: each scores the same document groups on the same weights, and counts what its run took."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lakerank.errors import ConfigError
from lakerank.limits import Limits
from lakerank.model.api import load_reranker
from lakerank.model.checkpoint import locate, read_json
from lakerank.model.cross_encoder.weights import read_shape
from lakerank.model.engine.counters import Counters, Flops, count_flops
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.facts import read_facts
from lakerank.model.registry import M0, family_of
from lakerank.records import Document, DocumentGroup, Query, Reject, ScoredPair
from lakerank_benchmark.request import BGE, CROSS_ENCODER, ENCODERS, FAST, JINA, PUBLISHED, REPRODUCIBLE, Request
from lakerank_benchmark.workloads import pairs_of
from oracles.cross_encoders import flag_embedding, for_transformers, jina_rerank, sentence_transformers
from oracles.generative_reference import PublishedGenerativeLoop
from oracles.reference import PublishedLoop


class CannotRun(Exception):
    """A contender cannot load these weights, or cannot score these inputs; says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took. `tokens` went through the language model; `padding` is the part of them that no pair needed.

    `flops` are operations that the real tokens needed. `stages` are seconds: `decode` and `tokenise` are processor
    time of the host's threads, the others wall time, no two of which overlap. `logits` are by query and document.
    """

    seconds: float
    pairs: int
    tokens: int = 0
    padding: int = 0
    flops: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    logits: Mapping[tuple[str, str], float] = field(default_factory=dict)


class Lakerank:
    """This project's reranker. Rejects count as no pair; a workload of nothing but rejects raises ConfigError."""

    def __init__(self, reranker: BatchedReranker) -> None:
        self._reranker = reranker

    def run(self, groups: Sequence[DocumentGroup]) -> Run:
        """Score every pair once."""
        before = replace(self._reranker.counters)
        started = time.perf_counter()
        results = list(self._reranker.score_groups(groups))
        seconds = time.perf_counter() - started
        work = self._reranker.counters - before
        logits = {(pair.query_id, pair.doc_id): pair.logit for pair in results if isinstance(pair, ScoredPair)}
        if not logits:
            reasons = sorted({result.reason.value for result in results if isinstance(result, Reject)})
            raise ConfigError([f"this reranker scores nothing of the workload ({', '.join(reasons)}): choose another"])
        return Run(seconds, len(logits), work.computed, work.padding, work.flops, _stages(work, seconds), logits)


def _stages(work: Counters, seconds: float) -> dict[str, float]:
    device = {"vision": work.vision_s, "prefix": work.prefix_s, "suffix": work.suffix_s}
    idle = max(0.0, seconds - sum(device.values()))
    wait = min(work.wait_s, idle)  # a GPU may be busy meanwhile
    return {"decode": work.decode_s, "tokenise": work.tokenise_s, **device, "wait": wait, "rest": idle - wait}


#: Logits of pairs, in order, or anything that rises with them.
Score = Callable[[Sequence[tuple[Query, Document]]], Iterable[float]]


class PairLoop:
    """A loop over whole pairs, counted from outside by hooks on its network's modules.

    `flops` are the operations of a sequence of so many tokens, `vision_flops` those of an image of so many patches.
    `timed`: a module's calls are done when they return, as on a CPU.
    """

    def __init__(
        self, score: Score, modules: Mapping[str, Any], flops: Callable[[int], float],
        vision_flops: Callable[[int], float] = float, timed: bool = False,
    ) -> None:  # fmt: skip
        self._score, self._flops, self._vision_flops, self._timed = score, flops, vision_flops, timed
        self._clear()
        for name, module in modules.items():
            module.register_forward_pre_hook(self._before, with_kwargs=True)
            module.register_forward_hook(functools.partial(self._after, name))

    def run(self, groups: Sequence[DocumentGroup]) -> Run:
        """Score every pair once, in the published batches; raises CannotRun where these inputs are not for the loop."""
        pairs = pairs_of(groups)
        self._clear()
        started = time.perf_counter()
        scores = self._score(pairs)
        seconds = time.perf_counter() - started
        lengths = [length for mask in self._masks for length in mask.sum(dim=1).tolist()]
        patches = [int(grid.prod()) for grids in self._grids for grid in grids]
        tokens = sum(mask.numel() for mask in self._masks)
        flops = sum(map(self._flops, lengths)) + sum(map(self._vision_flops, patches))
        rest = max(0.0, seconds - sum(self._seconds.values()))
        stages = {**self._seconds, "rest": rest} if self._timed else {}
        logits = {(q.query_id, d.doc_id): float(score) for (q, d), score in zip(pairs, scores, strict=True)}
        return Run(seconds, len(pairs), tokens, tokens - sum(lengths), flops, stages, logits)

    def _clear(self) -> None:
        self._masks: list[Tensor] = []
        self._grids: list[Tensor] = []
        self._seconds = {"vision": 0.0, "language": 0.0}
        self._started = 0.0

    def _before(self, _module: Any, _arguments: Any, named: dict[str, Any]) -> None:
        if "attention_mask" in named:
            self._masks.append(named["attention_mask"])
        if "grid_thw" in named:
            self._grids.append(named["grid_thw"])
        self._started = time.perf_counter()

    def _after(self, name: str, *_: Any) -> None:
        self._seconds[name] += time.perf_counter() - self._started


Contender = Lakerank | PairLoop


def load(name: str, request: Request) -> Contender:
    """A contender with the request's weights on its device.

    Raises:
        CannotRun: it cannot load these weights; says why.
        CheckpointError: nobody can.
    """
    if name in (REPRODUCIBLE, FAST):
        reranker = load_reranker(
            request.checkpoint, dtype=request.dtype, device=request.device, max_length=request.max_length,
            reproducible=name == REPRODUCIBLE, limits=Limits(resize=request.resize),
        ).reranker  # fmt: skip
        if not isinstance(reranker, BatchedReranker):
            raise CannotRun(f"{request.checkpoint}: its work is not counted")
        return Lakerank(reranker)
    folder = locate(request.checkpoint)
    config = read_json(folder / "config.json")
    family = family_of(read_facts(folder, config), request.checkpoint)
    try:
        if family.name in ENCODERS:
            limits = family.limits(config, Limits(), request.max_length, request.checkpoint)
            return _encoder(name, folder, family.name, request, limits.max_length)
        return _decoder(folder, family.name, request) if name == PUBLISHED else _cross_encoder(folder, request)
    except ImportError as error:
        raise CannotRun(f"not installed ({error})") from error


def _decoder(folder: Path, family: str, request: Request) -> PairLoop:
    """The published loop of a family that generates, or of jina-reranker-m0."""
    loop: PublishedLoop | PublishedGenerativeLoop
    if family == M0:
        loop = PublishedLoop(folder, dtype=request.dtype, device=request.device)
        network: Any = loop._network
        flops = count_flops(network.config)
    else:
        loop = PublishedGenerativeLoop(folder, dtype=request.dtype, device=request.device)
        network = loop.network
        flops = count_flops(network.config, head=2.0 * network.config.get_text_config().hidden_size)
    model = network.model
    visual = {"vision": model.visual, "language": model.language_model} if hasattr(model, "visual") else {}
    on_cpu = torch.device(request.device).type == "cpu"
    return PairLoop(
        loop.logits, visual or {"language": model}, functools.partial(whole_pair, flops), flops.vision, on_cpu
    )


def whole_pair(flops: Flops, tokens: int) -> float:
    """Operations of a whole pair of so many tokens, every layer in full, images apart."""
    layer = tokens * (flops.token_kv + flops.token_rest) + tokens * (tokens + 1) / 2 * flops.seen
    return flops.layers * layer + flops.head


def _encoder(name: str, folder: Path, family: str, request: Request, max_length: int) -> PairLoop:
    """`CrossEncoder`, or else the published loop of a family of cross-encoders, which may be the same."""
    loops = {BGE: flag_embedding, JINA: jina_rerank}
    if name == PUBLISHED and family not in loops:
        raise CannotRun(f"{family} is published for {CROSS_ENCODER}")
    load_loop = sentence_transformers if name == CROSS_ENCODER else loops[family]
    with tempfile.TemporaryDirectory() as copy:
        source = for_transformers(folder, Path(copy))
        network, score = load_loop(str(source), request.dtype, request.device, max_length)
    shape = read_shape(read_json(folder / "config.json"))
    modules = {"language": network.base_model}  # some loops call `forward` of the network itself, past its hooks
    return PairLoop(lambda pairs: score([(q, d) for q, d in _texts(pairs)]), modules, shape.flops)


def _cross_encoder(folder: Path, request: Request) -> PairLoop:
    """sentence-transformers' CrossEncoder on jina-reranker-m0's or a generative reranker's weights; uncounted."""
    try:
        _, score = sentence_transformers(str(folder), request.dtype, request.device)
    except ImportError:
        raise
    except Exception as error:  # a library's own errors, and those of everything it calls
        message = str(error).splitlines()[0] if str(error) else ""
        raise CannotRun(f"cannot load these weights: {type(error).__name__}: {message}"[:240]) from error
    return PairLoop(lambda pairs: score([(d, q) for q, d in _texts(pairs)]), {}, float)


def _texts(pairs: Sequence[tuple[Query, Document]]) -> list[tuple[str, str]]:
    if any(document.image is not None or query.image is not None for query, document in pairs):
        raise CannotRun("texts alone")
    return [(query.text or "", document.text or "") for query, document in pairs]
