"""Attention over packed rows: documents causally, queries over their document's prefix and themselves.

The shape of a call depends on one document or pair alone; others are batched in a dimension of their own, so that none
affects another's bits. Keys and values are neither repeated for a query nor, over a prefix, for a head.

Shapes: M packed rows, H query heads, G heads of keys and values, R = H / G, head dimension D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.engine.layout import PrefixLayout, SuffixLayout
from lakerank.model.engine.linear import elementwise

#: Rows of a block of queries on a long prefix.
QUERY_BLOCK = 64

#: Keys and values of a layer for a document's S tokens: two of (S, G, D).
KeyValues = tuple[Tensor, Tensor]


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
    """As `attend`, with a softmax in float32: for devices without a kernel that returns log-sum-exps."""
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value, scores.logsumexp(dim=-1)


def document_attention(query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout) -> Tensor:
    """Causal attention within each document: (M, H, D), two of (M, G, D) -> (M, H * D)."""
    repeats = query.shape[1] // key.shape[1]
    if layout.varlen is not None:
        return layout.varlen(query, _repeat(key, repeats), _repeat(value, repeats)).flatten(1)
    out = torch.zeros_like(query)
    for start, stop in layout.alone:
        out[start:stop] = _causal(query[start:stop], key[start:stop], value[start:stop])
    for bucket in layout.buckets:
        k, v = (_repeat(rows[bucket.index], repeats).transpose(1, 2) for rows in (key, value))  # (B, H, S, D)
        attended = F.scaled_dot_product_attention(query[bucket.index].transpose(1, 2), k, v, is_causal=True)
        out[bucket.rows] = attended.transpose(1, 2).flatten(0, 1)[bucket.take]
    return out.flatten(1)


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One document: (S, H, D), two of (S, G, D) -> (S, H, D)."""
    groups, repeats = key.shape[1], query.shape[1] // key.shape[1]
    q = query.view(len(query), groups, repeats, -1).permute(1, 2, 0, 3)  # (G, R, S, D)
    k, v = (rows.transpose(0, 1).unsqueeze(1).expand(q.shape) for rows in (key, value))  # not copied on a CPU
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).permute(2, 0, 1, 3).flatten(1, 2)


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
