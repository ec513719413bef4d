"""The functions of `plain` by Triton's kernels, which read and write memory once; and what makes sure of them on load.

A kernel that cannot be compiled here, or that differs from torch on random rows, is not used.
"""

from __future__ import annotations

import functools
import logging
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lakerank.model.engine.device import on_device
from lakerank.model.engine.elementwise import plain
from lakerank.model.engine.elementwise.plain import RMSNorm

logger = logging.getLogger(__name__)

#: Activations that the kernel has, by transformers' names.
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "quick_gelu")

#: Heads and columns that a program has at once.
_HEADS, _COLUMNS = 16, 1024

#: What kernels are tried with: heads, their width, and the dtype of their rotation if it is not the rows'; of so many
#: rows of so many columns, one is tried alone, too.
_TRIED, _ROWS, _WIDTH, _ALONE = ((17, 80, torch.float32), (2, 128, None), (1, 1536, None)), 4, 3072, 2


class Fused:
    """See `plain`. `kernels`: the module of that name. Rotations, and activations without gates, are in place."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def norm(self, rows: Tensor, of: RMSNorm, added: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """`added` has the strides of the rows."""
        size = rows.shape[-1]
        out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device) if out is None else out
        self._kernels.norm[len(rows), rows[0].numel() // size](
            rows, of.weight if added is None else added, of.weight, out, rows.stride(0), out.stride(0), of.epsilon,
            SIZE=size, BLOCK=1 << (size - 1).bit_length(), ADDS=added is not None,
        )  # fmt: skip
        return out

    def rotate(self, states: Tensor, rotation: Tensor) -> Tensor:
        """See `plain.rotate`."""
        (count, heads, width), (cosines, sines) = states.shape, rotation
        self._kernels.rotate[count, -(-heads // _HEADS)](
            states, cosines, sines, states.stride(0), cosines.stride(0),
            HEADS=heads, HALF=width // 2, HEADS_BLOCK=_HEADS, BLOCK=1 << (width // 2 - 1).bit_length(),
        )  # fmt: skip
        return states

    def activate(self, rows: Tensor, name: str, gated: bool = False) -> Tensor:
        """By torch, where the kernel does not have it."""
        if name not in ACTIVATIONS:
            return plain.activate(rows, name, gated)
        columns = rows.shape[1] // (1 + gated)
        out = rows.new_empty(len(rows), columns) if gated else rows
        self._kernels.activate[len(rows), -(-columns // _COLUMNS)](
            rows, out, rows.stride(0), out.stride(0), COLUMNS=columns, BLOCK=_COLUMNS, KIND=name, GATED=gated
        )
        return out


@functools.cache
def choose_ops(device: torch.device, dtype: torch.dtype, kernels: Any = None) -> ModuleType | Fused:
    """The functions for a device: `plain`, on CUDA by those of `kernels` that agree with torch."""
    if kernels is None and device.type != "cuda":
        return plain
    try:
        fused = Fused(kernels or import_module("lakerank.model.engine.elementwise.kernels"))
    except ImportError as error:
        logger.warning("norms, rotations and activations are torch's own, which are slower: %s", error)
        return plain
    rows = torch.randn(_ROWS, _WIDTH, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    for name in ("norm", "rotate", "activate"):
        try:
            with on_device(device), torch.inference_mode():
                fault = _fault(name, fused, rows)
        except Exception as error:  # a compiler that is missing says so in many ways
            fault = f"{type(error).__name__}: {error}".partition("\n")[0]
        if fault:
            logger.warning("%s: torch's own is used, which is slower: %s", name, fault)
            setattr(fused, name, getattr(plain, name))
    return fused


def _fault(name: str, fused: Fused, rows: Tensor) -> str | None:
    """How a kernel differs from torch by more than rounding, or a row alone from itself among others; None: nowhere."""
    near = max(4 * torch.finfo(rows.dtype).eps, 1e-5)
    found, alone = _results(name, fused, rows), _results(name, fused, rows[_ALONE : _ALONE + 1])
    for expected, values, single in zip(_results(name, plain, rows), found, alone, strict=True):
        if not torch.allclose(values, expected, rtol=near, atol=near):
            return f"Triton's differs by up to {(values - expected).abs().max().item():.2g}"
        if not torch.equal(values[_ALONE : _ALONE + 1], single):
            return "of Triton's, a row has other bits among others"
    return None


def _results(name: str, functions: Any, rows: Tensor) -> list[Tensor]:
    """What a function makes of rows; with norms, sums."""
    if name == "activate":
        return [functions.activate(rows.clone(), kind, gated) for kind in ACTIVATIONS for gated in (False, True)]
    results = []
    for heads, width, dtype in _TRIED:
        states, added = (part.reshape(-1, heads, width) for part in rows[:, : 2 * heads * width].clone().chunk(2, 1))
        if name == "norm":
            of = RMSNorm(torch.linspace(0.5, 2, width).to(rows), 1e-6)
            results += [functions.norm(states, of), functions.norm(states, of, added), states]
        else:
            angles = added[:, :1, : width // 2].float()
            results.append(functions.rotate(states, torch.stack((angles.cos(), angles.sin())).to(dtype or rows.dtype)))
    return results
