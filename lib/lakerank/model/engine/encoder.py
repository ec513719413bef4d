"""XLM-RoBERTa with a score head over packed rows: pairs one after the other, unpadded, attending each to itself.

Sources: transformers, `models/xlm_roberta/modeling_xlm_roberta.py` (`XLMRobertaForSequenceClassification`: post-norm
layers, exact GELU, positions counted from `pad_token_id` + 1, a head of dense, tanh and projection on the first token),
with which jina's own implementation of the same network agrees (jinaai/jina-reranker-v2-base-multilingual,
`modeling_xlm_roberta.py`, `block.py`, `mha.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.cross_encoder.config import EncoderShape
from lakerank.model.engine.layout import Varlen
from lakerank.model.engine.linear import RowProducts

#: Rows whose inner layer, four times as wide as the hidden states, is in memory at once: what stays in a core's cache,
#: and what keeps a GPU busy.
INNER_ROWS_CPU = 256
INNER_ROWS_GPU = 16384


@dataclass(frozen=True, slots=True)
class Linear:
    """weight (N, K) and bias (N,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Norm:
    """Scale and shift of a layer norm, both (h,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """One layer; `query_key_value` (3 h, h) is the three products joined in that order."""

    query_key_value: Linear
    out: Linear
    norm: Norm
    up: Linear
    down: Linear
    inner_norm: Norm


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """A network's tensors: `words` (vocabulary, h), `places` (positions, h), `types` (types, h)."""

    words: Tensor
    places: Tensor
    types: Tensor
    norm: Norm
    layers: tuple[EncoderLayer, ...]
    dense: Linear
    score: Linear


@dataclass(frozen=True, slots=True)
class Run:
    """`count` pairs of `length` tokens each, one after the other from row `start` on."""

    start: int
    count: int
    length: int


def runs_of(lengths: Sequence[int]) -> list[Run]:
    """Neighbours of the same length, which share a call of attention."""
    runs: list[Run] = []
    row = 0
    for length in lengths:
        if runs and runs[-1].length == length:
            last = runs.pop()
            runs.append(Run(last.start, last.count + 1, length))
        else:
            runs.append(Run(row, 1, length))
        row += length
    return runs


class PackedEncoder:
    """Logits of packed pairs. Without gradients; any number of threads may ask at once, on a processor each with one of
    torch's threads to itself, or a row's bits go by its place."""

    def __init__(self, shape: EncoderShape, weights: EncoderWeights, products: RowProducts | None = None) -> None:
        self.shape = shape
        self.products = products or RowProducts()
        self._weights = weights
        self._places = (weights.places.float() + weights.types[0].float()).to(weights.places.dtype)
        self._dense = Linear(weights.dense.weight.float(), weights.dense.bias.float())
        self._score = Linear(weights.score.weight.float(), weights.score.bias.float())
        self._inner_rows = INNER_ROWS_CPU if self.device.type == "cpu" else INNER_ROWS_GPU

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weights.words.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return self._weights.words.dtype

    def products_made(self) -> Iterator[Linear]:
        """The first layer's weights, which stand for all layers', and the head's."""
        layer = self._weights.layers[0]
        yield from (layer.query_key_value, layer.out, layer.up, layer.down, self._dense)

    @torch.inference_mode()
    def logits(
        self, token_ids: Tensor, positions: Tensor, lengths: Sequence[int], varlen: Varlen | None = None
    ) -> Tensor:
        """Raw float32 logits (P,) of pairs of these lengths, one after the other.

        Args:
            token_ids: (M,) int64, M a multiple of `products.multiple`; rows beyond the pairs' only fill.
            positions: (M,) int64, each token's row of the table of positions.
            varlen: attention of all rows at once, where there is a kernel for it.
        """
        weights, runs = self._weights, runs_of(lengths)
        first = torch.tensor([run.start + n * run.length for run in runs for n in range(run.count)])
        asking = self._filled(first).to(self.device)
        hidden = weights.words[token_ids].add_(self._places[positions])
        hidden = self._normed(hidden, weights.norm)
        for layer in weights.layers[:-1]:
            query, key, value = self._heads(hidden, layer.query_key_value).unbind(1)
            attended = varlen(query, key, value) if varlen else _attention(query, key, value, runs)
            hidden = self._after_attention(layer, hidden, attended)
        hidden = self._last_layer(weights.layers[-1], hidden, asking, runs, varlen)
        return self._head(hidden)[: len(lengths)]

    def _last_layer(
        self, layer: EncoderLayer, hidden: Tensor, asking: Tensor, runs: Sequence[Run], varlen: Varlen | None
    ) -> Tensor:
        """The last layer for each pair's first token alone, `asking` (P',): (M, h) -> (P', h)."""
        if varlen:
            query, key, value = self._heads(hidden, layer.query_key_value).unbind(1)
            attended = varlen(query, key, value)[asking]
        else:
            h = self.shape.hidden
            joined = layer.query_key_value
            key, value = self._heads(hidden, Linear(joined.weight[h:], joined.bias[h:])).unbind(1)
            query = self._heads(hidden[asking], Linear(joined.weight[:h], joined.bias[:h]))[:, 0]
            attended = _first_token_attention(query, key, value, runs)
        return self._after_attention(layer, hidden[asking], attended)

    def _filled(self, rows: Tensor) -> Tensor:
        """Row numbers, filled up with the first of them to what products are made with."""
        return torch.cat([rows, rows[:1].expand(self.products.filled(len(rows)) - len(rows))])

    def _heads(self, hidden: Tensor, joined: Linear) -> Tensor:
        """(M, h) -> (M, products joined, heads, head dim)."""
        states = self.products.linear(hidden, joined.weight, joined.bias)
        return states.view(len(hidden), -1, self.shape.heads, self.shape.hidden // self.shape.heads)

    def _after_attention(self, layer: EncoderLayer, hidden: Tensor, attended: Tensor) -> Tensor:
        """A layer's remaining half: (M, h), (M, heads, head dim) -> (M, h)."""
        out = self.products.linear(attended.flatten(1), layer.out.weight, layer.out.bias)
        hidden = self._normed(out.add_(hidden), layer.norm)
        for part in self.products.parts(hidden, self._inner_rows):
            inner = F.gelu(self.products.linear(part, layer.up.weight, layer.up.bias))
            down = self.products.linear(inner, layer.down.weight, layer.down.bias)
            part.copy_(self._normed(down.add_(part), layer.inner_norm))
        return hidden

    def _normed(self, rows: Tensor, norm: Norm) -> Tensor:
        return F.layer_norm(rows, (rows.shape[-1],), norm.weight, norm.bias, self.shape.epsilon)

    def _head(self, hidden: Tensor) -> Tensor:
        """Raw logits in float32, whatever the network's dtype: (P', h) -> (P',)."""
        inner = torch.tanh(self.products.linear(hidden.float(), self._dense.weight, self._dense.bias))
        # A sum and no product of matrices: with one column those round by a row's place among the others.
        logits: Tensor = (inner * self._score.weight[0]).sum(dim=-1) + self._score.bias[0]
        return logits


def _attention(query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run]) -> Tensor:
    """Each pair's tokens among themselves: three of (M, H, D) -> (M, H, D), zero where rows only fill."""
    out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
    for run in runs:
        stop = run.start + run.count * run.length
        q, k, v = (_batched(rows[run.start : stop], run) for rows in (query, key, value))
        out[run.start : stop] = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
    return out


def _first_token_attention(query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run]) -> Tensor:
    """Each pair's first token over its pair: (P', H, D), two of (M, H, D) -> (P', H, D)."""
    out = torch.zeros_like(query)
    pair = 0
    for run in runs:
        stop = run.start + run.count * run.length
        k, v = (_batched(rows[run.start : stop], run) for rows in (key, value))
        q = query[pair : pair + run.count].unsqueeze(2)  # (B, H, 1, D)
        out[pair : pair + run.count] = F.scaled_dot_product_attention(q, k, v)[:, :, 0]
        pair += run.count
    return out


def _batched(rows: Tensor, run: Run) -> Tensor:
    """(B * L, H, D) -> (B, H, L, D), not copied."""
    return rows.view(run.count, run.length, *rows.shape[1:]).transpose(1, 2)
