"""Attention of one sequence on a CPU by oneDNN's matrix products, which torch's own kernel does not use.

On an AMD EPYC with AVX-512 1.6 to 2.4 times as fast as that kernel, which multiplies by MKL.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.engine.linear import multiplies, multiply, padded_size

#: Numbers of tokens and of keys are padded to multiples of these; so many tokens are computed at once where others
#: attend beside them.
_TOKENS, _KEYS = 32, 64

#: The least keys: with fewer, calls cost more than they save.
_LEAST_KEYS = 192

#: Scores, and rows of them, that are computed at once by each thread: what stays in its core's cache. With more rows,
#: causally, much would be computed that none sees.
_SCORES, _ROWS = 3 * 2**17, 512


def by_products(query: Tensor, key: Tensor) -> bool:
    """Whether `attend_by_products` is here, and pays."""
    return multiplies(query) and len(key) >= _LEAST_KEYS


def attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, causal: bool = False, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """(N, H, D), two of (S, G, D) -> (N, H, D) and, where `shared`, log-sum-exps (N, H).

    `shared`: queries are of several sequences; a row's bits do not depend on others.
    """
    threads, groups, repeats = torch.get_num_threads(), key.shape[1], query.shape[1] // key.shape[1]
    keys = padded_size(len(key), _KEYS)
    at_once = min(_ROWS, _SCORES // keys) * threads // repeats
    rounded = -(-len(query) // _TOKENS) * _TOKENS if shared else padded_size(len(query), _TOKENS)
    tokens = _TOKENS if shared else min(rounded, max(1, at_once // _TOKENS) * _TOKENS)
    padded = F.pad(query, (0, 0, 0, 0, 0, rounded - len(query)))
    heads = padded.reshape(len(padded), groups, repeats, -1)  # (N', G, R, D)
    out, sums = torch.empty_like(heads), query.new_empty(heads.shape[:3])
    future = query.new_full((tokens, keys), -torch.inf).triu(1).unsqueeze(1) if causal else None
    for group in range(groups):
        k, v = (F.pad(states[:, group], (0, 0, 0, keys - len(states))) for states in (key, value))
        k.mul_(query.shape[-1] ** -0.5)
        for start in range(0, len(heads), tokens):
            rows = heads[start : start + tokens, group]  # (T, R, D)
            seen = min(keys, padded_size(start + len(rows), _KEYS)) if causal else keys
            scores = multiply(rows.flatten(0, 1), k[:seen]).view(len(rows), repeats, seen)
            if future is None:
                scores[..., len(key) :] = -torch.inf
            else:
                scores[..., start:] += future[: len(rows), :, : seen - start]
            shares = scores.softmax(dim=-1)
            out[start : start + tokens, group] = multiply(shares.flatten(0, 1), v[:seen].T).view(rows.shape)
            if shared:
                sums[start : start + tokens, group] = scores.amax(dim=-1) - shares.amax(dim=-1).log_()
    return out.flatten(1, 2)[: len(query)], sums.flatten(1, 2)[: len(query)]
