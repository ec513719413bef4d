"""Tensors of transformers' networks: read under the network's names, checked key by key, a LoRA adapter merged in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import adapter_files, check_weights, few, read_json, weight_files

#: Settings of peft's that change what merging means; an adapter that uses one is refused.
_UNSUPPORTED = (
    *("use_dora", "fan_in_fan_out", "use_qalora"),
    *("trainable_token_indices", "target_parameters", "alora_invocation_tokens"),
)

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def current_name(name: str) -> str:
    """Newer transformers' name of a tensor or module of Qwen2-VL or Qwen3-VL, whichever naming a checkpoint follows."""
    name = re.sub(r"^visual\.", "model.visual.", name)
    return re.sub(r"^model\.(?!language_model\.|visual\.)", "model.language_model.", name)


def read_tensors(
    folder: Path, dtype: torch.dtype, named: Callable[[str], str], unused: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """A checkpoint's tensors, converted to `dtype`, by the network's names; without those that are `unused`."""
    tensors = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as stored:
            for name in sorted(set(stored.keys()) - unused):
                tensors[named(name)] = stored.get_tensor(name).to(dtype)
    return tensors


def fill_network(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give a network that was built on no device exactly `tensors`, and set it to evaluation; nothing is initialised.

    Raises CheckpointError: a key is missing, unexpected or of another shape.
    """
    expected = network.state_dict()
    shapes, stored = ({name: tensor.shape for name, tensor in named.items()} for named in (expected, tensors))
    check_weights(shapes, stored, source)
    network.load_state_dict({name: tensors[name] for name in expected}, strict=True, assign=True)
    for parent in network.modules():  # rotary frequencies, which no checkpoint stores, are still on no device
        for name, child in parent.named_children():
            if any(buffer.is_meta for buffer in child.buffers(recurse=False)):
                setattr(parent, name, type(child)(child.config))
    network.requires_grad_(False)
    network.train(False)


@torch.no_grad()
def merge_adapter(network: nn.Module, adapter: str, named: Callable[[str], str]) -> None:
    """Add each pair of factors to its weight, scaled, and put modules saved whole (the score head) in place.

    `named` turns a name of either naming into the network's. Sums are made in float32.

    Raises CheckpointError: the adapter is of another kind, or a tensor in it has no place in the network.
    """
    config_file, tensor_file = adapter_files(adapter)
    config = read_json(config_file)
    _check_kind(config, adapter)
    parameters = dict(network.named_parameters())
    factors: dict[str, dict[str, Tensor]] = {}
    for stored, tensor in load_file(tensor_file).items():
        name = named(stored.removeprefix("base_model.model."))
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match["module"], {})[match["side"]] = tensor
        else:
            _replace(parameters, name, tensor, adapter)
    for module, pair in factors.items():
        _add(parameters, module, pair, _scaling(config, module), adapter)


def _check_kind(config: Mapping[str, Any], adapter: str) -> None:
    faults = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("peft_type") != "LORA":
        faults.insert(0, f"peft_type {config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        faults.append(f"bias {config['bias']!r}")
    if faults:
        raise CheckpointError(f"{adapter}: {', '.join(faults)} is not supported; train a plain LoRA adapter, bias none")


def _scaling(config: Mapping[str, Any], module: str) -> float:
    """alpha / rank, or alpha / sqrt(rank) with rank stabilisation; either may be set for a pattern of modules."""
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    for pattern, value in (config.get("rank_pattern") or {}).items():
        rank = int(value) if re.fullmatch(rf"(.*\.)?({pattern})", module) else rank
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        alpha = float(value) if re.fullmatch(rf"(.*\.)?({pattern})", module) else alpha
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _add(
    parameters: Mapping[str, nn.Parameter], module: str, pair: Mapping[str, Tensor], scaling: float, adapter: str
) -> None:
    weight = parameters.get(f"{module}.weight")
    if weight is None or pair.keys() != {"A", "B"}:
        raise CheckpointError(f"{adapter}: {module} is no module of this checkpoint's, or half its factors are missing")
    delta = (pair["B"].float() @ pair["A"].float()) * scaling
    if delta.shape != weight.shape:
        shapes = f"{tuple(delta.shape)}, not {tuple(weight.shape)}"
        raise CheckpointError(f"{adapter}: {module} {shapes}; the adapter belongs to another checkpoint")
    weight.copy_((weight.float() + delta.to(weight.device)).to(weight.dtype))


def _replace(parameters: Mapping[str, nn.Parameter], name: str, tensor: Tensor, adapter: str) -> None:
    target = parameters.get(name)
    if target is None or target.shape != tensor.shape:
        known = few(sorted(name for name in parameters if name.startswith("score.")))
        raise CheckpointError(f"{adapter}: {name} {tuple(tensor.shape)} has no place in this checkpoint ({known}, …)")
    target.copy_(tensor.to(target.dtype))
