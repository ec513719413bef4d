"""Products and element-wise functions that round a row alike wherever it stands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lakerank.model.engine.linear import ROW_MULTIPLE, Product, RowProducts, choose_products, rowwise


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
    products = choose_products([Product(weight, bias, 1024)])
    rows = random(products.filled(1) + products.multiple * 9, 192, seed=1).to(dtype)
    whole = products.linear(rows, weight, bias)
    for count in range(products.filled(1), len(rows) + 1, products.multiple):
        assert torch.equal(products.linear(rows[:count], weight, bias), whole[:count])
        assert torch.equal(products.linear(rows[:count].flip(0), weight, bias), whole[:count].flip(0))


def test_products_of_few_rows_are_filled_up_where_only_those_round_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    def few_otherwise(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        whole = rows @ weight.T
        return whole if len(rows) >= 200 else whole + 1e-6

    monkeypatch.setattr(F, "linear", few_otherwise)
    products = choose_products([Product(random(96, 192), None, 1024)])
    assert products == RowProducts(least=256)
    assert [products.filled(rows) for rows in (1, 256, 257)] == [256, 256, 288]


@given(
    rows=st.integers(1, 5000),
    most=st.sampled_from([256, 2048]),
    products=st.sampled_from([RowProducts(), RowProducts(least=256), RowProducts(least=512), RowProducts(64)]),
)
def test_parts_are_what_products_can_be_made_with(rows: int, most: int, products: RowProducts) -> None:
    whole = torch.arange(products.filled(rows))
    parts = products.parts(whole, most)
    assert torch.equal(torch.cat(list(parts)), whole)
    assert all(products.filled(len(part)) == len(part) for part in parts)
    assert max(map(len, parts)) <= max(most, 2 * products.least)


def test_blocks_are_of_one_size() -> None:
    sizes: list[int] = []

    class Recording(Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function is F.linear:
                sizes.append(len(args[0]))
            return super().__torch_function__(function, types, args, kwargs or {})

    products = RowProducts(64)
    assert products.filled(130) == 192
    rows, weight = random(192, 8), random(4, 8, seed=1)
    out = products.linear(rows.as_subclass(Recording), weight)
    assert sizes == [64, 64, 64]
    torch.testing.assert_close(out.as_subclass(Tensor), F.linear(rows, weight))


def test_rows_are_filled_up() -> None:
    assert [RowProducts().filled(rows) for rows in (1, ROW_MULTIPLE, ROW_MULTIPLE + 1)] == [32, 32, 64]


@pytest.mark.parametrize("rows", [2, 96, 704])
@pytest.mark.parametrize("width", [32, 96, 8960])
def test_a_row_is_rounded_alike_everywhere(threads: int, rows: int, width: int) -> None:
    both = random(rows, width * 2) * 3
    for values in (both[:, :width], both[:, :width].contiguous()):  # strided, as half of a joined product is
        assert torch.equal(rowwise(F.silu, values).flip(0), rowwise(F.silu, values.flip(0)))
