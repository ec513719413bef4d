"""The decoder of Qwen2-VL, Qwen3, Qwen3-VL and T5Gemma 2 over packed rows: tokens of several inputs, unpadded.

Shapes: M packed rows, hidden size h, H query heads, G heads of keys and values, head dimension D, S tokens of a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.engine.attention import KeyValues, query_attention
from lakerank.model.engine.budget import decoder_bytes
from lakerank.model.engine.counters import count_flops
from lakerank.model.engine.elementwise.fused import choose_ops
from lakerank.model.engine.elementwise.plain import RMSNorm, RotaryTable, rotary_sections
from lakerank.model.engine.layout import PackedSuffixes, SuffixLayout
from lakerank.model.engine.linear import BatchInvariantLinear, LinearWeights, project

#: Rows whose MLP (several times as wide as the hidden states) is computed at once: what stays in the cache of each of a
#: CPU's threads, and what keeps a GPU busy.
_MLP_ROWS_CPU, _MLP_ROWS_GPU = 256, 8192

#: What a document's queries share: each layer's rotated keys and values (layers, 2, S, G, D), a view of those of all
#: documents of a micro-batch.
Prefix = Tensor

#: A layer's number, queries (M, H, D), keys and values (M, G, D) -> (M, H * D).
LayerAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DecoderLayer:
    """Weights of a layer, linear layers of the same input joined; queries and keys have norms or none.

    `queries`: outputs of `query_key_value` that are queries, H * D. `post_norm`, `post_mlp_norm`: of what attention and
    MLP add, where there are any. `kind`: of attention, which may have rotary embeddings of its own.
    """

    norm: RMSNorm
    query_key_value: LinearWeights  # ((H + 2 G) D, h)
    queries: int
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    out: LinearWeights  # (h, H D)
    mlp_norm: RMSNorm
    gate_up: LinearWeights
    down: LinearWeights
    post_norm: RMSNorm | None
    post_mlp_norm: RMSNorm | None
    kind: str

    @cached_property
    def query(self) -> LinearWeights:
        """(H D, h), where queries are computed of few rows."""
        return self.query_key_value.rows(None, self.queries)

    @cached_property
    def key_value(self) -> LinearWeights:
        """(2 G D, h), where nothing attends."""
        return self.query_key_value.rows(self.queries, None)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Input of the first layer, `rows` (M, h), and what is added after each of the first few at rows `visual` (V,).

    `deepstack`: visual features (V, h) for those layers; most networks have none.
    """

    rows: Tensor
    visual: Tensor | None = None
    deepstack: tuple[Tensor, ...] = ()

    def add_deepstack(self, number: int, hidden: Tensor) -> Tensor:
        """The output of layer `number`, (M, h), with its visual features."""
        if self.visual is None or number >= len(self.deepstack):
            return hidden
        return hidden.index_add_(0, self.visual, self.deepstack[number].to(hidden.dtype))


def split_prefixes(states: Tensor, lengths: Sequence[int]) -> list[Prefix]:
    """Prefixes of documents from the states of all their tokens, (layers, 2, M, G, D)."""
    return [*torch.split(states[:, :, : sum(lengths)], [*lengths], dim=2)]


def join_prefixes(prefixes: Sequence[Prefix]) -> Prefix:
    """One of all their tokens, in their order."""
    return prefixes[0] if len(prefixes) == 1 else torch.cat([*prefixes], dim=2)


