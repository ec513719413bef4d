"""A checkpoint's config.json: its sizes are checked as it is read, and its values compared with a network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import few, read_json, stored_tensors

#: What a network is built with, by the part of config.json that states it: whole numbers, numbers, and names.
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "depth", "embed_dim", "num_heads", "in_channels"),
    *("patch_size", "spatial_merge_size", "temporal_patch_size", "out_hidden_size", "num_position_embeddings"),
    *("local_attention", "global_attn_every_n_layers"),
)
_NUMBERS = (
    *("rms_norm_eps", "layer_norm_eps", "norm_eps", "rope_theta", "global_rope_theta", "local_rope_theta"),
    "mlp_ratio",
)
_TOKEN_IDS = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "score_token_id", "pad_token_id")
_COMPARED = (*_SIZES, *_NUMBERS, "hidden_act", "deepstack_visual_indexes")

#: No weight depends on them.
_UNCOMPARED = frozenset({"max_position_embeddings", "rope_theta"})

#: A layer's number in a tensor's name.
_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks)\.(\d+)\.")

_VISION = re.compile(r"visual\.|vision|audio")

#: Layers of a network whose weights' names have no numbers of layers: ALBERT has one layer many times.
_MOST_LAYERS = 1000

#: Kinds of rotary embeddings whose frequencies are the same in every batch.
_FIXED_ROPE = ("default", "linear", "yarn", "llama3")

_MOST = 2**31


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json.

    Raises CheckpointError: it is not JSON, a size is impossible, the weights are quantised, or have other layers.
    """
    file = folder / "config.json"
    config = read_json(file)
    faults = [fault for prefix, part in _parts(config) for fault in _value_faults(prefix, part)]
    faults += [f"{key} is no object" for key in ("text_config", "vision_config") if not _is_object(config.get(key))]
    if config.get("quantization_config"):
        faults.append("quantization_config: quantised weights are not computed here; take the original checkpoint")
    faults = faults or list(_layer_faults(folder, config))
    if faults:
        raise CheckpointError(f"{file}: {'; '.join(faults)}")
    return config


def _is_object(value: object) -> bool:
    return value is None or isinstance(value, Mapping)


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The prefix of a name and the settings at the top, of text models and of the vision encoder."""
    yield "", config
    for name in ("text_config", "vision_config", "decoder", "encoder"):
        if isinstance(config.get(name), Mapping):
            yield from ((f"{name}.{prefix}", part) for prefix, part in _parts(config[name]))


def _value_faults(prefix: str, part: Mapping[str, Any]) -> Iterator[str]:
    for names, least in ((_SIZES, 1), ((*_TOKEN_IDS, "type_vocab_size"), 0)):  # DeBERTa has no types
        for name in names:
            value = part.get(name)
            if value is not None and (type(value) is not int or not least <= value < _MOST):
                yield f"{prefix}{name} is {value!r:.40}, not a whole number from {least} to 2^31"
    for name in (*_NUMBERS, "logit_bias"):
        value = part.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not abs(value) < 1e300 or (value <= 0 and name != "logit_bias"):
            yield f"{prefix}{name} is {value!r:.40}, not a {'' if name == 'logit_bias' else 'positive '}number"


def _layer_faults(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Numbers of layers that the weights' headers do not list: building a network of a million would not end."""
    layers: dict[bool, set[str]] = {False: set(), True: set()}
    for name in stored_tensors(folder):
        if match := _LAYER.search(name):
            layers[_VISION.search(name) is not None].add(match[1])
    text, vision = config.get("text_config") or config, config.get("vision_config") or {}
    for part, key, visual in ((text, "num_hidden_layers", False), (vision, "depth", True)):
        stated, stored = part.get(key), len(layers[visual])
        if stated is not None and stated != stored and (stored or stated > _MOST_LAYERS):
            yield f"{key} is {stated}, but the weights have {stored} layers"


def check_use(config: Mapping[str, Any], text: Any, vision: Any, source: str) -> None:
    """Compare config.json with the configurations of the text model and the vision encoder (None: none) built from it.

    Raises CheckpointError: a value that a score depends on is stated twice, or was passed over, or is not supported.
    """
    faults = []
    for prefix, part in _parts(config):
        built = vision if prefix == "vision_config." else text
        stated = {key: part[key] for key in _COMPARED if key not in _UNCOMPARED and part.get(key) is not None}
        faults += [
            f"{prefix}{key} is {value!r}, but the network is built with {getattr(built, key)!r}"
            for key, value in stated.items()
            if hasattr(built, key) and not _equal(value, getattr(built, key))
        ]
        if built is text:
            faults += _rope_faults(prefix, part, text.rope_parameters)
        if part.get("use_sliding_window") or set(part.get("layer_types") or ()) - {"full_attention"}:
            faults.append(f"{prefix}use_sliding_window or layer_types: windows of attention are not computed here")
    if faults:
        raise CheckpointError(f"{source}: config.json: {'; '.join(faults)}")


def _rope_faults(prefix: str, part: Mapping[str, Any], built: Mapping[str, Any]) -> Iterator[str]:
    """Faults of rotary embeddings, which config.json states as `rope_theta`, `rope_scaling` and `rope_parameters`."""
    stated = [("", {key: part[key] for key in ("rope_theta", "partial_rotary_factor") if part.get(key) is not None})]
    stated += [(f"{name}.", part[name]) for name in ("rope_scaling", "rope_parameters") if part.get(name)]
    for place, values in stated:
        for key, value in values.items():
            used = built.get("rope_type" if key == "type" else key)
            value = "default" if key in ("type", "rope_type") and value == "mrope" else value
            if not _equal(value, used):
                yield f"{prefix}{place}{key} is {value!r}, but the network is built with {used!r}"
    if built["rope_type"] not in _FIXED_ROPE:
        yield f"{prefix}rope_type {built['rope_type']!r} is none of {few(list(_FIXED_ROPE))}"
    if built.get("partial_rotary_factor", 1) != 1:
        yield f"{prefix}partial_rotary_factor is {built['partial_rotary_factor']!r}; only whole heads are rotated here"


def _equal(stated: object, built: object) -> bool:
    if isinstance(stated, float) and isinstance(built, int | float):
        return math.isclose(stated, built)
    return stated == (list(built) if isinstance(built, tuple) else built)
