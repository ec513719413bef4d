"""Document-major forward pass with gradients: each document's prefix is computed once and shared by its queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lakerank.training.sequences import Sides


@dataclass(frozen=True)
class PairStates:
    """What a forward pass leaves: logits when it went through the whole network, and states where it was tapped."""

    document_states: Tensor  # (D, H) at each document's last token, entering layer `tap`
    document_positions: Tensor  # (3, D), as the rotary embedding of pictures wants them
    pair_states: Tensor  # (P, S, H) at the tokens of each pair's query, entering layer `tap`
    pair_positions: Tensor  # (3, P, S)
    pair_ends: Tensor  # (P,) which of them is the score token: the last that is no padding
    logits: Tensor | None  # (P,) float32

    @property
    def score_states(self) -> Tensor:
        """(P, H) at each pair's score token, entering layer `tap`."""
        return self.pair_states[torch.arange(len(self.pair_ends), device=self.pair_ends.device), self.pair_ends]


class _Recorder:
    """Stands where a key–value cache would: keeps one layer's keys and values, and changes nothing."""

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values
        return keys, values


class _Prefix:
    """Stands where a key–value cache would: puts each pair's document prefix before its own keys and values."""

    def __init__(self, recorder: _Recorder, rows: Tensor) -> None:
        self._keys, self._values, self._rows = recorder.keys, recorder.values, rows

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any) -> tuple[Tensor, Tensor]:
        # (D, heads, L, d) -> (P, heads, L, d), then along the sequence
        return (
            torch.cat([self._keys[self._rows], keys], dim=2),
            torch.cat([self._values[self._rows], values], dim=2),
        )


