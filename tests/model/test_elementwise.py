"""Kernels of element-wise functions in Triton's interpreter, against torch's own; and what is done with a wrong one."""

from __future__ import annotations

import importlib
import logging
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from lakerank.model.engine.elementwise import plain
from lakerank.model.engine.elementwise.fused import ACTIVATIONS, Fused, choose_ops
from lakerank.model.engine.elementwise.plain import RMSNorm

CPU, NAMES = torch.device("cpu"), ("norm", "rotate", "activate")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def kernels() -> Any:
    """Interpreted, as `conftest.py` says."""
    return importlib.import_module("lakerank.model.engine.elementwise.kernels")


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """To two roundings: Triton's interpreter cuts off where a GPU rounds to the nearest."""
    near = max(2 * torch.finfo(found.dtype).eps, 1e-5)
    torch.testing.assert_close(found, expected, rtol=near, atol=near)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("width", [8, 96, 1025])
def test_sums_and_norms_are_torchs(kernels: Any, dtype: torch.dtype, rows: int, width: int) -> None:
    of = RMSNorm(drawn(width, dtype=dtype, seed=1), 1e-6)
    states, added = (drawn(rows, width, dtype=dtype, seed=seed) for seed in (2, 3))
    fused, summed = Fused(kernels), states.clone()
    assert_near(fused.norm(states, of), plain.norm(states.clone(), of))
    into = torch.empty_like(states)
    found = fused.norm(summed, of, added, out=into)
    assert found is into
    assert_near(summed, states + added)
    assert_near(found, plain.norm(states.clone(), of, added))
    for number in range(rows):
        alone = states[number : number + 1].clone()
        assert torch.equal(fused.norm(alone, of, added[number : number + 1]), found[number : number + 1])
        assert torch.equal(alone, summed[number : number + 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_gemma_multiply_in_float32(kernels: Any, dtype: torch.dtype) -> None:
    of, states = RMSNorm(1 + drawn(48, dtype=torch.float32), 1e-5), drawn(3, 48, dtype=dtype, seed=1)
    assert_near(Fused(kernels).norm(states, of), plain.norm(states, of))


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_are_normed_in_place_among_others(kernels: Any, dtype: torch.dtype) -> None:
    of, states = RMSNorm(drawn(24, dtype=dtype, seed=1), 1e-6), drawn(3, 5, 24, dtype=dtype)
    found, expected = states.clone(), states.clone()
    for functions, each in ((Fused(kernels), found), (plain, expected)):
        functions.norm(each[:, 1:4], of, out=each[:, 1:4])
    assert_near(found, expected)
    assert torch.equal(found[:, ::4], states[:, ::4]), "the others are left as they were"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_rotation", DTYPES)
@pytest.mark.parametrize(("rows", "heads", "width"), [(1, 1, 2), (4, 3, 20), (3, 17, 80)])
def test_queries_and_keys_are_rotated_in_place(
    kernels: Any, dtype: torch.dtype, of_rotation: torch.dtype, rows: int, heads: int, width: int
) -> None:
    """Of rows that have values behind them."""
    angles = drawn(rows, 1, width // 2, dtype=torch.float32, seed=1)
    rotation = torch.stack((angles.cos(), angles.sin())).to(of_rotation)
    states = drawn(rows, heads + 2, width, dtype=dtype)
    before = states.clone()
    found = Fused(kernels).rotate(states[:, :heads], rotation)
    assert found.data_ptr() == states.data_ptr()
    assert_near(found, plain.rotate(before[:, :heads].float(), rotation.float()).to(dtype))
    assert torch.equal(states[:, heads:], before[:, heads:])
    alone = before[-1:].clone()
    assert torch.equal(Fused(kernels).rotate(alone[:, :heads], rotation[:, -1:]), found[-1:])


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # whose inverse is 0, as it should be
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("columns", [2, 66, 2050])
def test_activations_are_torchs(kernels: Any, dtype: torch.dtype, name: str, columns: int) -> None:
    rows = drawn(4, columns, dtype=dtype) * 3
    rows[0, 0], rows[1, 0] = -300.0, 300.0
    fused, whole = Fused(kernels), rows.clone()
    assert fused.activate(whole, name).data_ptr() == whole.data_ptr()
    gated = fused.activate(rows.clone(), name, gated=True)
    for found, expected in (
        (whole, plain.activate(rows.float(), name)),
        (gated, plain.activate(rows.float(), name, gated=True)),
    ):
        assert_near(found, expected.to(dtype))
    assert torch.equal(fused.activate(rows[2:3].clone(), name, gated=True), gated[2:3])
    assert torch.equal(fused.activate(rows[2:3].clone(), name), whole[2:3])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_transformers_own(name: str) -> None:
    rows = drawn(4, 66, dtype=torch.float32)
    assert torch.equal(plain.activate(rows.clone(), name), ACT2FN[name](rows))
    gate, up = rows.chunk(2, dim=1)
    assert torch.equal(plain.activate(rows.clone(), name, gated=True), ACT2FN[name](gate) * up)


def test_an_activation_without_a_kernel_is_torchs(kernels: Any) -> None:
    rows = drawn(4, 6, dtype=torch.float32)
    assert torch.equal(Fused(kernels).activate(rows, "relu", gated=True), rows[:, :3].relu() * rows[:, 3:])


class Wrong:
    """Triton's kernel with a fault: of what it wrote, `harm` changes something."""

    def __init__(self, kernel: Any, harm: Any) -> None:
        self._kernel, self._harm = kernel, harm

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            self._kernel[grid](*arguments, **constants)
            self._harm(arguments)

        return launch


def more_in_a_batch(arguments: Any) -> None:
    """A row's bits, not its value, depend on the number of rows."""
    states = arguments[0]
    if len(states) > 1:
        states.copy_(torch.nextafter(states, torch.full_like(states, torch.inf)))


def unavailable(arguments: Any) -> None:
    raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_that_agree_with_torch_are_used(
    kernels: Any, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = choose_ops(CPU, dtype, kernels)
    assert not any(getattr(chosen, name) == getattr(plain, name) for name in NAMES)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("norm", lambda arguments: arguments[3].mul_(1.001), "norm: .* differs by up to 0.00"),
        ("norm", lambda arguments: arguments[0][0].add_(0.01), "norm: .* differs by up to 0.01"),
        ("rotate", lambda arguments: arguments[0][:, -1:].neg_(), "rotate: .* differs by up to"),
        ("rotate", more_in_a_batch, "rotate: .*a row has other bits among others"),
        ("activate", lambda arguments: arguments[1][-1, -1].fill_(torch.nan), "activate: .* differs by up to nan"),
        ("activate", unavailable, r"activate: .*RuntimeError: Failed to find C compiler\.$"),
    ],
)
def test_a_wrong_kernel_steps_aside(
    kernels: Any, name: str, harm: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It alone, and the log says so in one line."""
    caplog.set_level(logging.INFO)
    given = {each: getattr(kernels, each) for each in NAMES}
    faulty = type("Kernels", (), given | {name: Wrong(given[name], harm)})
    chosen = choose_ops(CPU, torch.float32, faulty)
    used = {each: getattr(chosen, each) == getattr(plain, each) for each in given}
    assert used == {each: each == name for each in given}
    assert len(caplog.messages) == 1
    assert re.search(said, caplog.messages[0], re.DOTALL), caplog.messages


@pytest.mark.nightly
def test_torchs_own_are_used_where_triton_is_missing() -> None:
    """Nothing but the choice for a GPU looks for it, and says in one line that it is not there."""
    code = """
import sys
sys.modules["triton"] = None
import torch
import lakerank.model.api
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.elementwise.fused import choose_ops, plain
assert choose_ops(torch.device("cuda"), torch.bfloat16) is plain
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = "norms, rotations and activations are torch's own, which are slower: import of triton halted"
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(said) == len(done.stderr.splitlines()) == 1, done.stderr
