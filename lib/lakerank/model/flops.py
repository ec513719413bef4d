"""Floating-point operations of a network's stages, from its shape: two for each multiply-add.

Norms, rotations, activations and the embedding look-up are left out, as is usual: they are under one per cent.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations by stage.

    `token_kv`, `token_rest`: of a token in one decoder layer, keys and values apart from what the last layer leaves
    out; `seen`: of a token and one key that it sees, in one layer; `head`: of the score head; vision likewise.
    """

    layers: int
    token_kv: float
    token_rest: float
    seen: float
    head: float
    vision_layers: int
    patch_layer: float
    patch_seen: float
    patch_ends: float

    def vision(self, patches: int) -> float:
        """Of one image, the merger included."""
        layer = patches * self.patch_layer + patches * patches * self.patch_seen
        return self.vision_layers * layer + patches * self.patch_ends

    def prefix(self, tokens: int) -> float:
        """Of a document's keys and values: its last layer computes nothing else."""
        full = tokens * (self.token_kv + self.token_rest) + tokens * (tokens + 1) / 2 * self.seen
        return (self.layers - 1) * full + tokens * self.token_kv

    def suffix(self, tokens: int, prefix_tokens: int) -> float:
        """Of a query on a prefix, score head included; its last layer computes the score token alone."""
        keys = tokens * prefix_tokens + tokens * (tokens + 1) / 2
        full = tokens * (self.token_kv + self.token_rest) + keys * self.seen
        last = tokens * self.token_kv + self.token_rest + (prefix_tokens + tokens) * self.seen
        return (self.layers - 1) * full + last + self.head


def count_flops(config: Qwen2VLConfig) -> Flops:
    """The operations of a network of this shape."""
    text, vision = config.text_config, config.vision_config
    hidden, heads = text.hidden_size, text.num_attention_heads
    dim = hidden // heads
    inner = int(vision.embed_dim * vision.mlp_ratio)
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    merged = vision.embed_dim * vision.spatial_merge_size**2
    return Flops(
        layers=text.num_hidden_layers,
        token_kv=4.0 * hidden * text.num_key_value_heads * dim,
        token_rest=2.0 * (2 * hidden * heads * dim + 3 * hidden * text.intermediate_size),
        seen=4.0 * heads * dim,
        head=2.0 * hidden * (hidden + 1),
        vision_layers=vision.depth,
        patch_layer=2.0 * vision.embed_dim * (4 * vision.embed_dim + 2 * inner),
        patch_seen=4.0 * vision.embed_dim,
        patch_ends=2.0 * patch * vision.embed_dim
        + 2.0 * merged * (merged + vision.hidden_size) / vision.spatial_merge_size**2,
    )
