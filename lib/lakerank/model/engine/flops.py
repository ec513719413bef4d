"""Floating-point operations of a network's stages, from its shape: two for each multiply-add.

Norms, rotations, activations and the embedding look-up are left out, as is usual: they are under one per cent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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


def count_flops(config: Any, head: float | None = None) -> Flops:
    """The operations of a network of transformers' `config`; `head`: of its read-out, jina-reranker-m0's by default."""
    text = config.get_text_config()
    hidden, heads = text.hidden_size, text.num_attention_heads
    dim = getattr(text, "head_dim", None) or hidden // heads
    layers, patch_layer, patch_seen, patch_ends = _count_vision(getattr(config, "vision_config", None))
    return Flops(
        layers=text.num_hidden_layers,
        token_kv=4.0 * hidden * text.num_key_value_heads * dim,
        token_rest=2.0 * (2 * hidden * heads * dim + 3 * hidden * text.intermediate_size),
        seen=4.0 * heads * dim,
        head=2.0 * hidden * (hidden + 1) if head is None else head,
        vision_layers=layers,
        patch_layer=patch_layer,
        patch_seen=patch_seen,
        patch_ends=patch_ends,
    )


def _count_vision(vision: Any) -> tuple[int, float, float, float]:
    """Layers, operations of a patch in one, of a patch and one it sees, and of a patch at both ends; 0 without eyes.

    Qwen3-VL's encoder says its width by another name, and has a merger for each layer that it hands on as well.
    """
    if vision is None:
        return 0, 0.0, 0.0, 0.0
    qwen3 = hasattr(vision, "out_hidden_size")
    width = vision.hidden_size if qwen3 else vision.embed_dim
    out = vision.out_hidden_size if qwen3 else vision.hidden_size
    inner = vision.intermediate_size if qwen3 else int(width * vision.mlp_ratio)
    mergers = 1 + len(vision.deepstack_visual_indexes) if qwen3 else 1
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    merged = width * vision.spatial_merge_size**2
    ends = 2.0 * patch * width + mergers * 2.0 * merged * (merged + out) / vision.spatial_merge_size**2
    return vision.depth, 2.0 * width * (4 * width + 2 * inner), 4.0 * width, ends
