"""Variable-length attention: kernels for packed sequences without padding, causal or not, chosen at run time.

A CPU uses none of them: there, attention document by document was faster. On a GPU the first that works is used:
FlashAttention (16-bit dtypes), then, where scores need not be reproducible, FlexAttention, compiled for the device.
Neither has been run on a GPU for this project: see docs/scoring.md.
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

#: Builds the attention of packed sequences of these lengths, which cover all rows.
VarlenKernel = Callable[[Sequence[int], torch.device], Varlen]


def choose_varlen(
    device: torch.device, dtype: torch.dtype, heads: int, dim: int, *, reproducible: bool, causal: bool = True
) -> VarlenKernel | None:
    """The first kernel that works on the device; None for attention document by document."""
    if device.type != "cuda":
        return None
    kernels: dict[str, VarlenKernel] = {}
    if dtype != torch.float32 and _flash_options(reproducible, causal) is not None:
        kernels["FlashAttention"] = functools.partial(flash_varlen, reproducible=reproducible, causal=causal)
    if not reproducible:  # FlexAttention's blocks cut documents wherever they are among the rows
        kernels["FlexAttention"] = functools.partial(flex_varlen, causal=causal)
    for name, kernel in kernels.items():
        try:
            rows = torch.zeros(256, heads, dim, device=device, dtype=dtype)
            kernel((100, 156), device)(rows, rows, rows)
        except Exception as error:  # kernels are refused in many ways, by device, dtype and size
            logger.info("%s is not available: %s", name, error)
            continue
        logger.info("attention of packed sequences: %s", name)
        return kernel
    return None


def flex_varlen(lengths: Sequence[int], device: torch.device, *, causal: bool = True) -> Varlen:
    """FlexAttention with a document mask; compiled on a GPU, eager elsewhere."""
    count = sum(lengths)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

    def visible(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        same = document[row] == document[key]
        return same & (key <= row) if causal else same

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
    """FlashAttention. `reproducible`: keys are never split among blocks, so that a document's bits do not depend on the
    batch.
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
    """Arguments of this version of torch for causal attention and unsplit keys; None where it has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"is_causal": causal}
    if "window_size" in parameters:
        options = {"window_size": (-1, 0 if causal else -1)}
    if not reproducible:
        return options
    return options | {"num_splits": 1} if "num_splits" in parameters else None


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)
