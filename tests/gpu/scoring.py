"""Phases of the check on scoring: the engine on random weights of a published shape, and what it does without room."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from gpu.record import Check, Findings
from lakerank.model.checkpoint import EMBEDDED, read_json
from lakerank.model.engine.budget import LEAST_TOKENS, Budget
from lakerank.model.engine.decoder import PackedDecoder, ScoreHead
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.vision import PackedVision
from lakerank.model.inputs import DocumentQueries, EncodedInput, Patches, RejectedInput
from lakerank.model.jina_m0.weights import JinaVLForRanking
from lakerank.model.preprocess.images import PatchShape
from lakerank.model.preprocess.tokenizer import image_positions, text_positions
from lakerank.model.weights import assign_tensors
from lakerank_benchmark.checkpoints import TOKEN_IDS
from lakerank_pictograms.network import network_config

#: Documents and queries a document, the most telling first: what is left when time is over is known of these.
_CELLS = (("pages", 25), ("texts", 1), ("texts", 25), ("pages", 1), ("pages", 100), ("texts", 100))

#: Stages whose seconds are counted.
_STAGES = ("vision", "prefix", "suffix", "host")

#: Calls that are timed, after one that is not; kernels of the profile.
_CALLS, _KERNELS = 4, 25

#: Seconds that the comparison of bits and the profile need.
_RESERVED_S = 25

#: Tokens of the document without room, its queries, and the memory it is left beside the weights.
_LONG, _MANY_QUERIES, _ROOM_BYTES = 9700, 400, 3 * 2**30

_numbers = itertools.count(1)


def random_network(check: Check) -> JinaVLForRanking:
    """The shape's network, its weights made on the device: of variance one over their inputs."""
    bundled = read_json(EMBEDDED / "config.json")
    with torch.device("meta"):
        config = network_config(check.shape, {name: bundled[name] for name in TOKEN_IDS}, padding=None)
        network = JinaVLForRanking(config)
    tensors = {}
    for name, like in sorted(network.state_dict().items()):
        if like.dim() == 1:
            value = torch.full(like.shape, float(not name.endswith("bias")), device=check.device, dtype=torch.bfloat16)
        else:
            value = check.randn(*like.shape) * (like.numel() // like.shape[0]) ** -0.5
        tensors[name] = value
    assign_tensors(network, tensors)
    return network.to(check.device)  # its rotary frequencies


def engine_of(network: JinaVLForRanking, reproducible: bool) -> DocumentMajorEngine:
    """As a checkpoint's is loaded."""
    decoder = PackedDecoder(network, ScoreHead.of_mlp(network.score))
    return DocumentMajorEngine(decoder, PackedVision(network, PatchShape()), reproducible=reproducible)


def _text(generator: np.random.Generator, tokens: int) -> EncodedInput:
    return EncodedInput(generator.integers(200, 5000, tokens), text_positions(0, tokens), tokens)


def _page(check: Check, generator: np.random.Generator, name: str, grid: tuple[int, int]) -> EncodedInput:
    """A page of noise between 4 and 8 tokens of text."""
    visual, after = grid[0] * grid[1] // 4, 4 + max(grid) // 2
    image_token = read_json(EMBEDDED / "config.json")["image_token_id"]
    words = generator.integers(200, 5000, 12)
    ids = np.concatenate([words[:4], np.full(visual, image_token), words[4:]])
    positions = [text_positions(0, 4), image_positions(4, grid, 2), text_positions(after, 8)]
    pixels = generator.integers(0, 256, (grid[0] * grid[1], 3, 14, 14), dtype=np.uint8)
    return EncodedInput(ids, np.concatenate(positions, axis=1), after + 8, ((name, Patches(pixels, grid)),))


def groups(check: Check, kind: str, count: int, k: int) -> list[DocumentQueries]:
    """Documents that no cache has met, with `k` queries each."""
    number, sizes = next(_numbers), check.sizes
    generator = np.random.default_rng(number)
    queries = tuple(_text(generator, sizes.query) for _ in range(k))
    small = sizes.grid[0] // 4, sizes.grid[1] // 4
    documents: dict[str, Callable[[int], EncodedInput]] = {
        "pages": lambda at: _page(check, generator, f"{number}-{at}", sizes.grid),
        "small images": lambda at: _page(check, generator, f"{number}-{at}", small),
        "texts": lambda at: _text(generator, sizes.text),
        "short texts": lambda at: _text(generator, 5 + 3 * at),
    }
    return [DocumentQueries(documents[kind](at), queries) for at in range(count)]


def engine(check: Check, found: Findings) -> None:
    """Both modes: what they choose, pairs a second, share of the ceiling, memory, bits, and kernels by their time."""
    started = time.perf_counter()
    network = random_network(check)
    check.synchronise()
    found["seconds to make weights"] = time.perf_counter() - started
    share_s = check.left_s / 2
    for mode, reproducible in (("reproducible", True), ("fast", False)):
        until = time.monotonic() + min(share_s, check.left_s)
        found[mode] = of_mode = dict[str, Any]()
        started = time.perf_counter()
        scorer = engine_of(network, reproducible)
        check.synchronise()
        of_mode["seconds to load"] = time.perf_counter() - started
        of_mode["products"] = str(scorer._linear)
        of_mode["attention"] = getattr(scorer.layouts.varlen, "__qualname__", str(scorer.layouts.varlen))
        of_mode["budget in tokens"] = scorer.batcher.budget.tokens
        reserved_s = min(_RESERVED_S, share_s / 3)
        for kind, k in _CELLS:
            if time.monotonic() + reserved_s > until:
                of_mode["left out"] = f"from {kind}, k = {k} on: no time was left"
                break
            of_mode[f"{kind}, k = {k}"] = _pace(check, scorer, kind, k)
        of_mode["bits"] = _bits(check, scorer)
        if reproducible:
            of_mode["kernels"] = _kernels(check, scorer)
        del scorer


def _pace(check: Check, scorer: DocumentMajorEngine, kind: str, k: int) -> Findings:
    """Calls as a job makes them, two in flight on a GPU."""
    tokens = (check.sizes.text if kind == "texts" else check.sizes.grid[0] * check.sizes.grid[1] // 4 + 12) + (
        check.sizes.query * k
    )
    count = max(1, min(scorer.group_tokens, 2 * check.sizes.rows) // tokens)
    calls = [groups(check, kind, count, k) for _ in range(_CALLS + 1)]
    scorer.score(calls.pop())
    if check.cuda:
        torch.cuda.reset_peak_memory_stats(check.device)
    before = replace(scorer.batcher.counters)
    check.synchronise()
    started = time.perf_counter()
    _score_overlapped(scorer, calls)
    check.synchronise()
    seconds = time.perf_counter() - started
    spent = scorer.batcher.counters - before
    pace = spent.flops / seconds / 1e12
    ceiling = check.found.get("machine", {}).get("TFLOP/s of products")
    return {
        "documents a call": count,
        "ms a call": 1000 * seconds / _CALLS,
        "pairs/s": _CALLS * count * k / seconds,
        "TFLOP/s": pace,
        "share of the ceiling": pace / ceiling if ceiling else None,
        "share of time": {name: getattr(spent, f"{name}_s") / seconds for name in _STAGES},
        "peak GiB": torch.cuda.max_memory_allocated(check.device) / 2**30 if check.cuda else None,
    }


def _score_overlapped(scorer: DocumentMajorEngine, calls: Iterable[Sequence[DocumentQueries]]) -> None:
    launched: deque[Callable[[], object]] = deque()
    for call in calls:
        launched.append(scorer.launch(call))
        if scorer.overlapped is None or len(launched) > 1:
            launched.popleft()()
    for read in launched:
        read()


def _bits(check: Check, scorer: DocumentMajorEngine) -> Findings:
    """Whether each document has the same logits, to the bit, alone, backwards, query by query, and in small batches."""
    kinds = ("pages", "small images", "texts", "short texts")
    given = [group for kind in kinds for group in groups(check, kind, 3, 5)]
    whole = scorer.score(given)
    usual = scorer.batcher.budget
    scorer.batcher.budget = Budget(max(LEAST_TOKENS, usual.tokens // 8))
    in_small_batches = scorer.score(given)
    scorer.batcher.budget = usual
    ways = {
        "again": scorer.score(given),
        "backwards": scorer.score(given[::-1])[::-1],
        "alone": [scorer.score([group])[0] for group in given],
        "query by query": [
            [scorer.score([replace(group, queries=(query,))])[0][0] for query in group.queries] for group in given
        ],
        "in small batches": in_small_batches,
    }
    return {
        way: {kind: logits[3 * at : 3 * at + 3] == whole[3 * at : 3 * at + 3] for at, kind in enumerate(kinds)}
        for way, logits in ways.items()
    }


def _kernels(check: Check, scorer: DocumentMajorEngine) -> list[Findings]:
    """Kernels of a call of pages with 25 queries each, by their time on the device."""
    call = groups(check, "pages", check.sizes.documents, 25)
    scorer.score(groups(check, "pages", check.sizes.documents, 25))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if check.cuda else [])]
    with profile(activities=activities) as profiler:
        scorer.score(call)
        check.synchronise()
    field = "self_device_time_total" if check.cuda else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, field))
    return [
        {"kernel": event.key[:90], "calls": event.count, "ms": getattr(event, field) / 1000}
        for event in events[:_KERNELS]
    ]


def memory(check: Check, found: Findings) -> None:
    """A long document with many queries, and hardly any room: whether scoring goes on, and with what budget."""
    if not check.cuda:
        found["left out"] = "the device is no GPU"
        return
    network = random_network(check)
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved(check.device) + _ROOM_BYTES
    total = torch.cuda.get_device_properties(check.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total), check.device)
    try:
        scorer = engine_of(network, reproducible=True)
        queries = groups(check, "texts", 1, _MANY_QUERIES)[0].queries
        long = DocumentQueries(_text(np.random.default_rng(0), _LONG), queries)
        for name, given in (("long document", [long]), ("after it", groups(check, "texts", 4, 5))):
            logits = [logit for of_group in scorer.score(given) for logit in of_group]
            found[name] = {
                "pairs": len(logits),
                "rejected": sum(isinstance(logit, RejectedInput) for logit in logits),
                "budget in tokens": scorer.batcher.budget.tokens,
            }
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, check.device)
