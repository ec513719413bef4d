"""The network of jina-reranker-m0: Qwen2-VL with a score head, and the forwards that let queries share a document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel, Qwen2VLPreTrainedModel

#: Rows of patches and columns of patches of an image, before the merger joins squares of them into visual tokens.
Grid = tuple[int, int]

#: Frequencies that follow time, height and width, where a config.json does not say; Qwen2-VL's own.
MROPE_SECTION = [16, 24, 24]

#: (layer, query (B, N, L, H, D), key (B, N, L, G, D), value (B, N, L, G, D)) -> (B, N, L, H * D)
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(slots=True)
class Prefix:
    """What the queries of a document share: each layer's rotated keys and values, both (B, kv heads G, S, head dim D).

    `valid` (B, S) is False where a document of a batch is padded; None where nothing is.
    """

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    valid: Tensor | None = None


class JinaVLForRanking(Qwen2VLPreTrainedModel):  # type: ignore[misc]
    """Qwen2-VL without a language head; `score` is read at the last position of the last hidden state.

    The forwards below never rely on state kept between calls, take explicit positions, and carry gradients.
    """

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config)
        hidden = config.text_config.hidden_size
        self.model = Qwen2VLModel(config)
        self.score = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.post_init()

    def image_embeddings(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Visual tokens of images whose patches follow one another: (P, patch dim) -> (P / merge², h)."""
        visual = self.model.visual
        weight = visual.patch_embed.proj.weight
        thw = torch.tensor([[1, rows, columns] for rows, columns in grids], device=weight.device)
        tokens: Tensor = visual(patches.to(weight.device, weight.dtype), grid_thw=thw).pooler_output
        return tokens

    def embed(self, token_ids: Tensor, images: Tensor | None = None) -> Tensor:
        """Token embeddings, placeholders replaced in order by `images` (visual tokens, h): (…, L) -> (…, L, h)."""
        embeds: Tensor = self.model.language_model.embed_tokens(token_ids)
        if images is None:
            return embeds
        places = (token_ids == self.config.image_token_id).unsqueeze(-1).expand_as(embeds)
        filled: Tensor = embeds.masked_scatter(places, images.to(embeds.dtype))
        return filled

    def prefix(self, embeds: Tensor, positions: Tensor, valid: Tensor | None = None) -> Prefix:
        """Keys and values of documents: embeds (B, S, h), positions (3, B, S), padded on the right where not `valid`.

        Nothing after the last layer's keys and values is computed: no query reads it.
        """
        prefix = Prefix(valid=valid)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            prefix.layers.append((key[:, 0].transpose(1, 2), value[:, 0].transpose(1, 2)))
            return causal_attention(query, key, value)

        self._decode(embeds.unsqueeze(1), positions.unsqueeze(2), attend, keys_only_in_last=True)
        return prefix

    def suffix(self, prefix: Prefix, embeds: Tensor, positions: Tensor) -> Tensor:
        """Hidden states after the final norm of N suffixes on each of B prefixes, which stay as they are.

        embeds (B, N, L, h), positions (3, B, N, L) -> (B, N, L, h). Suffixes do not see each other; one shorter than L
        is padded on its right, and what stands in the padding reaches no real position.
        """

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return shared_prefix_attention(query, key, value, *prefix.layers[layer], prefix.valid)

        return self._decode(embeds, positions, attend)

    def whole(self, embeds: Tensor, positions: Tensor) -> Tensor:
        """Hidden states after the final norm of whole right-padded pairs: (B, S, h), (3, B, S) -> (B, S, h)."""

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return causal_attention(query, key, value)

        return self._decode(embeds.unsqueeze(1), positions.unsqueeze(2), attend)[:, 0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Raw relevance logits in float32, whatever the network's dtype: hidden at the score token (…, h) -> (…)."""
        weight, bias, last_weight, last_bias = (parameter.float() for parameter in self.score.parameters())
        with torch.autocast(hidden.device.type, enabled=False):
            inner = F.relu(F.linear(hidden.float(), weight, bias))
            # A sum and no product of matrices: with one column those round by a row's place among the others.
            logits: Tensor = (inner * last_weight[0]).sum(dim=-1) + last_bias[0]
        return logits

    def _decode(self, hidden: Tensor, positions: Tensor, attend: Attend, keys_only_in_last: bool = False) -> Tensor:
        """Run the decoder with an attention of ours: (B, N, L, h), (3, B, N, L) -> (B, N, L, h)."""
        decoder = self.model.language_model
        cos, sin = self._rotation(positions, hidden.dtype)
        for index, layer in enumerate(decoder.layers):
            normed = layer.input_layernorm(hidden)
            attention = layer.self_attn
            key = rotate(attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim)), cos, sin)
            value = attention.v_proj(normed).unflatten(-1, (-1, attention.head_dim))
            query = rotate(attention.q_proj(normed).unflatten(-1, (-1, attention.head_dim)), cos, sin)
            attended = attend(index, query, key, value)
            if keys_only_in_last and index + 1 == len(decoder.layers):
                return hidden
            hidden = hidden + attention.o_proj(attended)
            hidden = hidden + feed_forward(layer.mlp, layer.post_attention_layernorm(hidden))
        normalised: Tensor = decoder.norm(hidden)
        return normalised

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """M-RoPE: (3, B, N, L) -> cos and sin (B, N, L, 1, D); each section of frequencies follows one of t, h, w."""
        rotary = self.model.language_model.rotary_emb
        sections = rotary.config.rope_parameters.get("mrope_section", MROPE_SECTION)
        angles = positions.unsqueeze(-1).float() * rotary.inv_freq.float()  # (3, B, N, L, D / 2)
        parts = [part[index % 3] for index, part in enumerate(angles.split(sections, dim=-1))]
        both = torch.cat(parts * 2, dim=-1).unsqueeze(-2)
        return (both.cos() * rotary.attention_scaling).to(dtype), (both.sin() * rotary.attention_scaling).to(dtype)


