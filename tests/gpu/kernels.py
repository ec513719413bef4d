"""Phases of the check on kernels alone: matrix products, element-wise functions, attention over packed sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.record import Check, Findings
from lakerank.model.engine.attention import varlen
from lakerank.model.engine.device import pin_arithmetic
from lakerank.model.engine.elementwise import plain
from lakerank.model.engine.elementwise.fused import choose_ops
from lakerank.model.engine.layout import packed

#: Numbers of rows whose bits are compared with those of the most that a micro-batch has.
_ROWS = (32, 64, 96, 160, 256, 288, 512, 544, 1024, 1056, 2048, 3072, 4096, 6144, 8192, 12_288)

#: Constants in four channels of keys, as the biases of Qwen2's give: with them scores are large, and errors show.
_KEY_BIASES = (0.0, 50.0)

#: Rows of a product where bits depend on how many there are.
_BLOCK = 1024


@torch.inference_mode()
def products(check: Check, found: Findings) -> None:
    """Which numbers of rows give other bits, as torch comes and as it is used; the pace, whole and in blocks."""
    for mode in ("as torch comes", "as used") if check.cuda else ("as used",):
        if check.cuda:
            _choose_arithmetic(mode)
        for name, (outputs, inputs) in _weights(check).items():
            if check.left_s < 2:
                found["left out"] = f"{mode}, from {name} on: no time was left"
                break
            rows, weight = check.randn(check.sizes.rows, inputs), check.randn(outputs, inputs) * inputs**-0.5
            bias = check.randn(outputs)
            found[f"{mode}: {name}"] = _product(check, rows, weight, bias)


def _choose_arithmetic(mode: str) -> None:
    matmul = torch.backends.cuda.matmul
    if mode == "as used":
        torch.backends.cuda.preferred_blas_library("cublaslt")
        pin_arithmetic()
        return
    torch.backends.cuda.preferred_blas_library("default")
    matmul.allow_bf16_reduced_precision_reduction = matmul.allow_fp16_reduced_precision_reduction = True


def _weights(check: Check) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the linear layers of a decoder layer and of a vision block."""
    shape = check.shape
    heads = (shape.heads + 2 * shape.key_value_heads) * shape.hidden_size // shape.heads
    hidden, inner, width = shape.hidden_size, shape.intermediate_size, shape.vision_width
    return {
        "qkv": (heads, hidden),
        "out": (hidden, hidden),
        "gate and up": (2 * inner, hidden),
        "down": (hidden, inner),
        "vision qkv": (3 * width, width),
        "vision out": (width, width),
        "vision up": (4 * width, width),
        "vision down": (width, 4 * width),
    }


