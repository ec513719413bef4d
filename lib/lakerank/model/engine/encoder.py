"""XLM-RoBERTa and BERT with a score head over packed rows: sequences of pairs, unpadded, each attending to itself.

Sources: transformers, `models/xlm_roberta/modeling_xlm_roberta.py` (`XLMRobertaForSequenceClassification`: post-norm
layers, exact GELU, positions counted from `pad_token_id` + 1, a head of dense, tanh and projection on the first token),
with which jina's own implementation of the same network agrees (jinaai/jina-reranker-v2-base-multilingual,
`modeling_xlm_roberta.py`, `block.py`, `mha.py`); and `models/bert/modeling_bert.py` (`BertForSequenceClassification`:
the same layers and head, positions counted from 0, tokens of two types).

Shapes: M packed rows, hidden size h, H heads, head dimension D; B sequences of L tokens each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.engine.budget import layer_bytes
from lakerank.model.engine.layout import Varlen
from lakerank.model.engine.linear import BatchInvariantLinear, LinearWeights, project

#: Rows whose MLP, four times as wide as the hidden states, is computed at once: what stays in a core's cache, and what
#: keeps a GPU busy.
_MLP_ROWS_CPU, _MLP_ROWS_GPU = 256, 16384


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What config.json says of the network. XLM-RoBERTa's `positions` count the `padding` + 1 that no token has."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    inner: int
    positions: int
    types: int
    padding: int
    epsilon: float

    def flops(self, tokens: int) -> float:
        """Operations that a sequence of so many tokens needs, two a multiply-add; its last layer, its first token's."""
        h = self.hidden
        layer = 2.0 * tokens * (4 * h * h + 2 * h * self.inner) + 4.0 * tokens * tokens * h
        last = 4.0 * tokens * h * h + 2.0 * (2 * h * h + 2 * h * self.inner) + 4.0 * tokens * h
        return (self.layers - 1) * layer + last + 2.0 * h * (h + 1)


class LayerNorm(NamedTuple):
    """Scale and shift, both (h,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """Weights of a layer; `query_key_value` (3 h, h) are three linear layers joined in that order."""

    query_key_value: LinearWeights
    out: LinearWeights
    norm: LayerNorm
    up: LinearWeights
    down: LinearWeights
    mlp_norm: LayerNorm


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """A network's tensors: `words` (vocabulary, h), `positions` (positions, h), `types` (types, h)."""

    words: Tensor
    positions: Tensor
    types: Tensor
    norm: LayerNorm
    layers: tuple[EncoderLayer, ...]
    dense: LinearWeights
    score: LinearWeights


#: Numbers of adjacent sequences that share a call of attention, and their length.
EqualLengths = Sequence[tuple[int, int]]