def feed_forward(mlp: Any, hidden: Tensor) -> Tensor:
    """The gated feed-forward layer: (B, N, L, h) -> (B, N, L, h).

    On several CPU threads torch cuts an element-wise function into parts of which the last few numbers are rounded in
    another way, wherever they fall. Suffix by suffix, they fall where the suffix alone decides.
    """
    gate = mlp.gate_proj(hidden)
    if gate.device.type == "cpu" and gate.shape[1] > 1 and torch.get_num_threads() > 1:
        gate = torch.stack([mlp.act_fn(suffix) for suffix in gate.unbind(1)], dim=1)
    else:
        gate = mlp.act_fn(gate)
    out: Tensor = mlp.down_proj(gate * mlp.up_proj(hidden))
    return out


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embeddings to queries or keys (…, heads, D)."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention within a sequence: query (B, N, L, H, D), key and value (B, N, L, G, D) -> (B, N, L, H * D)."""
    shape, groups = query.shape[:3], query.shape[3] // key.shape[3]
    query, key, value = (
        states.flatten(0, 1).transpose(1, 2)
        for states in (query, key.repeat_interleave(groups, dim=3), value.repeat_interleave(groups, dim=3))
    )
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B * N, H, L, D)
    return out.transpose(1, 2).reshape(*shape, -1)


def shared_prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, valid: Tensor | None
) -> Tensor:
    """Each suffix attends to its document's prefix and, causally, to itself.

    query (B, N, L, H, D), key and value (B, N, L, G, D), prefix (B, G, S, D) -> (B, N, L, H * D). The prefix is neither
    repeated a suffix nor a head, and a suffix's own keys always stand right after it, so that a suffix's result does
    not depend on how many others there are or on its place among them.
    """
    batch, count, length, heads, dim = query.shape
    groups, size = prefix_key.shape[1], prefix_key.shape[2]
    repeats = heads // groups
    grouped = query.view(batch, count, length, groups, repeats, dim).permute(0, 3, 1, 4, 2, 5)  # (B, G, N, R, L, D)
    shape = (batch, groups, count, repeats, length)
    own = grouped.reshape(batch, groups, count, repeats * length, dim)
    to_prefix = (own.flatten(2, 3) @ prefix_key.transpose(-1, -2)).view(*shape, size)
    to_own = (own @ key.permute(0, 3, 1, 4, 2)).view(*shape, length)
    scores = torch.cat((to_prefix, to_own), dim=-1).float() * dim**-0.5
    scores = scores.masked_fill(_hidden_keys(length, size, valid, scores.device), float("-inf"))
    weights = scores.softmax(dim=-1).to(value.dtype)
    out = (weights[..., :size].reshape(batch, groups, -1, size) @ prefix_value).view(*shape, dim)
    out = out + (weights[..., size:].reshape(*own.shape[:-1], length) @ value.permute(0, 3, 1, 2, 4)).view(*shape, dim)
    merged: Tensor = out.permute(0, 2, 4, 1, 3, 5).reshape(batch, count, length, heads * dim)
    return merged


def _hidden_keys(length: int, size: int, valid: Tensor | None, device: torch.device) -> Tensor:
    """True where a key must not be seen: broadcasts over (B, G, N, R, L, S + L)."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    if valid is None:
        return F.pad(causal, (size, 0))
    padded = ~valid[:, None, None, None, None, :].expand(-1, 1, 1, 1, length, -1)
    return torch.cat((padded, causal.expand(len(valid), 1, 1, 1, -1, -1)), dim=-1)


def text_positions(start: int, count: int) -> np.ndarray:
    """M-RoPE positions of `count` text tokens: (3, count) int64, the same in time, height and width."""
    return np.tile(np.arange(start, start + count, dtype=np.int64), (3, 1))


def image_positions(start: int, grid: Grid, merge: int) -> np.ndarray:
    """M-RoPE positions of an image's visual tokens: (3, tokens) int64.

    What follows starts at `start` + the longer side, in merged patches. Source: Qwen2-VL, section 2.1.
    """
    rows, columns = grid[0] // merge, grid[1] // merge
    height, width = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    return np.stack((np.zeros_like(height), height, width)) + start
