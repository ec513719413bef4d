"""Linear layers and element-wise functions that give a row the same bits in any batch."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lakerank.model.engine.findings import Findings
from lakerank.model.engine.linear import (
    ROW_MULTIPLE,
    BatchInvariantLinear,
    LinearProbe,
    LinearWeights,
    _probe,
    any_packed,
    choose_linear,
    elementwise,
    padded_size,
    product,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without findings, so that everything is probed."""
    monkeypatch.setenv("LAKERANK_CACHE", str(tmp_path))
    return tmp_path / "findings"


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_chosen_keeps_a_rows_bits(threads: int, dtype: torch.dtype, packed: bool) -> None:
    weight, bias = random(96, 192).to(dtype), random(96).to(dtype)
    if packed:
        weight, bias = LinearWeights(weight, bias).packed()
    linear = choose_linear([LinearProbe(LinearWeights(weight, bias), 1024)])
    rows = random(linear.padded(1) + linear.multiple * 9, 192, seed=1).to(dtype)
    whole = linear(rows, weight, bias)
    for count in range(linear.padded(1), len(rows) + 1, linear.multiple):
        assert torch.equal(linear(rows[:count], weight, bias), whole[:count])
        assert torch.equal(linear(rows[:count].flip(0), weight, bias), whole[:count].flip(0))


@pytest.mark.parametrize("bias", [None, random(96)])
@pytest.mark.parametrize("rows", [1, 32, 700])
def test_packed_weights_are_the_same(rows: int, bias: Tensor | None) -> None:
    weights, states = LinearWeights(random(96, 192), bias), random(rows, 192, seed=1)
    packed = weights.packed()
    assert packed.weight.is_mkldnn == (platform.machine() == "x86_64")
    torch.testing.assert_close(product(states, *packed), F.linear(states, *weights), atol=1e-4, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_taken_from_modules_and_in_memory_once(dtype: torch.dtype, bias: bool) -> None:
    modules = [nn.Linear(64, outputs, bias, dtype=dtype).requires_grad_(False) for outputs in (96, 32, 32)]
    states = random(40, 64).to(dtype)
    expected = torch.cat([module(states) for module in modules], dim=1)
    joined = LinearWeights.taken(*modules)
    places = {module.weight.untyped_storage().data_ptr() for module in modules if module.weight.numel()}
    packs = platform.machine() == "x86_64" and dtype == torch.float32
    assert (joined.weight.is_mkldnn, places) == (packs, set() if packs else {joined.weight.data_ptr()})
    for rows in (slice(None), slice(None, 96), slice(96, None)):
        result = product(states, *joined.rows(rows.start, rows.stop))
        torch.testing.assert_close(result, expected[:, rows], atol=1e-5 if packs else 1e-2, rtol=0)


def test_shapes_that_are_probed_may_be_packed_or_not() -> None:
    weights = LinearWeights(random(96, 192), None)
    probes = [LinearProbe(each, 1024) for each in (weights, weights.packed())]
    assert choose_linear(probes) == choose_linear(probes[::-1])


@pytest.mark.parametrize(
    ("tile", "expected"),
    [(0, BatchInvariantLinear()), (900, BatchInvariantLinear(min_rows=1024)), (7000, BatchInvariantLinear(1024))],
)
def test_a_gpus_products_are_probed_up_to_the_rows_of_a_micro_batch(tile: int, expected: BatchInvariantLinear) -> None:
    """Of a library that takes another kernel below, or from a number of rows on that only large batches have."""

    def by_size(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return rows @ weight.T + (1e-3 if len(rows) < tile else 0)

    probes = [LinearProbe(LinearWeights(torch.ones(8, 1), None), 16384)]
    assert _probe(probes, by_size, cpu=False)[0] == expected


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
        [
            BatchInvariantLinear(*sizes, packed=packed)
            for sizes in ((None, 32), (None, 256), (None, 512), (64, 32))
            for packed in (True, False)
        ]
    ),
)
def test_parts_are_padded(rows: int, most: int, linear: BatchInvariantLinear) -> None:
    whole = torch.arange(linear.padded(rows))
    parts = linear.split(whole, most)
    assert torch.equal(torch.cat(list(parts)), whole)
    assert all(linear.padded(len(part)) == len(part) for part in parts)
    assert max(map(len, parts)) <= max(most, 2 * linear.min_rows)


