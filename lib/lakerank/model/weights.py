"""A checkpoint's tensors: read from safetensors in either naming, checked key by key, and written as published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig

from lakerank.errors import CheckpointError
from lakerank.model.network import JinaVLForRanking

#: Published names and those of newer transformers; every other name is the same in both.
_RENAMED = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)
_PUBLISHED = ((re.compile(r"^model\.visual\."), "visual."), (re.compile(r"^model\.language_model\."), "model."))

#: A language head that ranking does not use; published checkpoints may still hold it.
_UNUSED = frozenset({"lm_head.weight"})

INDEX_NAME = "model.safetensors.index.json"
WEIGHTS_NAME = "model.safetensors"


def current_name(name: str) -> str:
    """The network's name of a tensor of a checkpoint, whichever naming that follows."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def published_name(name: str) -> str:
    """The name under which the published checkpoint stores one of the network's tensors."""
    for pattern, replacement in _PUBLISHED:
        name = pattern.sub(replacement, name)
    return name


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sharded or not.

    Raises:
        CheckpointError: there are none, or a shard is missing.
    """
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if not (folder / INDEX_NAME).is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only {', '.join(pickles[:3])}, which can run code when read" if pickles else "no weights"
        raise CheckpointError(f"{folder}: {found}; {WEIGHTS_NAME} or {INDEX_NAME} is needed")
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    names = sorted(set(index["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: shards are missing: {_few(missing)}; copy the checkpoint again")
    return [folder / name for name in names]


def build_network(config: Qwen2VLConfig, tensors: Mapping[str, Tensor], source: str) -> JinaVLForRanking:
    """A network that holds exactly `tensors` (the network's own names), in evaluation mode; nothing is initialised.

    Raises:
        CheckpointError: a key is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        network = JinaVLForRanking(config)
    expected = network.state_dict()
    _check_keys(expected, tensors, source)
    network.load_state_dict({name: tensors[name] for name in expected}, strict=True, assign=True)
    _rebuild_buffers(network)
    return network.eval()


def read_tensors(files: list[Path], dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """(network's name, tensor) for every tensor used, converted to `dtype` unless that is None."""
    for path in files:
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a dict
                if name not in _UNUSED:
                    tensor = stored.get_tensor(name)
                    yield current_name(name), tensor if dtype is None else tensor.to(dtype)


def save_checkpoint(folder: Path, network: JinaVLForRanking, extra: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `config.json` in the published layout; the tokenizer's files are the caller's.

    `extra` goes into config.json as it is (for instance `score_token_id`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        published_name(name): tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    config = published_config(network.config) | {"torch_dtype": str(network.dtype).removeprefix("torch.")} | dict(extra)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def published_config(config: Qwen2VLConfig) -> dict[str, Any]:
    """config.json in the published, flat layout: the text model's settings stand at the top."""
    text = config.text_config
    names = [
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
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    ]
    vision = config.vision_config
    vision_names = [
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
    ]
    return {
        "architectures": ["JinaVLForRanking"],
        "model_type": "qwen2_vl",
        **{name: getattr(text, name) for name in names},
        "rope_theta": text.rope_parameters["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.rope_parameters["mrope_section"])},
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        **{
            name: getattr(config, name)
            for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        },
        "vision_config": {"model_type": "qwen2_vl", **{name: getattr(vision, name) for name in vision_names}},
    }


def _check_keys(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    faults = []
    if missing := sorted(expected.keys() - found.keys()):
        faults.append(f"{len(missing)} missing: {_few(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        faults.append(f"{len(unexpected)} unexpected: {_few(unexpected)}")
    shapes = [
        f"{name} {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if found[name].shape != expected[name].shape
    ]
    if shapes:
        faults.append(f"{len(shapes)} of another shape: {_few(shapes)}")
    if faults:
        raise CheckpointError(
            f"{source}: the weights do not fit config.json ({'; '.join(faults)}); "
            "is this jina-reranker-m0's architecture, and do all files come from one revision?"
        )


def _rebuild_buffers(network: nn.Module) -> None:
    """Make the rotary frequencies, which no checkpoint stores, where a network built without memory has none."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if any(buffer.is_meta for buffer in child.buffers(recurse=False)):
                setattr(parent, name, type(child)(child.config))


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
