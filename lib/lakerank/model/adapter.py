"""A LoRA adapter as peft saves it, merged into a network whichever naming of the modules it was trained with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import adapter_files, few, read_json

#: Settings of peft's that change what merging means; an adapter that uses one is refused.
_UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "use_qalora",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
)

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def merge_adapter(network: nn.Module, adapter: str, current_name: Callable[[str], str]) -> None:
    """Add each pair of factors to its weight, scaled, and put modules saved whole (the score head) in place.

    `current_name` turns a name of either naming into the network's. Sums are made in float32.

    Raises:
        CheckpointError: the adapter is of another kind, or a tensor in it has no place in the network.
    """
    config_file, tensor_file = adapter_files(adapter)
    config = read_json(config_file)
    _check_kind(config, adapter)
    parameters = dict(network.named_parameters())
    factors: dict[str, dict[str, Tensor]] = {}
    for stored, tensor in load_file(tensor_file).items():
        name = current_name(stored.removeprefix("base_model.model."))
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
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            rank = int(value)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = float(value)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


@torch.no_grad()
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


@torch.no_grad()
def _replace(parameters: Mapping[str, nn.Parameter], name: str, tensor: Tensor, adapter: str) -> None:
    target = parameters.get(name)
    if target is None or target.shape != tensor.shape:
        known = few(sorted(name for name in parameters if name.startswith("score.")))
        raise CheckpointError(f"{adapter}: {name} {tuple(tensor.shape)} has no place in this checkpoint ({known}, …)")
    target.copy_(tensor.to(target.dtype))
