"""Tensors of transformers' networks: read under the network's names, checked key by key, a LoRA adapter merged in."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import regex
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import adapter_files, check_weights, few, read_json, stored_tensors, weight_files
from lakerank.model.config import check_use

#: Settings of peft's that change what merging means; an adapter that uses one is refused.
_UNSUPPORTED = (
    *("use_dora", "fan_in_fan_out", "use_qalora"),
    *("trainable_token_indices", "target_parameters", "alora_invocation_tokens"),
)

_MOST = 2**31  # of a rank or an alpha

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def current_name(name: str) -> str:
    """Newer transformers' name of a tensor or module of Qwen2-VL or Qwen3-VL, whichever naming a checkpoint follows."""
    name = re.sub(r"^visual\.", "model.visual.", name)
    return re.sub(r"^model\.(?!language_model\.|visual\.)", "model.language_model.", name)


def build_network(config_class: Any, network_class: Any, values: Mapping[str, Any], source: str) -> Any:
    """transformers' network of a config.json on no device: it takes no memory, and has no weights.

    Raises CheckpointError: a value is impossible, or the network was built with another.
    """
    try:
        config = config_class.from_dict(copy.deepcopy(dict(values)))  # which writes into what it is given
        text = config.get_text_config()
        with torch.device("meta"):
            network = network_class(config)
    except Exception as error:  # transformers and its validators raise many kinds
        raise CheckpointError(f"{source}: config.json does not describe a {network_class.__name__}: {error}") from error
    if not config.is_encoder_decoder:  # whose family compares its halves
        check_use(values, text, getattr(config, "vision_config", None), source)
    return network


def check_stored(
    network: nn.Module, folder: Path, named: Callable[[str], str], unused: frozenset[str] = frozenset()
) -> None:
    """Compare a network's tensors with the headers of a checkpoint's files, before any tensor is read.

    Raises CheckpointError: a tensor is missing, unexpected, of another shape, or stored under two names.
    """
    stored = [(named(name), shape) for name, (shape, _) in stored_tensors(folder).items() if name not in unused]
    if len(names := {name for name, _ in stored}) < len(stored):
        twice = max(names, key=[name for name, _ in stored].count)
        raise CheckpointError(f"{folder}: {twice} is stored under two names")
    check_weights({name: tensor.shape for name, tensor in network.state_dict().items()}, dict(stored), str(folder))