class PackedEncoder:
    """Logits of packed sequences, without gradients.

    Thread-safe; on a CPU each thread must have one of torch's threads to itself, or a row's bits depend on its place.
    """

    def __init__(self, shape: EncoderShape, weights: EncoderWeights) -> None:
        self.shape = shape
        self.linear = BatchInvariantLinear()
        self.device, self.dtype = weights.words.device, weights.words.dtype
        self.bytes_per_token = layer_bytes(shape.hidden, shape.inner, self.dtype)  # of one layer: nothing is kept
        self._weights = weights
        positions, types = weights.positions, weights.types.float()
        self._positions = torch.cat([(positions.float() + row).to(positions.dtype) for row in types])
        self._dense, self._score = weights.dense.float(), weights.score.float()
        self._mlp_rows = _MLP_ROWS_CPU if self.device.type == "cpu" else _MLP_ROWS_GPU

    def weights(self) -> Iterator[LinearWeights]:
        """Weights of the first layer, whose shapes all layers have, and of the head."""
        layer = self._weights.layers[0]
        yield from (layer.query_key_value, layer.out, layer.up, layer.down, self._dense)

    @torch.inference_mode()
    def logits(
        self, token_ids: Tensor, positions: Tensor, lengths: Sequence[int], varlen: Varlen | None = None
    ) -> Tensor:
        """Raw float32 logits (P,) of sequences of these lengths.

        `token_ids` (M,) int64, M padded as `linear` needs: rows after the sequences' are padding. `positions` (M,)
        int64: rows of the positions' table, which has all positions for each type of token in turn. `varlen`: attention
        of all rows at once, where there is a kernel for it.
        """
        weights = self._weights
        groups = [(len(list(adjacent)), length) for length, adjacent in groupby(lengths)]
        starts = torch.tensor([0, *accumulate(lengths[:-1])])
        padding = self.linear.padded(len(starts)) - len(starts)
        first = torch.cat([starts, starts[:1].expand(padding)]).to(self.device)  # (P',)
        hidden = self._normed(weights.words[token_ids].add_(self._positions[positions]), weights.norm)
        for layer in weights.layers[:-1]:
            query, key, value = self._heads(hidden, layer.query_key_value).unbind(1)
            attended = varlen(query, key, value) if varlen else _attention(query, key, value, groups)
            hidden = self._after_attention(layer, hidden, attended)
        hidden = self._last_layer(weights.layers[-1], hidden, first, groups, varlen)
        return self._head(hidden)[: len(lengths)]

    def _last_layer(
        self, layer: EncoderLayer, hidden: Tensor, first: Tensor, groups: EqualLengths, varlen: Varlen | None
    ) -> Tensor:
        """The last layer for each sequence's first token alone, rows `first` (P',): (M, h) -> (P', h)."""
        if varlen:
            query, key, value = self._heads(hidden, layer.query_key_value).unbind(1)
            attended = varlen(query, key, value)[first]
        else:
            h = self.shape.hidden
            key, value = self._heads(hidden, layer.query_key_value.rows(h, None)).unbind(1)
            query = self._heads(hidden[first], layer.query_key_value.rows(None, h))[:, 0]
            attended = _attention(query, key, value, groups, first_only=True)
        return self._after_attention(layer, hidden[first], attended)

    def _heads(self, hidden: Tensor, weights: LinearWeights) -> Tensor:
        """(M, h) -> (M, number of joined layers, H, D)."""
        states = self.linear(hidden, *weights)
        return states.view(len(hidden), -1, self.shape.heads, self.shape.hidden // self.shape.heads)

    def _after_attention(self, layer: EncoderLayer, hidden: Tensor, attended: Tensor) -> Tensor:
        """Output projection, MLP and norms: (M, h), (M, H, D) -> (M, h)."""
        out = self.linear(attended.flatten(1), *layer.out)
        hidden = self._normed(out.add_(hidden), layer.norm)
        for part in self.linear.split(hidden, self._mlp_rows):
            inner = F.gelu(self.linear(part, *layer.up))
            part.copy_(self._normed(self.linear(inner, *layer.down).add_(part), layer.mlp_norm))
        return hidden

    def _normed(self, rows: Tensor, norm: LayerNorm) -> Tensor:
        return F.layer_norm(rows, (rows.shape[-1],), *norm, self.shape.epsilon)

    def _head(self, hidden: Tensor) -> Tensor:
        """Raw logits in float32, whatever the network's dtype: (P', h) -> (P',)."""
        return project(torch.tanh(self.linear(hidden.float(), *self._dense)), self._score)


def _attention(query: Tensor, key: Tensor, value: Tensor, groups: EqualLengths, first_only: bool = False) -> Tensor:
    """Attention within each sequence: three of (M, H, D) -> (M, H, D), zero in padding.

    `first_only`: of each sequence's first token, whose queries are (P', H, D) -> (P', H, D).
    """
    out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
    start = key_start = 0
    for count, key_length in groups:
        length = 1 if first_only else key_length
        rows, keys = slice(start, start + count * length), slice(key_start, key_start + count * key_length)
        k, v = (_batched(states[keys], key_length) for states in (key, value))
        attended = F.scaled_dot_product_attention(_batched(query[rows], length), k, v)
        out[rows] = attended.transpose(1, 2).flatten(0, 1)
        start, key_start = rows.stop, keys.stop
    return out


def _batched(states: Tensor, length: int) -> Tensor:
    """(B * L, H, D) -> (B, H, L, D), not copied."""
    return states.view(-1, length, *states.shape[1:]).transpose(1, 2)
