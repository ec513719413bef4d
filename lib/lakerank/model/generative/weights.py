"""Language models from a checkpoint's tensors, their language heads apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from lakerank.errors import CheckpointError
from lakerank.model.adapter import merge_adapter
from lakerank.model.checkpoint import read_json, weight_files
from lakerank.model.jina_m0.weights import current_name, fill_network, read_tensors

_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A language model of transformers; `name`: its name of a checkpoint's tensor."""

    config: Any
    network: Any
    name: Callable[[str], str]


def _same(name: str) -> str:
    return name


#: By config.json's model_type.
_ARCHITECTURES: Mapping[str, Architecture] = {
    "qwen2_vl": Architecture(Qwen2VLConfig, Qwen2VLForConditionalGeneration, current_name),
    "qwen3_vl": Architecture(Qwen3VLConfig, Qwen3VLForConditionalGeneration, current_name),
    "qwen3": Architecture(Qwen3Config, Qwen3ForCausalLM, _same),
}


def load_language_model(
    folder: Path, dtype: torch.dtype, device: torch.device, adapter: str | None
) -> tuple[Any, Tensor]:
    """A checkpoint's network without its language head, an adapter merged into it, and that head (V, h), on a device.

    Raises:
        CheckpointError: the weights or the adapter do not fit config.json.
    """
    values = read_json(folder / "config.json")
    kind = _ARCHITECTURES[values["model_type"]]
    tensors = dict(read_tensors(weight_files(folder), dtype, frozenset(), kind.name))
    head = tensors.pop(_HEAD, None)
    try:
        with torch.device("meta"):
            network = kind.network(kind.config.from_dict(values))
    except Exception as error:  # transformers and its validators raise many kinds
        raise CheckpointError(f"{folder}: config.json does not describe its network: {error}") from error
    network.lm_head = nn.Identity()
    fill_network(network, tensors, str(folder))
    _check_head(head, network.get_input_embeddings().weight, values, str(folder))
    if adapter is not None:
        merge_adapter(network, adapter, kind.name)
    network.to(device)
    return network, network.get_input_embeddings().weight if head is None else head.to(device)


def _check_head(head: Tensor | None, embeddings: Tensor, config: Mapping[str, Any], source: str) -> None:
    """A tied head is not stored, or equals the embeddings; an untied one has their shape."""
    tied = config.get("tie_word_embeddings", (config.get("text_config") or {}).get("tie_word_embeddings"))
    if head is None and tied is False:
        raise CheckpointError(f"{source}: {_HEAD} is missing, and config.json ties it to no embeddings")
    if head is not None and head.shape != embeddings.shape:
        raise CheckpointError(f"{source}: {_HEAD} {tuple(head.shape)}, not {tuple(embeddings.shape)}")
    if head is not None and tied and not torch.equal(head, embeddings):
        raise CheckpointError(f"{source}: {_HEAD} differs from the embeddings that config.json ties it to")
