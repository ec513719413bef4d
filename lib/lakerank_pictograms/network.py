"""Networks of jina-reranker-m0's architecture in any size: what training from scratch and speed tests start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig

#: Frequencies that follow time, height and width, where a config.json does not say; Qwen2-VL's own.
MROPE_SECTION = [16, 24, 24]

#: Keys of a published config.json, which are attributes of transformers' configurations.
_TEXT_SETTINGS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    "attention_dropout",
)
_VISION_SETTINGS = (
    *("depth", "embed_dim", "hidden_size", "hidden_act", "mlp_ratio", "num_heads", "in_channels", "patch_size"),
    *("spatial_merge_size", "temporal_patch_size"),
)
_TOKEN_SETTINGS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


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


def published_config(config: Qwen2VLConfig) -> dict[str, Any]:
    """config.json in the published, flat layout: the text model's settings are at the top."""
    text, vision = config.text_config, config.vision_config
    rope = text.rope_parameters
    return {
        "architectures": ["JinaVLForRanking"],
        "model_type": "qwen2_vl",
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": list(rope.get("mrope_section", MROPE_SECTION))},
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vision_config": {"model_type": "qwen2_vl", **{name: getattr(vision, name) for name in _VISION_SETTINGS}},
        **{name: getattr(text, name) for name in _TEXT_SETTINGS},
        **{name: getattr(config, name) for name in _TOKEN_SETTINGS},
    }
