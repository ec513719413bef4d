"""Networks of jina-reranker-m0's architecture in any size: what training from scratch and speed tests start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a network; M-RoPE sections keep the published 16 : 24 : 24 of half a head's width."""

    vocabulary: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    vision_depth: int
    vision_width: int
    vision_heads: int


def network_config(shape: Shape, token_ids: Mapping[str, int], padding: int | None) -> Qwen2VLConfig:
    """A network's configuration. `token_ids` are those of images and videos, by config.json's names; `padding` is the
    id of the padding token (None: there is none).
    """
    half = shape.hidden_size // shape.heads // 2
    sections = [half // 4, (half - half // 4) // 2]
    return Qwen2VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "pad_token_id": padding,
            "bos_token_id": padding,
            "eos_token_id": padding,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [*sections, half - sum(sections)],
            },
        },
        vision_config={
            "depth": shape.vision_depth,
            "embed_dim": shape.vision_width,
            "hidden_size": shape.hidden_size,
            "num_heads": shape.vision_heads,
        },
        **token_ids,
    )