@pytest.mark.parametrize(("step", "most"), [(32, 40), (64, 32)])
def test_kernels_are_kept_for_few_sizes(step: int, most: int) -> None:
    """oneDNN makes one for each shape, in a millisecond and half a megabyte."""
    sizes = {size: padded_size(size, step) for size in range(1, 4097)}
    assert len({*sizes.values()}) <= most
    assert all(size <= padded and padded % step == 0 for size, padded in sizes.items())
    assert all(padded < size + step for size, padded in sizes.items() if size <= 8 * step)
    assert all(padded <= size * 9 / 8 for size, padded in sizes.items() if size > 8 * step)


@pytest.mark.parametrize("min_rows", [32, 256, 512])
@pytest.mark.parametrize("most", [256, 512, 768, 1024])
def test_products_of_packed_weights_have_few_shapes(min_rows: int, most: int) -> None:
    linear = BatchInvariantLinear(min_rows=min_rows, packed=True)
    padded = [linear.padded(rows) for rows in range(1, 4097)]
    assert padded == [padded_size(max(rows, min_rows), ROW_MULTIPLE) for rows in range(1, 4097)]
    parts = {len(part) for rows in {*padded} for part in linear.split(torch.empty(rows, 0), most)}
    assert len(parts) <= 40
    assert BatchInvariantLinear(64, packed=True).padded(4032) == BatchInvariantLinear().padded(4032) == 4032


@pytest.mark.parametrize("packed", [True, False])
def test_few_shapes_are_for_packed_weights(packed: bool) -> None:
    weights = LinearWeights(random(96, 192), None)
    probes = [LinearProbe(weights.packed() if packed else weights, 256)]
    chosen = [choose_linear(probes) for _ in range(2)]  # probed, and kept
    packs = packed and platform.machine() == "x86_64"
    assert [*(linear.packed for linear in chosen), any_packed(probes)] == [packs] * 3


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


class Products:
    """Products of torch's that are batch-invariant from some rows on, counted."""

    def __init__(self, invariant_from: int = ROW_MULTIPLE) -> None:
        self.count, self.invariant_from = 0, invariant_from

    def __call__(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self.count += 1
        return rows @ weight.T + (0.0 if len(rows) >= self.invariant_from else 1e-6)


def _probes(outputs: int = 96) -> list[LinearProbe]:
    return [LinearProbe(LinearWeights(random(outputs, 64), None), 256)]


def _probed(
    findings: Findings, probes: list[LinearProbe], invariant_from: int = 256
) -> tuple[BatchInvariantLinear, bool]:
    """What is chosen, and whether products were tried for it."""
    products = Products(invariant_from)
    return choose_linear(probes, products, findings), products.count > 0


def test_a_machine_is_probed_once_for_its_threads_and_shapes(own_cache: Path) -> None:
    here = Findings.here()
    first, tried = _probed(here, _probes())
    assert (tried, first) == (True, BatchInvariantLinear(min_rows=256))
    assert _probed(here, _probes()) == (first, False)
    assert _probed(here, _probes(outputs=32))[1], "other shapes"
    assert _probed(replace(here, machine="another"), _probes())[1], "another machine"
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert Findings.here().machine != here.machine
    finally:
        torch.set_num_threads(threads)
    assert not list(own_cache.glob("*.tmp"))


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"key": "of another"}',
        "nothing a probe can give",
        "no list",
        "another's",
        "a folder in its place",
    ],
)
def test_a_damaged_finding_is_found_out_again(own_cache: Path, damage: str) -> None:
    here = Findings.here()
    expected, _ = _probed(here, _probes())
    (file,) = own_cache.iterdir()
    kept = json.loads(file.read_text())
    if damage == "a folder in its place":
        file.unlink()
        file.mkdir()
    else:
        values = {"nothing a probe can give": [None, 1], "no list": {"rows": 32}, "another's": [None, 32]}
        other = {"key": "another"} if damage == "another's" else {}
        file.write_text(json.dumps(kept | other | {"value": values[damage]}) if damage in values else damage)
    assert _probed(here, _probes()) == (expected, True)


def test_without_a_folder_to_keep_findings_in_everything_is_probed(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    for folder in (None, tmp_path / "a file" / "below", Path("/proc/lakerank")):
        findings = Findings(folder, "here")
        assert _probed(findings, _probes())[1]
        assert _probed(findings, _probes())[1]


def test_torchs_products_are_probed_once_a_machine(own_cache: Path) -> None:
    first = choose_linear(_probes())
    (file,) = own_cache.iterdir()
    assert json.loads(file.read_text())["value"] == [first.block, first.min_rows]
    assert choose_linear(_probes()) == first
    choose_linear(_probes(), Products())
    assert len(list(own_cache.iterdir())) == 1, "another function's results are not kept for torch's"
