"""Attention over packed rows: documents causally, queries over their document's prefix and themselves.

The shape of a call depends on one document or pair alone; others are batched in a dimension of their own, so that none
affects another's bits. Keys and values are neither repeated for a query nor, over a prefix, for a head.

Kernels for packed sequences of several lengths need no padding. A CPU uses none of them: there, attention document by
document was faster. On a GPU the first that works is used: FlashAttention (16-bit dtypes), then, where scores need not
be reproducible, FlexAttention, compiled for the device. Neither has been run on a GPU for this project: see
docs/scoring.md.

Shapes: M packed rows, H query heads, G heads of keys and values, R = H / G, head dimension D.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from lakerank.model.engine.layout import PrefixLayout, SuffixLayout, Varlen
from lakerank.model.engine.linear import elementwise

logger = logging.getLogger(__name__)

#: Rows of a block of queries on a long prefix.
QUERY_BLOCK = 64

#: Keys and values of a layer for a document's S tokens: two of (S, G, D).
KeyValues = tuple[Tensor, Tensor]

_compiled = functools.cache(functools.partial(torch.compile, dynamic=True))

#: Builds the attention of packed sequences of these lengths, which cover all rows.
VarlenKernel = Callable[[Sequence[int], torch.device], Varlen]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """(B, G, T, D) on (B, G, S, D) -> (B, G, T, D) and the log-sum-exp of each row's scores, (B, G, T) float32.

    `mask` (B, 1, T, S) is added to the scores.
    """
    if query.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, log_sum_exp = flash(query, key, value, 0.0, causal, attn_mask=mask)
        return out, log_sum_exp
    return attend_eager(query, key, value, mask, causal)


def attend_eager(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """As `attend`, all in float32: for devices without a kernel that returns log-sum-exps.

    Not in a 16-bit dtype: keys of Qwen2 have constants in some channels, whose products would take all of its digits.
    """
    scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return (scores.softmax(dim=-1) @ value.float()).to(value.dtype), scores.logsumexp(dim=-1)


def document_attention(query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout) -> Tensor:
    """Causal attention within each document: (M, H, D), two of (M, G, D) -> (M, H * D)."""
    repeats = query.shape[1] // key.shape[1]
    if layout.varlen is not None:
        return layout.varlen(query, _repeat(key, repeats), _repeat(value, repeats)).flatten(1)
    out = torch.zeros_like(query)
    for start, stop in layout.alone:
        out[start:stop] = attend_alone(query[start:stop], key[start:stop], value[start:stop], causal=True)
    for bucket in layout.buckets:
        k, v = (_repeat(rows[bucket.index], repeats).transpose(1, 2) for rows in (key, value))  # (B, H, S, D)
        attended = F.scaled_dot_product_attention(query[bucket.index].transpose(1, 2), k, v, is_causal=True)
        out[bucket.rows] = attended.transpose(1, 2).flatten(0, 1)[bucket.take]
    return out.flatten(1)


def attend_alone(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """One document: (S, H, D), two of (S, G, D) -> (S, H, D). `mask` (S, S): what is seen."""
    groups, repeats = key.shape[1], query.shape[1] // key.shape[1]
    q = query.view(len(query), groups, repeats, -1).permute(1, 2, 0, 3)  # (G, R, S, D)
    k, v = (rows.transpose(0, 1).unsqueeze(1).expand(q.shape) for rows in (key, value))  # not copied on a CPU
    attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    return attended.permute(2, 0, 1, 3).flatten(1, 2)


def _repeat(states: Tensor, repeats: int) -> Tensor:
    """Keys or values for every head: (…, G, D) -> (…, G * R, D)."""
    return states.repeat_interleave(repeats, dim=-2)


def query_attention(
    query: Tensor, key: Tensor, value: Tensor, prefixes: Sequence[KeyValues], layout: SuffixLayout
) -> Tensor:
    """Each pair's rows over its document's prefix and its own keys: (Mq, H, D), two of (M, G, D) -> (Mq, H * D).

    A short query on a short prefix has one softmax over both; else the two parts are merged by their log-sum-exps.
    """
    out = torch.zeros_like(query)
    if layout.spans:
        out = _long_attention(query, key, value, prefixes, layout)
    if layout.pairs:
        keys, values = (torch.cat([prefixes[number][part] for number in layout.documents]) for part in (0, 1))
    for bucket in layout.pairs:
        k, v = (
            torch.cat((prefix[bucket.prefix_index], suffix[bucket.own_index]), dim=1).transpose(1, 2)
            for prefix, suffix in ((keys, key), (values, value))
        )  # (P, G, S + L, D)
        attended, _ = attend(_fold_heads(query[bucket.index], key.shape[1]), k, v, bucket.mask)
        out[bucket.rows] = _unfold_heads(attended, bucket.index.shape[1]).flatten(0, 1)[bucket.take]
    return out.flatten(1)


def _long_attention(
    query: Tensor, key: Tensor, value: Tensor, prefixes: Sequence[KeyValues], layout: SuffixLayout
) -> Tensor:
    """Attention of the pairs in `layout.spans`, zero elsewhere: (Mq, H, D)."""
    own = torch.zeros_like(query)
    own_lse = torch.zeros(query.shape[:2], device=query.device)  # (Mq, H)
    for bucket in layout.own:
        k, v = (rows[bucket.own_index].transpose(1, 2) for rows in (key, value))  # (B, G, L, D)
        attended, lse = attend(_fold_heads(query[bucket.index], key.shape[1]), k, v, bucket.mask)
        length = bucket.index.shape[1]
        own[bucket.rows] = _unfold_heads(attended, length).flatten(0, 1)[bucket.take]
        own_lse[bucket.rows] = _unfold_heads(lse.unsqueeze(-1), length)[..., 0].flatten(0, 1)[bucket.take]
    shared = torch.zeros_like(query)
    shared_lse = torch.zeros_like(own_lse)
    for number, start, stop in layout.spans:
        shared[start:stop], shared_lse[start:stop] = _prefix_attention(query[start:stop], *prefixes[number])
    weight = elementwise(torch.sigmoid, own_lse - shared_lse).unsqueeze(-1)
    return (shared.float() + weight * (own.float() - shared.float())).to(query.dtype)


def _prefix_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a document's queries on its prefix: (m, H, D), two of (S, G, D) -> (m, H, D), (m, H) float32."""
    groups, rows, dim = key.shape[1], len(query), query.shape[-1]
    folded = _fold_heads(query.unsqueeze(0), groups)[0]  # (G, m * R, D)
    count = folded.shape[1]
    padded = F.pad(folded, (0, 0, 0, -count % QUERY_BLOCK))
    blocks = padded.view(groups, -1, QUERY_BLOCK, dim).transpose(0, 1)  # (blocks, G, QUERY_BLOCK, D)
    k, v = (part.transpose(0, 1).unsqueeze(0).expand(len(blocks), -1, -1, -1) for part in (key, value))
    out, lse = attend(blocks, k, v)
    out = out.transpose(0, 1).reshape(1, groups, -1, dim)[:, :, :count]
    lse = lse.transpose(0, 1).reshape(1, groups, -1, 1)[:, :, :count]
    return _unfold_heads(out, rows)[0], _unfold_heads(lse, rows)[0, ..., 0]