def score_pairs(
    network: Any,
    documents: Sides,
    queries: Sides,
    visual: Tensor | None,
    pair_documents: Tensor,
    pair_queries: Tensor,
    tap: int,
    *,
    whole: bool = True,
    checkpointing: bool = False,
) -> PairStates:
    """Score pairs (`pair_documents[i]`, `pair_queries[i]`), both (P,), gradients included.

    `visual` holds the merged visual tokens (T, H) of the documents' images, then of the queries' images. With
    `whole=False` the layers from `tap` on are not computed; `checkpointing` keeps the states between layers alone and
    computes what is inside them again for the gradients. Attention must be eager: its masks are additive floats.
    """
    text = network.model.language_model
    document_embeds, query_embeds = _embed(network, documents, queries, visual)
    prefix_mask = _causal(documents.ids.shape[1], document_embeds)
    prefix_rotary = text.rotary_emb(document_embeds, documents.positions)
    suffix_positions = queries.positions[:, pair_queries] + documents.next_positions[pair_documents][None, :, None]
    hidden = query_embeds[pair_queries]  # (P, S, H)
    suffix_rotary = text.rotary_emb(hidden, suffix_positions)
    suffix_mask = _suffix_mask(documents, pair_documents, hidden)
    rows = torch.arange(len(pair_queries), device=hidden.device)
    ends, last = documents.lengths - 1, queries.lengths[pair_queries] - 1
    every = torch.arange(len(ends), device=hidden.device)
    prefix, tapped = document_embeds, None

    def through(layer: Any, prefix: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        recorder = _Recorder()
        prefix = layer(prefix, attention_mask=prefix_mask, position_embeddings=prefix_rotary, past_key_values=recorder)
        past = _Prefix(recorder, pair_documents)
        hidden = layer(hidden, attention_mask=suffix_mask, position_embeddings=suffix_rotary, past_key_values=past)
        return prefix, hidden

    layers = text.layers if whole else text.layers[:tap]
    for index, layer in enumerate(layers):
        if index == tap:
            tapped = (prefix[every, ends], hidden)
        again = checkpointing and torch.is_grad_enabled()
        prefix, hidden = _again(through, layer, prefix, hidden) if again else through(layer, prefix, hidden)
    if tapped is None:
        tapped = (prefix[every, ends], hidden)
    logits = network.score(text.norm(hidden[rows, last])).float().squeeze(-1) if whole else None  # (P, 1) -> (P,)
    return PairStates(
        document_states=tapped[0],
        document_positions=documents.positions[:, every, ends],
        pair_states=tapped[1],
        pair_positions=suffix_positions,
        pair_ends=last,
        logits=logits,
    )


def bag_states(network: Any, documents: Sides, queries: Sides, visual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means (D, H) and (Q, H) of what the first layer would read of each row's own tokens; no layer is computed."""
    norm = network.model.language_model.layers[0].input_layernorm
    states = []
    for side, embeds in zip((documents, queries), _embed(network, documents, queries, visual), strict=True):
        steps = torch.arange(side.ids.shape[1], device=side.ids.device)
        own = (steps >= side.bodies[:, :1]) & (steps < side.bodies[:, 1:])  # (B, L)
        states.append((norm(embeds) * own.unsqueeze(-1)).sum(1) / own.sum(1, keepdim=True).clamp(min=1))
    return states[0], states[1]


def _again(function: Any, *arguments: Any) -> Any:
    """Call, keeping the arguments alone; what is inside is computed again for the gradients (Chen et al. 2016)."""
    return checkpoint(function, *arguments, use_reentrant=False)


def _embed(network: Any, documents: Sides, queries: Sides, visual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Token embeddings (D, L, H) and (Q, S, H), visual tokens put in their places."""
    embed = network.model.language_model.embed_tokens
    sides = [embed(documents.ids), embed(queries.ids)]
    if visual is None:
        return sides[0], sides[1]
    start = 0
    for index, batch in enumerate((documents, queries)):
        mask = batch.ids == network.config.image_token_id  # (B, L)
        count = int(mask.sum())
        places = mask.unsqueeze(-1).expand_as(sides[index])
        sides[index] = sides[index].masked_scatter(places, visual[start : start + count].to(sides[index].dtype))
        start += count
    if start != len(visual):
        raise ValueError(f"{len(visual)} visual tokens for {start} places")
    return sides[0], sides[1]


def _causal(length: int, like: Tensor) -> Tensor:
    """Additive mask (1, 1, L, L)."""
    mask = torch.full((length, length), torch.finfo(torch.float32).min, device=like.device)
    return mask.triu(1)[None, None]


def _suffix_mask(documents: Sides, pair_documents: Tensor, hidden: Tensor) -> Tensor:
    """Additive mask (P, 1, S, L + S): a query sees its document without the padding, then itself causally."""
    pairs, length = hidden.shape[:2]
    steps = torch.arange(documents.ids.shape[1], device=hidden.device)
    padding = steps[None] >= documents.lengths[:, None]  # (D, L)
    lowest = torch.finfo(torch.float32).min
    prefix = torch.zeros(padding.shape, device=hidden.device).masked_fill(padding, lowest)[pair_documents]  # (P, L)
    own = _causal(length, hidden).expand(pairs, 1, length, length)
    return torch.cat([prefix[:, None, None, :].expand(-1, 1, length, -1), own], dim=-1)


def encode_images(vision: nn.Module, pixels: Tensor, checkpointing: bool = False) -> Tensor:
    """Merged visual tokens (N·T, H) of N equally large images given as normalised pixels (N, 3, height, width).

    Equal to calling the vision encoder on their patches, but in one batch: on a CPU the encoder attends image by image.
    """
    encoder: Any = vision
    patch = encoder.config.patch_size
    merge = encoder.config.spatial_merge_size
    grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    patches = patchify(pixels, patch, merge)  # (N, K, 3·patch²)
    weight = encoder.patch_embed.proj.weight.sum(2).flatten(1)  # still images repeat: one time step counts for all
    hidden = nn.functional.linear(patches.to(weight.dtype), weight)  # (N, K, E)
    angles = _patch_angles(grid, merge, encoder.config.embed_dim // encoder.config.num_heads)
    cos, sin = (table.to(hidden.device) for table in angles)

    def through(block: Any, hidden: Tensor) -> Tensor:
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin)
        mixed: Tensor = hidden + block.mlp(block.norm2(hidden))
        return mixed

    for block in encoder.blocks:
        again = checkpointing and torch.is_grad_enabled()
        hidden = _again(through, block, hidden) if again else through(block, hidden)
    merged: Tensor = encoder.merger(hidden.flatten(0, 1))
    return merged


def patchify(pixels: Tensor, patch: int, merge: int) -> Tensor:
    """(N, 3, H, W) -> (N, patches, 3·patch²), patches ordered by merge block, as Qwen2-VL's image processor does."""
    count, channels, height, width = pixels.shape
    split = pixels.reshape(
        count, channels, height // (patch * merge), merge, patch, width // (patch * merge), merge, patch
    )
    return split.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count, -1, channels * patch * patch)


def _patch_angles(grid: tuple[int, int], merge: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (K, d) of Qwen2-VL's axial rotary embedding: half the frequencies turn by row, half by column."""
    rows = torch.arange(grid[0])[:, None].expand(grid)
    columns = torch.arange(grid[1])[None].expand(grid)
    places = torch.stack([rows, columns])[:, None].float()  # (2, 1, rows, columns)
    ordered = patchify(places.transpose(0, 1), 1, merge)[0]  # (K, 2)
    frequencies = 1 / 10000 ** (torch.arange(0, head_dim // 2, 2) / (head_dim // 2))
    angles = (ordered[:, :, None] * frequencies).flatten(1).repeat(1, 2)  # (K, d)
    return angles.cos(), angles.sin()


def _attend(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Full attention within each image: (N, K, E) -> (N, K, E)."""
    count, length, width = hidden.shape
    heads = attention.num_heads
    query, key, value = attention.qkv(hidden).view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    weights = (query @ key.transpose(2, 3) * attention.scaling).softmax(-1)
    mixed = (weights.to(value.dtype) @ value).transpose(1, 2).reshape(count, length, width)
    output: Tensor = attention.proj(mixed)
    return output


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (…, L, d) by angles (L, d)."""
    half = states.shape[-1] // 2
    turned = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
    return (states.float() * cos + turned.float() * sin).to(states.dtype)
