"""The network of jina-reranker-m0: read from a checkpoint in either naming, written as published."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel, Qwen2VLPreTrainedModel

from lakerank.model.checkpoint import WEIGHTS_NAME
from lakerank.model.jina_m0.config import Settings
from lakerank.model.weights import build_network, check_stored, current_name, fill_network, merge_adapter, read_tensors

#: Frequencies that follow time, height and width, where a config.json does not say; Qwen2-VL's own.
MROPE_SECTION = [16, 24, 24]

#: A language head that ranking does not use; published checkpoints may still have it.
_UNUSED = frozenset({"lm_head.weight"})

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


class JinaVLForRanking(Qwen2VLPreTrainedModel):  # type: ignore[misc]
    """Qwen2-VL with a score head, read at the last position of the last hidden state, in place of a language head.

    Tensors have the names of newer transformers. Scoring runs them in `engine.decoder` and `engine.vision`.
    """

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config)
        hidden = config.text_config.hidden_size
        self.model = Qwen2VLModel(config)
        self.score = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.post_init()


def load_network(
    folder: Path, settings: Settings, device: str | torch.device = "cpu", adapter: str | None = None
) -> JinaVLForRanking:
    """A checkpoint's network on a device, in evaluation mode, an adapter merged into it.

    Raises CheckpointError: the weights or the adapter do not fit config.json.
    """
    network: JinaVLForRanking = build_network(Qwen2VLConfig, JinaVLForRanking, settings.config, str(folder))
    check_stored(network, folder, current_name, _UNUSED)
    fill_network(network, read_tensors(folder, getattr(torch, settings.dtype), current_name, _UNUSED), str(folder))
    if adapter is not None:
        merge_adapter(network, adapter, current_name)
    network.to(device)
    return network


def published_name(name: str) -> str:
    """The name under which the published checkpoint stores one of the network's tensors."""
    return re.sub(r"^model\.language_model\.", "model.", re.sub(r"^model\.visual\.", "visual.", name))


def save_checkpoint(folder: Path, network: JinaVLForRanking, extra: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `config.json` in the published layout; the tokenizer's files are the caller's.

    `extra` goes into config.json as it is (for instance `score_token_id` and `pad_token_id`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    tensors = {published_name(name): tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    config = published_config(network.config)
    config |= {"torch_dtype": str(network.dtype).removeprefix("torch."), **extra}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