def _fold_heads(query: Tensor, groups: int) -> Tensor:
    """Heads that share keys become rows: (B, T, H, D) -> (B, G, T * R, D)."""
    batch, rows, _, dim = query.shape
    return query.view(batch, rows, groups, -1, dim).permute(0, 2, 1, 3, 4).flatten(2, 3)


def _unfold_heads(states: Tensor, rows: int) -> Tensor:
    """The inverse of `_fold_heads`: (B, G, T * R, D) -> (B, T, H, D)."""
    batch, groups, _, dim = states.shape
    return states.reshape(batch, groups, rows, -1, dim).permute(0, 2, 1, 3, 4).flatten(2, 3)


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
    kernel: Any = _compiled(flex_attention) if device.type == "cuda" else flex_attention

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        states = (rows.transpose(0, 1).unsqueeze(0) for rows in (query, key, value))  # (1, H, M, D)
        out: Tensor = kernel(*states, block_mask=mask)[0].transpose(0, 1)
        return out

    return attention


def flash_varlen(
    lengths: Sequence[int], device: torch.device, *, reproducible: bool = True, causal: bool = True
) -> Varlen:
    """FlashAttention. `reproducible`: keys are never split among blocks, or bits would depend on the batch."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    options = _flash_options(reproducible, causal) or {}

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Any = varlen_attn(query, key, value, ends, ends, max(lengths), max(lengths), **options)
        return cast(Tensor, out)

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
