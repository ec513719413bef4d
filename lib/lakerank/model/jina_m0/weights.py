"""The network of jina-reranker-m0 and its tensors: read in either naming, checked key by key, written as published."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel, Qwen2VLPreTrainedModel

from lakerank.errors import CheckpointError
from lakerank.model.adapter import merge_adapter
from lakerank.model.checkpoint import WEIGHTS_NAME, check_weights, weight_files
from lakerank.model.jina_m0.config import Settings

#: Frequencies that follow time, height and width, where a config.json does not say; Qwen2-VL's own.
MROPE_SECTION = [16, 24, 24]

#: Published names to those of newer transformers, and back; every other name is the same in both.
_TO_CURRENT = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)
_TO_PUBLISHED = (
    (re.compile(r"^model\.visual\."), "visual."),
    (re.compile(r"^model\.language_model\."), "model."),
)

#: A language head that ranking does not use; published checkpoints may still have it.
_UNUSED = frozenset({"lm_head.weight"})

_TEXT_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
)
_VISION_SETTINGS = (
    "depth",
    "embed_dim",
    "hidden_size",
    "hidden_act",
    "mlp_ratio",
    "num_heads",
    "in_channels",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
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

    Raises:
        CheckpointError: the weights or the adapter do not fit config.json.
    """
    dtype = getattr(torch, settings.dtype)
    tensors = dict(read_tensors(weight_files(folder), dtype))
    network = build_network(parse_config(settings.config, str(folder)), tensors, str(folder))
    if adapter is not None:
        merge_adapter(network, adapter, current_name)
    network.to(device)
    return network


def parse_config(values: Mapping[str, Any], source: str) -> Qwen2VLConfig:
    """The network's configuration, from config.json in the flat or the nested layout.

    Raises:
        CheckpointError: a value is missing or impossible.
    """
    try:
        return Qwen2VLConfig.from_dict(dict(values))
    except Exception as error:  # transformers and its validators raise many kinds
        raise CheckpointError(f"{source}: config.json does not describe a Qwen2-VL network: {error}") from error


def current_name(name: str) -> str:
    """The network's name of a tensor or module of a checkpoint, whichever naming that follows."""
    for pattern, replacement in _TO_CURRENT:
        name = pattern.sub(replacement, name)
    return name


def published_name(name: str) -> str:
    """The name under which the published checkpoint stores one of the network's tensors."""
    for pattern, replacement in _TO_PUBLISHED:
        name = pattern.sub(replacement, name)
    return name


def read_tensors(
    files: list[Path],
    dtype: torch.dtype | None,
    unused: frozenset[str] = _UNUSED,
    named: Callable[[str], str] = current_name,
) -> Iterator[tuple[str, Tensor]]:
    """(network's name, tensor) for every tensor used, converted to `dtype` unless that is None."""
    for path in files:
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a dict
                if name not in unused:
                    tensor = stored.get_tensor(name)
                    yield named(name), tensor if dtype is None else tensor.to(dtype)


def build_network(config: Qwen2VLConfig, tensors: Mapping[str, Tensor], source: str) -> JinaVLForRanking:
    """A network that holds exactly `tensors` (the network's own names), in evaluation mode; nothing is initialised.

    Raises:
        CheckpointError: a key is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        network = JinaVLForRanking(config)
    fill_network(network, tensors, source)
    return network


def fill_network(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give a network that was built on no device exactly `tensors`, and set it to evaluation.

    Raises:
        CheckpointError: a key is missing, unexpected or of another shape.
    """
    expected = network.state_dict()
    check_weights(_shapes(expected), _shapes(tensors), source)
    network.load_state_dict({name: tensors[name] for name in expected}, strict=True, assign=True)
    _rebuild_buffers(network)
    network.requires_grad_(False)
    network.train(False)


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


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _rebuild_buffers(network: nn.Module) -> None:
    """Make the rotary frequencies, which no checkpoint stores, where a network built without memory has none."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if any(buffer.is_meta for buffer in child.buffers(recurse=False)):
                setattr(parent, name, type(child)(child.config))


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