class ScoreHead:
    """What is read of last hidden states: a linear layer, of one output for a logit, after a ReLU layer or none.

    In float32, whatever the network's dtype.
    """

    def __init__(self, output: LinearWeights, inner: LinearWeights | None = None) -> None:
        self._output = output.float().packed() if len(output.weight) > 1 else output.float()  # one output is a sum
        self._inner = None if inner is None else inner.float().packed()

    @classmethod
    def of_mlp(cls, score: Any) -> ScoreHead:
        """jina-reranker-m0's: two layers, ReLU between them."""
        weight, bias, output_weight, output_bias = score.parameters()
        return cls(LinearWeights(output_weight, output_bias), LinearWeights(weight, bias))

    @classmethod
    def of_tokens(cls, rows: Tensor, scale: float = 1.0) -> ScoreHead:
        """A language model's logit of one token, less that of another, if any: rows (1 or 2, h) of the language head.

        The sigmoid of the difference is the softmax over the two.
        """
        first, *second = rows.float()
        return cls(LinearWeights(((first - second[0] if second else first) * scale)[None], None))

    @property
    def flops(self) -> float:
        """Operations a pair, two a multiply-add."""
        layers = [self._output] if self._inner is None else [self._inner, self._output]
        return 2.0 * sum(layer.weight.numel() for layer in layers)

    def weights(self) -> Iterator[LinearWeights]:
        """Weights of its matrix products."""
        if self._inner is not None:
            yield self._inner
        if len(self._output.weight) > 1:
            yield self._output

    def __call__(self, hidden: Tensor, linear: BatchInvariantLinear) -> Tensor:
        """(Q, h) -> (Q,), or of several outputs (Q, outputs)."""
        hidden = hidden.float() if self._inner is None else F.relu(linear(hidden.float(), *self._inner))
        return linear(hidden, *self._output) if len(self._output.weight) > 1 else project(hidden, self._output)


