"""Linear layers and element-wise functions that give a row the same bits in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lakerank.model.engine.linear import (
    ROW_MULTIPLE,
    BatchInvariantLinear,
    LinearProbe,
    LinearWeights,
    choose_linear,
    elementwise,
)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_chosen_keeps_a_rows_bits(threads: int, dtype: torch.dtype) -> None:
    weight, bias = random(96, 192).to(dtype), random(96).to(dtype)
    linear = choose_linear([LinearProbe(LinearWeights(weight, bias), 1024)])
    rows = random(linear.padded(1) + linear.multiple * 9, 192, seed=1).to(dtype)
    whole = linear(rows, weight, bias)
    for count in range(linear.padded(1), len(rows) + 1, linear.multiple):
        assert torch.equal(linear(rows[:count], weight, bias), whole[:count])
        assert torch.equal(linear(rows[:count].flip(0), weight, bias), whole[:count].flip(0))


def test_small_batches_are_padded_where_only_those_round_differently() -> None:
    def few_otherwise(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        whole = rows @ weight.T
        return whole if len(rows) >= 200 else whole + 1e-6

    linear = choose_linear([LinearProbe(LinearWeights(random(96, 192), None), 1024)], few_otherwise)
    assert linear == BatchInvariantLinear(min_rows=256)
    assert [linear.padded(rows) for rows in (1, 256, 257)] == [256, 256, 288]


@given(
    rows=st.integers(1, 5000),
    most=st.sampled_from([256, 2048]),
    linear=st.sampled_from(
        [*(BatchInvariantLinear(min_rows=rows) for rows in (32, 256, 512)), BatchInvariantLinear(64)]
    ),
)
def test_parts_are_padded(rows: int, most: int, linear: BatchInvariantLinear) -> None:
    whole = torch.arange(linear.padded(rows))
    parts = linear.split(whole, most)
    assert torch.equal(torch.cat(list(parts)), whole)
    assert all(linear.padded(len(part)) == len(part) for part in parts)
    assert max(map(len, parts)) <= max(most, 2 * linear.min_rows)


def test_blocks_are_of_one_size() -> None:
    sizes: list[int] = []

    def recorded(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        sizes.append(len(rows))
        return F.linear(rows, weight, bias)

    linear = BatchInvariantLinear(64, function=recorded)
    assert linear.padded(130) == 192
    rows, weight = random(192, 8), random(4, 8, seed=1)
    out = linear(rows, weight)
    assert sizes == [64, 64, 64]
    torch.testing.assert_close(out, F.linear(rows, weight))


def test_numbers_of_rows_are_padded() -> None:
    assert [BatchInvariantLinear().padded(rows) for rows in (1, ROW_MULTIPLE, ROW_MULTIPLE + 1)] == [32, 32, 64]


@pytest.mark.parametrize("rows", [2, 96, 704])
@pytest.mark.parametrize("width", [32, 96, 8960])
def test_a_row_is_rounded_alike_everywhere(threads: int, rows: int, width: int) -> None:
    both = random(rows, width * 2) * 3
    for values in (both[:, :width], both[:, :width].contiguous()):  # strided, as half of a joined product is
        assert torch.equal(elementwise(F.silu, values).flip(0), elementwise(F.silu, values.flip(0)))
