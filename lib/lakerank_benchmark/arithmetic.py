"""What the machine can do at most, and what a whole pair costs: the yardsticks beside the timings."""

from __future__ import annotations

import time

import torch

from lakerank.model.engine.counters import Flops

#: Sides of the square products that the ceiling is looked for among, by type of device, and seconds for each.
_SIDES = {"cpu": (768, 1536, 3072), "cuda": (4096, 8192)}
_SECONDS = 0.4


def whole_pair(flops: Flops, tokens: int) -> float:
    """Operations of a whole pair of so many tokens, every layer in full, images apart."""
    layer = tokens * (flops.token_kv + flops.token_rest) + tokens * (tokens + 1) / 2 * flops.seen
    return flops.layers * layer + flops.head


def matmul_ceiling(device: str, dtype: str) -> float:
    """The most operations a second that square matrix products reach on a device, two for each multiply-add."""
    where, kind = torch.device(device), getattr(torch, dtype)
    return max(_rate(side, where, kind) for side in _SIDES.get(where.type, _SIDES["cuda"]))


@torch.inference_mode()
def _rate(side: int, device: torch.device, dtype: torch.dtype) -> float:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, started = 0.0, time.perf_counter()
    left @ right
    while time.perf_counter() - started < _SECONDS:
        _settle(device)
        before = time.perf_counter()
        left @ right
        _settle(device)
        best = max(best, 2.0 * side**3 / (time.perf_counter() - before))
    return best


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
