"""The head of a cross-encoder: stored with the network, or as modules of sentence-transformers beside it.

Sources: transformers, `BertForSequenceClassification` and `ModernBertForSequenceClassification`; sentence-transformers,
`Pooling`, `Dense` and `LayerNorm`. torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json, read_modules

#: Those that are computed, by the last part of torch's names for their modules, in lower case.
ACTIVATIONS = ("identity", "tanh", "gelu", "relu")

_EMBEDDING, _SCORES = "sentence_embedding", "scores"

#: Modes of pooling in older files, each with a flag.
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    **{mode: f"pooling_mode_{mode}" for mode in ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")},
    "lasttoken": "pooling_mode_lasttoken",
}


class HeadNorm(NamedTuple):
    """A layer norm; `name`: of its tensors. `epsilon`: torch's own where nothing else is said."""

    name: str
    bias: bool = True
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class HeadLayer:
    """A linear layer and what follows it; `name`: of its tensors, with the folder of a module in front."""

    name: str
    outputs: int
    bias: bool = True
    activation: str = "identity"
    norm: HeadNorm | None = None


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """`mean`: of the states of all tokens; else the first token's. The last of `layers` has one output, the logit.

    `stored`: with the network. If not, it is in folders of sentence-transformers' modules.
    """

    layers: tuple[HeadLayer, ...]
    mean: bool = False
    stored: bool = True


def read_head(folder: Path, config: Mapping[str, Any]) -> HeadSettings:
    """The head of the checkpoint in a folder. Raises CheckpointError: it is none that is computed here."""
    own = "sentence_transformers."
    modules = [
        (kind.rpartition(".")[2] if kind.startswith(own) else kind, place) for kind, place in read_modules(folder)
    ]
    if [kind for kind, _ in modules] not in ([], ["Transformer"]):
        try:
            return _of_modules(folder, modules, config["hidden_size"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder}: modules.json lists no head that is computed here: {error}") from error
    h = config["hidden_size"]
    if config.get("model_type") != "modernbert":
        return HeadSettings((HeadLayer("classifier.dense", h, activation="tanh"), HeadLayer("classifier.out_proj", 1)))
    norm = HeadNorm("head.norm", config.get("norm_bias", False), config.get("norm_eps", 1e-5))
    dense = HeadLayer("head.dense", h, config.get("classifier_bias", False), "gelu", norm)
    return HeadSettings((dense, HeadLayer("classifier", 1)), config.get("classifier_pooling") == "mean")


def _of_modules(folder: Path, modules: list[tuple[str, Path]], size: int) -> HeadSettings:
    """Raises ValueError, LookupError or TypeError: a module is another, or computes what is not computed here."""
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[-1] != "Dense" or set(kinds[2:]) - {"Dense", "LayerNorm"}:
        raise ValueError(f"{', '.join(kinds)}, not Transformer, Pooling, Dense or LayerNorm, …, Dense")
    if modules[0][1] != folder or any(place.parent != folder or place.name == ".." for _, place in modules[1:]):
        raise ValueError("the network is not beside it, or a module is in no folder beside it")
    layers: list[HeadLayer] = []
    for number, (kind, place) in enumerate(modules[2:], 2):
        stated = read_json(place / "config.json")
        last = number == len(modules) - 1
        if kind == "Dense":
            layers.append(_dense(stated, place.name, size, _SCORES if last else _EMBEDDING))
        elif not layers or layers[-1].norm or stated["dimension"] != size:
            raise ValueError(f"{place.name} follows no Dense of {size} outputs")
        else:
            layers[-1] = replace(layers[-1], norm=HeadNorm(f"{place.name}/norm"))
        size = layers[-1].outputs
    if (layers[-1].outputs, layers[-1].activation) != (1, "identity"):
        raise ValueError(f"{modules[-1][1].name} has not one output, or an activation that is not Identity")
    pooling = read_json(modules[1][1] / "config.json")
    modes = pooling.get("pooling_mode") or [mode for mode, flag in _FLAGS.items() if pooling.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if modes not in (["cls"], ["mean"]):
        raise ValueError(f"{modules[1][1].name} is of {modes}, not of cls or mean")
    return HeadSettings(tuple(layers), modes == ["mean"], stored=False)


def _dense(stated: Mapping[str, Any], name: str, inputs: int, output: str) -> HeadLayer:
    activation = stated.get("activation_function", "torch.nn.Tanh")
    short = activation.rpartition(".")[2].lower()
    into = stated.get("module_input_name", _EMBEDDING)
    if (into, stated.get("module_output_name") or into) != (_EMBEDDING, output) or stated.get("use_residual"):
        raise ValueError(f"{name} is not from {_EMBEDDING} to {output}, or has a residual")
    if not activation.startswith("torch.nn.") or short not in ACTIVATIONS:
        raise ValueError(f"{name} has activation {activation}, none of {', '.join(ACTIVATIONS)}")
    outputs = stated["out_features"]
    if stated["in_features"] != inputs or type(outputs) is not int or outputs < 1:
        raise ValueError(f"{name} is of {stated['in_features']} inputs, not {inputs}, or of {outputs!r} outputs")
    return HeadLayer(f"{name}/linear", outputs, bool(stated.get("bias", True)), short)