def _product(check: Check, rows: Tensor, weight: Tensor, bias: Tensor) -> Findings:
    whole = F.linear(rows, weight, bias)
    other_bits = [
        count
        for count in _ROWS
        if count < len(rows)
        and not all(
            torch.equal(F.linear(rows[first : first + count], weight, bias), whole[first : first + count])
            for first in (0, (count // 2 + 3) % (len(rows) - count))
        )
    ]
    flops = 2.0 * rows.shape[0] * weight.numel() / 1e12
    in_blocks = check.seconds(lambda: torch.cat([F.linear(part, weight, bias) for part in rows.split(_BLOCK)]))
    return {
        "rows with other bits": other_bits,
        "bits at another place": torch.equal(F.linear(rows.roll(37, 0), weight, bias), whole.roll(37, 0)),
        "TFLOP/s": flops / check.seconds(lambda: F.linear(rows, weight, bias)),
        "TFLOP/s in blocks of 1,024": flops / in_blocks,
    }


@torch.inference_mode()
def elementwise(check: Check, found: Findings, kernels: Any = None) -> None:
    """Which kernels of Triton's are in use, how fast beside torch's own, and whether a row alone has the same bits."""
    ops = choose_ops(check.device, torch.bfloat16, kernels)
    if ops is plain:
        found["left out"] = "torch's own are used: there is no GPU, or no Triton"
        return
    for name, (function, call, states) in _functions(check).items():
        alone = call(ops, *(part[5:6].clone() for part in states))
        among = call(ops, *(part.clone() for part in states))[5:6]
        fused, by_torch = (check.seconds(functools.partial(call, use, *states)) for use in (ops, plain))
        found[name] = {
            "in use": "torch's own" if getattr(ops, function) is getattr(plain, function) else "Triton's",
            "same bits alone": torch.equal(alone, among),
            "ms": fused * 1e3,
            "ms of torch's own": by_torch * 1e3,
        }


def _functions(check: Check) -> Mapping[str, tuple[str, Callable[..., Tensor], tuple[Tensor, ...]]]:
    """By a name: the function, a call of it, and what that is given, by rows."""
    shape, rows = check.shape, check.sizes.rows
    of = plain.RMSNorm(check.randn(shape.hidden_size), 1e-6)
    hidden, added = (check.randn(rows, shape.hidden_size) for _ in range(2))
    heads = check.randn(rows, 2 * shape.vision_heads, shape.vision_width // shape.vision_heads)
    rotation = check.randn(rows, 2, heads.shape[2] // 2, dtype=torch.float32)
    inner, gated = check.randn(rows, 4 * shape.vision_width), check.randn(rows, 2 * shape.intermediate_size)

    def rotate(use: Any, states: Tensor, rotation: Tensor) -> Tensor:
        rotated: Tensor = use.rotate(states, rotation.transpose(0, 1).unsqueeze(2))
        return rotated

    return {
        "sum and norm": ("norm", lambda use, rows, added: use.norm(rows, of, added), (hidden, added)),
        "rotation in float32": ("rotate", rotate, (heads, rotation)),
        "QuickGELU": ("activate", lambda use, rows: use.activate(rows, "quick_gelu"), (inner,)),
        "SiLU of gates": ("activate", lambda use, rows: use.activate(rows, "silu", gated=True), (gated,)),
    }


@dataclass(frozen=True, slots=True)
class _Case:
    """Sequences of one length: queries and keys of each, heads, those of keys, their dimension."""

    count: int
    queries: int
    keys: int
    heads: int
    key_heads: int
    dim: int
    causal: bool

    @property
    def flops(self) -> float:
        """Operations, in 10¹²; of a causal one half of the scores."""
        return 4.0 * self.count * self.queries * self.keys * self.heads * self.dim / 1e12 / (1 + self.causal)


def _cases(check: Check) -> Iterator[tuple[str, _Case]]:
    shape, sizes = check.shape, check.sizes
    dim, patches = shape.hidden_size // shape.heads, sizes.grid[0] * sizes.grid[1]
    heads, page = (shape.heads, shape.key_value_heads, dim), patches // 4 + 12
    vision = shape.vision_heads, shape.vision_heads, shape.vision_width // shape.vision_heads
    yield "vision", _Case(sizes.documents, patches, patches, *vision, causal=False)
    yield "vision, small images", _Case(sizes.documents, max(16, patches // 12), max(16, patches // 12), *vision, False)
    yield "prefix", _Case(sizes.documents, page, page, *heads, causal=True)
    for k in (1, 25, 100):
        count = max(2, sizes.documents // (1 + k // 50))
        yield f"queries on pages, k = {k}", _Case(count, k * sizes.query, page, *heads, causal=False)
    yield "queries on themselves", _Case(25 * sizes.documents, sizes.query, sizes.query, *heads, causal=True)


@torch.inference_mode()
def attention(check: Check, found: Findings) -> None:
    """The pace and the error of the kernel for packed sequences, and whether a sequence alone has the same bits."""
    for name, case in _cases(check):
        if check.left_s < 4:
            found["left out"] = f"from {name} on: no time was left"
            return
        lines = {f"key bias {bias:g}": _packed(check, case, bias, timed=not bias) for bias in _KEY_BIASES}
        found[name] = lines["key bias 0"] | {"error with key bias 50": lines["key bias 50"]["error"]}
        if case.queries == case.keys and check.cuda:
            found[name] |= _others(check, case)


def _packed(check: Check, case: _Case, bias: float, timed: bool) -> Findings:
    query = check.randn(case.count * case.queries, case.heads, case.dim)
    key, value = (check.randn(case.count * case.keys, case.key_heads, case.dim) for _ in range(2))
    key[..., :4] += bias
    query[..., :4] += bias / 8

    def attend(count: int) -> tuple[Tensor, Tensor]:
        parts = query[: count * case.queries], key[: count * case.keys], value[: count * case.keys]
        return layouts[count](*parts)

    layouts = {
        count: packed(varlen, [case.queries] * count, [case.keys] * count, check.device, case.causal)
        for count in (1, case.count)
    }
    whole, sums = attend(case.count)
    alone, sums_alone = attend(1)
    first = slice(case.queries), slice(case.keys)
    exact = _exact(query[first[0]], key[first[1]], value[first[1]], case.causal)
    line: Findings = {
        "same bits alone": torch.equal(alone, whole[first[0]]) and torch.equal(sums_alone, sums[first[0]]),
        "error": float((alone.double() - exact).norm() / exact.norm()),
    }
    if timed:
        seconds = check.seconds(lambda: attend(case.count))
        line |= {"ms": 1000 * seconds, "TFLOP/s": case.flops / seconds}
    return line


def _exact(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """In float64: (T, H, D), two of (S, G, D) -> (T, H, D)."""
    keys, values = (rows.double().repeat_interleave(query.shape[1] // rows.shape[1], 1) for rows in (key, value))
    scores = torch.einsum("thd,shd->hts", query.double(), keys) * query.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), float("-inf"))
    return torch.einsum("hts,shd->thd", scores.softmax(-1), values)


def _others(check: Check, case: _Case) -> Findings:
    """TFLOP/s of torch's other kernels on the same sequences, a batch of one length; why one refuses them."""
    query, key, value = (check.randn(case.count, case.heads, case.keys, case.dim) for _ in range(3))
    found: Findings = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(backend):
                seconds = check.seconds(
                    lambda: F.scaled_dot_product_attention(query, key, value, is_causal=case.causal)
                )
            found[f"TFLOP/s of {backend.name}"] = case.flops / seconds
        except RuntimeError as error:
            found[f"{backend.name} refuses"] = str(error)[:200]
    return found
