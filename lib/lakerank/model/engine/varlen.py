"""Kernels for the attention of packed sequences without padding, causal or not; chosen among at run time.

A CPU uses none of them: there, attention document by document was faster. On a GPU the first that works is taken:
FlashAttention over sequences of any length (16-bit types), then, where bits need not hold, FlexAttention, compiled for
the device. Neither has been run on a GPU for this project: see docs/scoring.md.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from lakerank.model.engine.layout import Varlen

logger = logging.getLogger(__name__)

#: Makes the attention of packed sequences of these lengths, which fill all rows.
VarlenKind = Callable[[Sequence[int], torch.device], Varlen]


def choose_varlen(
    device: torch.device, dtype: torch.dtype, heads: int, dim: int, *, reproducible: bool, causal: bool = True
) -> VarlenKind | None:
    """The first kind that works on the device; None for attention document by document."""
    if device.type != "cuda":
        return None
    kinds: dict[str, VarlenKind] = {}
    if dtype != torch.float32 and _flash_options(reproducible, causal) is not None:
        kinds["FlashAttention"] = functools.partial(flash_varlen, reproducible=reproducible, causal=causal)
    if not reproducible:  # FlexAttention's blocks cut documents wherever they lie among the rows
        kinds["FlexAttention"] = functools.partial(flex_varlen, causal=causal)
    for name, kind in kinds.items():
        try:
            rows = torch.zeros(256, heads, dim, device=device, dtype=dtype)
            kind((100, 156), device)(rows, rows, rows)
        except Exception as error:  # kernels are refused in many ways, by device, type and size
            logger.info("%s does not work here: %s", name, error)
            continue
        logger.info("attention of packed sequences: %s", name)
        return kind
    return None


def flex_varlen(lengths: Sequence[int], device: torch.device, *, causal: bool = True) -> Varlen:
    """FlexAttention with a mask of documents; compiled where it has a kernel, plain elsewhere."""
    count = sum(lengths)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

    def visible(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        together = document[row] == document[key]
        return together & (key <= row) if causal else together

    mask = create_block_mask(visible, None, None, count, count, device=device)
    kernel: Any = _compiled_flex() if device.type == "cuda" else flex_attention

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        states = (rows.transpose(0, 1).unsqueeze(0) for rows in (query, key, value))  # (1, H, M, D)
        out: Tensor = kernel(*states, block_mask=mask)[0].transpose(0, 1)
        return out

    return attention


def flash_varlen(
    lengths: Sequence[int], device: torch.device, *, reproducible: bool = True, causal: bool = True
) -> Varlen:
    """FlashAttention. `reproducible`: keys are never split among blocks, so that a document's bits do not depend on
    those beside it.
    """
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    options = _flash_options(reproducible, causal) or {}

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Any = varlen_attn(query, key, value, ends, ends, max(lengths), max(lengths), **options)
        result: Tensor = out
        return result

    return attention


def _flash_options(reproducible: bool, causal: bool) -> dict[str, Any] | None:
    """How this version of torch is told to be causal or not, and not to split keys; None where it cannot be."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"is_causal": causal}
    if "window_size" in known:
        options = {"window_size": (-1, 0 if causal else -1)}
    if not reproducible:
        return options
    return options | {"num_splits": 1} if "num_splits" in known else None


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)