class PackedDecoder:
    """Prefixes of documents, and logits of queries on them. Without gradients; to be used by one thread.

    `network` is one of transformers', without its language head, whose weights it takes.
    """

    def __init__(self, network: Any, head: ScoreHead) -> None:
        text = network.config.get_text_config()
        decoder = getattr(network.model, "language_model", network.model)
        rotary = decoder.rotary_emb
        self.heads, self.kv_heads = text.num_attention_heads, text.num_key_value_heads  # H, G
        self.hidden_size: int = text.hidden_size  # h
        self.head_dim: int = decoder.layers[0].self_attn.head_dim  # D
        self._sections = rotary_sections(text.model_type, rotary.config.rope_parameters, self.head_dim // 2)
        self.linear = BatchInvariantLinear()
        self.flops = count_flops(network.config, head.flops)
        self.image_token: int | None = getattr(network.config, "image_token_id", None)
        self.device, self.dtype = decoder.embed_tokens.weight.device, decoder.embed_tokens.weight.dtype
        self.bytes_per_token = decoder_bytes(network.config, self.dtype)
        self._layers = [_read_layer(layer) for layer in decoder.layers]
        self._norm, self._embeddings = RMSNorm.of(decoder.norm), decoder.embed_tokens
        self.head = head
        self.kinds = [layer.kind for layer in self._layers]
        self._rotary = {kind: _rotary_table(rotary, kind, self.dtype) for kind in self.kinds}
        self._mlp_rows = mlp_rows(self.device)
        self._activation: str = getattr(text, "hidden_act", None) or text.hidden_activation
        self.ops = choose_ops(self.device, self.dtype)

    def weights(self) -> Iterator[LinearWeights]:
        """Weights of the first layer, whose shapes all layers have, of the last one's parts, and of the score head."""
        layer, last = self._layers[0], self._layers[-1]
        yield from (layer.query_key_value, layer.out, layer.gate_up, layer.down, last.query, last.key_value)
        yield from self.head.weights()

    def embed(self, token_ids: Tensor, visual_rows: Tensor | None = None, visual: Tensor | None = None) -> Embeddings:
        """Embeddings of tokens (M,), with visual tokens at `visual_rows` (V,).

        `visual` (V, h), or (V, (1 + n) * h) with DeepStack features for the first n layers behind.
        """
        embeds: Tensor = self._embeddings(token_ids)
        if visual_rows is None or visual is None:
            return Embeddings(embeds)
        first, *deepstack = torch.split(visual, embeds.shape[1], dim=1)
        return Embeddings(embeds.index_copy(0, visual_rows, first.to(embeds.dtype)), visual_rows, tuple(deepstack))

    def prefixes(
        self,
        embeddings: Embeddings,
        positions: Tensor,
        end: int,
        lengths: Sequence[int],
        attention: LayerAttention,
        layers: int | None = None,
    ) -> list[Prefix]:
        """Prefixes of packed documents, all layers' or only the first few's: positions (A, M) below `end`.

        Nothing after the last layer's keys and values is computed: no query attends to it.
        """
        *others, last = self._layers[:layers]
        rotations, count = self._rotations(positions, end), sum(lengths)
        states = self._key_value_buffer(count)

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            _store((key, value), states[number])
            return attention(number, query, key, value)

        hidden = self._through(others, embeddings, rotations, attend)
        _store(self._key_value(last, self.ops.norm(hidden, last.norm), rotations[last.kind]), states[len(others)])
        return split_prefixes(states, lengths)

    def logits(
        self,
        embeddings: Embeddings,
        positions: Tensor,
        end: int,
        prefixes: Sequence[Prefix],
        layouts: tuple[SuffixLayout | PackedSuffixes, SuffixLayout | PackedSuffixes],
        last_rows: Tensor,
    ) -> Tensor:
        """Raw float32 logits of packed queries: positions (3, M) below `end` -> (Q',).

        `last_rows` (Q',) are the rows of their last tokens; the last layer computes nothing else but keys and values.
        `layouts`: attention of all rows, and of the last ones.
        """
        rotations, layer = self._rotations(positions, end), self._layers[-1]
        prefixes = [join_prefixes(prefixes)] if isinstance(layouts[0], tuple) else prefixes

        def attention(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return query_attention(query, key, value, [prefix[number] for prefix in prefixes], layouts[0])

        hidden = self._through(self._layers[:-1], embeddings, rotations, attention)
        normed, rotation = self.ops.norm(hidden, layer.norm), rotations[layer.kind]
        key, value = self._key_value(layer, normed, rotation)
        query = self._query(layer, normed[last_rows], rotation[:, last_rows])
        states = [prefix[-1] for prefix in prefixes]
        attended = query_attention(query, key, value, states, layouts[1])
        return self.head(
            self.ops.norm(self._after_attention(layer, hidden[last_rows], attended), self._norm), self.linear
        )

    def hidden(self, embeddings: Embeddings, positions: Tensor, end: int, attention: LayerAttention) -> Tensor:
        """Last hidden states (M, h) of packed rows: positions (A, M) below `end`."""
        hidden = self._through(self._layers, embeddings, self._rotations(positions, end), attention)
        return self.ops.norm(hidden, self._norm)

    def states(
        self, embeddings: Embeddings, positions: Tensor, end: int, attention: LayerAttention, number: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's queries (M, H, D), keys and values (M, G, D) of packed rows: positions (A, M) below `end`."""
        rotations, layer = self._rotations(positions, end), self._layers[number]
        hidden = self._through(self._layers[:number], embeddings, rotations, attention)
        return self._query_key_value(layer, self.ops.norm(hidden, layer.norm), rotations[layer.kind])

    def _through(
        self,
        layers: Sequence[DecoderLayer],
        embeddings: Embeddings,
        rotations: Mapping[str, Tensor],
        attention: LayerAttention,
    ) -> Tensor:
        """The output (M, h) of the first layers."""
        hidden = embeddings.rows
        for number, layer in enumerate(layers):
            states = self._query_key_value(layer, self.ops.norm(hidden, layer.norm), rotations[layer.kind])
            hidden = self._after_attention(layer, hidden, attention(number, *states))
            hidden = embeddings.add_deepstack(number, hidden)
        return hidden

    def cross_key_values(self, states: Tensor, count: int) -> Tensor:
        """Each layer's keys and values (layers, 2, count, G, D) of the first of an encoder's states (M, h).

        Those have no positions.
        """
        crossed = self._key_value_buffer(count)
        for layer, of_layer in zip(self._layers, crossed, strict=True):
            _store(self._key_value(layer, states, None), of_layer)
        return crossed

    def _key_value_buffer(self, rows: int) -> Tensor:
        shape = (len(self._layers), 2, rows, self.kv_heads, self.head_dim)
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _rotations(self, positions: Tensor, end: int) -> dict[str, Tensor]:
        return {kind: table.look_up(positions, self._sections, end) for kind, table in self._rotary.items()}

    def _query_key_value(self, layer: DecoderLayer, normed: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(M, h) -> rotated queries (M, H, D) and keys (M, G, D), values (M, G, D)."""
        heads, groups = self.heads, self.kv_heads
        states = self.linear(normed, *layer.query_key_value).view(len(normed), -1, self.head_dim)
        for part, norm in ((states[:, :heads], layer.query_norm), (states[:, heads:-groups], layer.key_norm)):
            if norm is not None:
                self.ops.norm(part, norm, out=part)
        query, key = torch.split(self.ops.rotate(states[:, :-groups], rotation), [heads, groups], dim=1)
        return query, key, states[:, heads + groups :]

    def _key_value(self, layer: DecoderLayer, normed: Tensor, rotation: Tensor | None) -> KeyValues:
        """(M, h) -> keys, rotated where there is a rotation, and values, both (M, G, D)."""
        key, value = self.linear(normed, *layer.key_value).view(len(normed), -1, self.head_dim).chunk(2, dim=1)
        key = key if layer.key_norm is None else self.ops.norm(key, layer.key_norm)
        return key if rotation is None else self.ops.rotate(key, rotation), value

    def _query(self, layer: DecoderLayer, normed: Tensor, rotation: Tensor) -> Tensor:
        """(M, h) -> rotated queries (M, H, D)."""
        query = self.linear(normed, *layer.query).view(len(normed), -1, self.head_dim)
        query = query if layer.query_norm is None else self.ops.norm(query, layer.query_norm)
        return self.ops.rotate(query, rotation)

    def _after_attention(self, layer: DecoderLayer, hidden: Tensor, attended: Tensor) -> Tensor:
        """Output projection and MLP: (M, h), (M, H * D) -> (M, h)."""
        out = self.linear(attended, *layer.out)
        out = out if layer.post_norm is None else self.ops.norm(out, layer.post_norm)
        for part, before in zip(*(self.linear.split(rows, self._mlp_rows) for rows in (out, hidden)), strict=True):
            part.add_(self._mlp(layer, self.ops.norm(part, layer.mlp_norm, before)))
        return out

    def _mlp(self, layer: DecoderLayer, normed: Tensor) -> Tensor:
        down = self.linear(self.ops.activate(self.linear(normed, *layer.gate_up), self._activation, True), *layer.down)
        return down if layer.post_mlp_norm is None else self.ops.norm(down, layer.post_mlp_norm)


def _store(pair: KeyValues, states: Tensor) -> None:
    """Copy a layer's keys and values without padding: two of (M, G, D) to (2, S, G, D). Views would keep all heads."""
    for part, kept in zip(pair, states, strict=True):
        kept.copy_(part[: len(kept)])


def mlp_rows(device: torch.device) -> int:
    """Rows whose MLP is computed at once."""
    return _MLP_ROWS_CPU * torch.get_num_threads() if device.type == "cpu" else _MLP_ROWS_GPU


def _read_layer(layer: Any) -> DecoderLayer:
    """A layer's weights from transformers' module."""
    attention, mlp = layer.self_attn, layer.mlp
    gemma = hasattr(layer, "pre_feedforward_layernorm")
    return DecoderLayer(
        norm=RMSNorm.of(layer.pre_self_attn_layernorm if gemma else layer.input_layernorm),
        query_key_value=LinearWeights.taken(attention.q_proj, attention.k_proj, attention.v_proj),
        queries=attention.q_proj.out_features,
        query_norm=RMSNorm.of(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=RMSNorm.of(attention.k_norm) if hasattr(attention, "k_norm") else None,
        out=LinearWeights.taken(attention.o_proj),
        mlp_norm=RMSNorm.of(layer.pre_feedforward_layernorm if gemma else layer.post_attention_layernorm),
        gate_up=LinearWeights.taken(mlp.gate_proj, mlp.up_proj),
        down=LinearWeights.taken(mlp.down_proj),
        post_norm=RMSNorm.of(layer.post_self_attn_layernorm) if gemma else None,
        post_mlp_norm=RMSNorm.of(layer.post_feedforward_layernorm) if gemma else None,
        kind=layer.attention_type if gemma else "",
    )


def _rotary_table(rotary: Any, kind: str, dtype: torch.dtype) -> RotaryTable:
    prefix = f"{kind}_" if kind else ""
    return RotaryTable(getattr(rotary, f"{prefix}inv_freq"), getattr(rotary, f"{prefix}attention_scaling"), dtype)