def read_tensors(
    folder: Path, dtype: torch.dtype, named: Callable[[str], str], unused: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """A checkpoint's tensors, converted to `dtype`, by the network's names; without those that are `unused`."""
    tensors = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as stored:
            for name in sorted(set(stored.keys()) - unused):
                # In float32 not a view of the file, which would stay in memory beside what is packed of it.
                tensors[named(name)] = stored.get_tensor(name).to(dtype, copy=dtype == torch.float32)
    return tensors


def fill_network(network: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """As `assign_tensors`. Raises CheckpointError: norms or rotary embeddings are not those of the configuration."""
    assign_tensors(network, tensors)
    _check_built(network, source)


def assign_tensors(network: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give a network built on no device exactly `tensors`, and set it to evaluation; nothing is initialised."""
    network.load_state_dict({name: tensors[name] for name in network.state_dict()}, strict=True, assign=True)
    for parent in network.modules():  # rotary frequencies, which no checkpoint stores, are still on no device
        for name, child in parent.named_children():
            if any(buffer.is_meta for buffer in child.buffers(recurse=False)):
                setattr(parent, name, type(child)(child.config))
    network.requires_grad_(False)
    network.train(False)


def _check_built(network: Any, source: str) -> None:
    """What a library makes of a configuration is looked at in the modules that compute."""
    text, decoder = network.config.get_text_config(), getattr(network.model, "language_model", network.model)
    rope, frequencies = text.rope_parameters, decoder.rotary_emb.inv_freq
    head = getattr(decoder.layers[0].self_attn, "head_dim", 0)
    faults = [
        f"rms_norm_eps {text.rms_norm_eps}, but {name} has {module.variance_epsilon}"
        for name, module in decoder.named_modules()
        if getattr(module, "variance_epsilon", text.rms_norm_eps) != text.rms_norm_eps
    ]
    if text.num_attention_heads % (text.num_key_value_heads or 1):
        faults.append(
            f"num_attention_heads {text.num_attention_heads} for num_key_value_heads {text.num_key_value_heads}"
        )
    expected = rope["rope_theta"] ** -(torch.arange(0, head, 2, dtype=torch.float32) / head)
    if len(frequencies) != len(expected):
        faults.append(f"{len(frequencies)} rotary frequencies for heads of {head}")
    elif rope["rope_type"] == "default" and not torch.allclose(frequencies.cpu(), expected, rtol=1e-4, atol=0):
        faults.append(f"rope_theta {rope['rope_theta']}, but the rotary frequencies are of another")
    if "mrope_section" in rope and sum(rope["mrope_section"]) != len(expected):
        faults.append(f"mrope_section {rope['mrope_section']} does not share out {len(expected)} frequencies")
    if faults:
        raise CheckpointError(f"{source}: config.json does not fit its network: {'; '.join(faults[:4])}")


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
    tensors = load_file(tensor_file)
    for module in config.get("modules_to_save") or ():
        if not any(f".{module}." in f".{name}" for name in tensors):
            raise CheckpointError(f"{tensor_file}: no tensor of {module}, which adapter_config.json says was trained")
    for stored, tensor in tensors.items():
        name = named(stored.removeprefix("base_model.model."))
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match["module"], {})[match["side"]] = tensor
        else:
            _replace(parameters, name, tensor, adapter)
    for module, pair in factors.items():
        _add(parameters, module, pair, _scaling(config, module, adapter), adapter)


def _check_kind(config: Mapping[str, Any], adapter: str) -> None:
    faults = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("peft_type") != "LORA":
        faults.insert(0, f"peft_type {config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        faults.append(f"bias {config['bias']!r}")
    if faults:
        raise CheckpointError(f"{adapter}: {', '.join(faults)} is not supported; train a plain LoRA adapter, bias none")


def _scaling(config: Mapping[str, Any], module: str, adapter: str) -> tuple[int, float]:
    """A module's rank, and alpha / rank, or alpha / sqrt(rank) with rank stabilisation.

    Rank and alpha may be set for a pattern of modules. Raises CheckpointError: they are no numbers, or a pattern is
    none, or needs longer than a second.
    """
    stated: list[Any] = []
    for key, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        value = config.get(key)
        try:
            for pattern, other in (config.get(patterns) or {}).items():
                value = other if regex.fullmatch(rf"(.*\.)?({pattern})", module, timeout=1) else value
        except (regex.error, TimeoutError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{adapter}: adapter_config.json: {patterns}: {error or 'takes too long'}") from error
        if not isinstance(value, int | float) or not 0 < value < _MOST:
            raise CheckpointError(
                f"{adapter}: adapter_config.json: {key} is {value!r:.40} for {module}, no positive number"
            )
        stated.append(value)
    rank, alpha = stated
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _add(
    parameters: Mapping[str, nn.Parameter],
    module: str,
    pair: Mapping[str, Tensor],
    scaling: tuple[int, float],
    adapter: str,
) -> None:
    weight = parameters.get(f"{module}.weight")
    if weight is None or pair.keys() != {"A", "B"}:
        raise CheckpointError(f"{adapter}: {module} is no module of this checkpoint's, or half its factors are missing")
    shapes, (rank, factor) = (tuple(pair["B"].shape), tuple(pair["A"].shape)), scaling
    if shapes != ((len(weight), rank), (rank, *weight.shape[1:])):
        detail = f"factors of {shapes} for a weight of {tuple(weight.shape)} and rank {rank}"
        raise CheckpointError(f"{adapter}: {module}: {detail}; the adapter belongs to another checkpoint or config")
    delta = (pair["B"].float() @ pair["A"].float()) * factor
    weight.copy_((weight.float() + delta.to(weight.device)).to(weight.dtype))


def _replace(parameters: Mapping[str, nn.Parameter], name: str, tensor: Tensor, adapter: str) -> None:
    target = parameters.get(name)
    if target is None or target.shape != tensor.shape:
        known = few(sorted(name for name in parameters if name.startswith("score.")))
        raise CheckpointError(f"{adapter}: {name} {tuple(tensor.shape)} has no place in this checkpoint ({known}, …)")
    target.copy_(tensor.to(target.dtype))
