"""Triton's kernels for `fused`, imported on CUDA alone and by tests: one pass over memory, in float32, rounded once.

Blocks follow from shapes, and a row is summed by one program: its bits depend on neither its place nor the others.
"""

import triton
import triton.language as tl


@triton.jit
def norm(
    rows, added, weight, out, row_stride, out_stride, epsilon,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    """RMSNorm of a part of a row, to which `added` is added in place before, where it ADDS."""
    row, part, places = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE, tl.arange(0, BLOCK)
    source, inside = row * row_stride + part + places, places < SIZE
    values = tl.load(rows + source, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        values += tl.load(added + source, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(rows.dtype.element_ty)
        tl.store(rows + source, rounded, mask=inside)
        values = rounded.to(tl.float32)
    values = values / tl.sqrt(tl.sum(values * values, axis=0) / SIZE + epsilon)
    values *= tl.load(weight + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + part + places, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rotate(
    states, cosines, sines, row_stride, table_stride,
    HEADS: tl.constexpr, HALF: tl.constexpr, HEADS_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rotary embeddings, in place, of some of a row's heads, each 2 * HALF wide."""
    row, places = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)[None, :]
    heads = tl.program_id(1) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)[:, None]
    known, inside = places < HALF, (heads < HEADS) & (places < HALF)
    cos = tl.load(cosines + row * table_stride + places, mask=known, other=0.0).to(tl.float32)
    sin = tl.load(sines + row * table_stride + places, mask=known, other=0.0).to(tl.float32)
    start = states + row * row_stride + heads * (2 * HALF) + places
    first = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(start + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(start, (first * cos - second * sin).to(states.dtype.element_ty), mask=inside)
    tl.store(start + HALF, (second * cos + first * sin).to(states.dtype.element_ty), mask=inside)


@triton.jit
def activate(
    rows, out, row_stride, out_stride,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """An activation of some of COLUMNS; GATED: times what is COLUMNS further on."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < COLUMNS
    value = tl.load(rows + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    if KIND == "gelu":
        result = value * 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))
    elif KIND == "gelu_pytorch_tanh":  # 1 + tanh(x) is 2 * sigmoid(2 * x)
        result = value / (1.0 + tl.exp(-1.5957691216057308 * (value + 0.044715 * value * value * value)))
    else:
        result = value / (1.0 + tl.exp((-1.702 if KIND == "quick_gelu" else -1.0) * value))
    if GATED:
        result *= tl.load(rows + row * row_stride + COLUMNS + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + column, result.to(out.dtype.element_ty), mask=inside)
