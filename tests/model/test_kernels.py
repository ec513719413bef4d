"""What a GPU would be asked for, counted on the `meta` device: see `scale/gpu_trace.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2VLConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from checkpoints.encoders import write_modern
from lakerank.model.config import read_config
from lakerank.model.cross_encoder.head import read_head
from lakerank.model.cross_encoder.weights import MODERN, load_weights, read_shape
from lakerank.model.engine.attention import attend_eager, varlen
from lakerank.model.engine.budget import BUSY_TOKENS_GPU, decoder_bytes
from lakerank.model.engine.encoder import PackedEncoder
from lakerank.model.engine.layout import packed
from lakerank.model.engine.vision import PackedVision
from lakerank.model.preprocess.images import PatchShape
from scale.gpu_trace import META, PAGE, TEXT, Trace, generative, groups, ranker, trace

#: GB a page of all kernels, and of the vision encoder's: what the engine is known to move, and a twentieth more. Where
#: there is no Triton it is 24 and 18.4.
MOST_MOVED, MOST_MOVED_BY_VISION = 16.2, 11.3


@functools.cache
def traced(documents: int, queries: int, tokens: int) -> Trace:
    """A call at the 2B shape."""
    return trace(*ranker(), groups(documents, queries, tokens))


@pytest.mark.parametrize(
    ("documents", "queries", "tokens"),
    [
        pytest.param(40, 1, 0, marks=pytest.mark.nightly),
        pytest.param(9, 100, 0, marks=pytest.mark.nightly),
        (60, 10, 512),
        (1, 512, 9728),
        (1, 100, 32256),
    ],
)
def test_memory_stays_within_the_budget(documents: int, queries: int, tokens: int) -> None:
    config = Qwen2VLConfig(text_config=TEXT)
    budget = decoder_bytes(config, torch.bfloat16) * max(BUSY_TOKENS_GPU, tokens)
    assert 0.2 * budget < traced(documents, queries, tokens).peak <= budget


def test_scores_that_no_kernel_keeps_to_itself_are_computed_in_parts() -> None:
    """Of 512 queries of 26 tokens on 9,728, for devices that have no kernel: 1.6 GiB at once for each head of keys."""
    states = [torch.empty(208, 2, rows, 128, dtype=torch.bfloat16, device=META) for rows in (64 * 6, 9728)]
    counting = Trace()
    with torch.inference_mode(), counting:
        out, sums = attend_eager(states[0], states[1], states[1])
    assert (out.shape, sums.shape) == ((208, 2, 384, 128), (208, 2, 384))
    assert counting.peak < 2**31


def test_a_page_moves_no_more_than_is_known() -> None:
    assert traced(6, 1, 0).moved.total() / 6 <= MOST_MOVED * 1e9
    vision, pixels = ranker()[0]._vision, torch.empty(2 * 3072, 3, 14, 14, dtype=torch.uint8, device=META)
    assert vision is not None
    with torch.inference_mode(), Trace() as counting:
        vision.tokens(pixels, [PAGE, PAGE])
    assert counting.moved.total() / 2 <= MOST_MOVED_BY_VISION * 1e9


@pytest.mark.parametrize("make", [ranker, generative])
@pytest.mark.parametrize("query", [32, 128])
def test_kernels_a_layer_do_not_depend_on_the_number_of_documents(make: Callable[..., Any], query: int) -> None:
    def kernels(layers: int, documents: int) -> int:
        return trace(*make(layers=layers), groups(documents, 32 // documents, 2048 // documents, query)).kernels.total()

    few, many = (kernels(5, documents) - kernels(3, documents) for documents in (2, 32))
    assert few == many
    assert few / 2 < 60, "for all documents of a micro-batch, prefix and queries"


class Calls(TorchDispatchMode):
    """Remembers what the operators called within are given, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, dict[str, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        self.arguments[func._schema.name] = dict(zip(names, args, strict=False)) | (kwargs or {})
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gpus_kernels_are_given_single_queries_as_others(dtype: torch.dtype) -> None:
    """Of one query a sequence FlashAttention would split the keys; the other kernel has no heads that share keys."""
    query, key = (torch.empty(3, heads, 64, dtype=dtype, device=META) for heads in (4, 2))
    layout = packed(varlen, [1, 1, 1], [1, 1, 1], META, causal=True)
    with Calls() as calls:
        out, sums = layout(query, key, key)
    assert (out.shape, sums.shape, sums.dtype) == ((3, 4, 64), (3, 4), torch.float32)
    if dtype == torch.bfloat16:
        given = calls.arguments["torch_attn::_varlen_attn"]
        assert (given["max_q"], given["max_k"], given["window_size"], given["scale"]) == (2, 1, [-1, 0], 0.125)
        assert given["key"].shape == (3, 2, 64), "not repeated"
        assert given.get("num_splits", 1) == 1
    else:
        given = calls.arguments["aten::_efficient_attention_forward"]
        assert (given["custom_mask_type"], given["compute_log_sumexp"], given["scale"]) == (2, True, 0.125)
        assert given["key"].shape == (1, 3, 4, 64)
    ends = [value for name, value in given.items() if name.startswith("cu_seq")]
    assert [(end.shape, end.dtype) for end in ends] == [((4,), torch.int32)] * 2


def qwen2_vl() -> PackedVision:
    engine, _ = ranker(layers=2)
    assert engine._vision is not None
    return engine._vision


def qwen3_vl() -> PackedVision:
    """Its published width, with states of two layers passed on."""
    vision = {"depth": 3, "deepstack_visual_indexes": [0, 1]}
    with META:
        network = Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=vision)).to(torch.bfloat16)
    packed_vision = PackedVision(network, PatchShape(16))
    packed_vision.varlen = varlen
    return packed_vision


@pytest.mark.parametrize("make", [qwen2_vl, qwen3_vl])
def test_images_share_their_kernels(make: Callable[[], PackedVision]) -> None:
    vision = make()

    def kernels(grids: Sequence[tuple[int, int]]) -> int:
        side = 16 if make is qwen3_vl else 14
        pixels = torch.empty(4096, 3, side, side, dtype=torch.uint8, device=META)
        with torch.inference_mode(), Trace() as counting:
            vision.tokens(pixels, grids)
        return counting.kernels.total()

    assert kernels([(64, 64)]) == kernels([(16, 16)] * 16) == kernels([(32, 64), (64, 16), (16, 64)])


@pytest.mark.parametrize("last", [3, 4], ids=["sees all", "sees a window"])
def test_sequences_of_a_cross_encoder_share_their_kernels(tmp_path: Path, last: int) -> None:
    write_modern(tmp_path, classifier_pooling="cls", num_hidden_layers=last + 1, local_attention=16)
    config = read_config(tmp_path)
    shape, head = read_shape(config), read_head(tmp_path, config)
    encoder = PackedEncoder(shape, load_weights(tmp_path, shape, MODERN, head, torch.float32, META))

    def kernels(lengths: Sequence[int]) -> int:
        ids = torch.zeros(sum(lengths), dtype=torch.int64, device=META)
        with Trace() as counting:
            encoder.logits(ids, ids, lengths, varlen)
        return counting.kernels.total()

    assert kernels([512]) == kernels([16] * 32) == kernels([300, 5, 207])
