"""The head of a cross-encoder: stored with the network, or as modules of sentence-transformers beside it.

Sources: transformers, `BertForSequenceClassification` and `ModernBertForSequenceClassification`; sentence-transformers,
`Pooling`, `Dense` and `LayerNorm`. torch is not imported here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json, read_modules

#: Those that are computed, by the last part of torch's names for their modules, in lower case.
ACTIVATIONS = ("identity", "tanh", "gelu", "relu")

_EMBEDDING, _SCORES = "sentence_embedding", "scores"

#: Whether a mode of pooling, which older files name by a flag, is the mean.
_MEANS = {"cls": False, "pooling_mode_cls_token": False, "mean": True, "pooling_mode_mean_tokens": True}


class HeadLayer(NamedTuple):
    """A linear layer and what follows it; `name`: of its tensors, with the folder of a module in front.

    `norm`: of a layer norm the name of its tensors, whether it has a bias, and what is added to the variance.
    """

    name: str
    outputs: int
    bias: bool = True
    activation: str = "identity"
    norm: tuple[str, bool, float] | None = None


class HeadSettings(NamedTuple):
    """`mean`: of the states of all tokens; else the first token's. The last of `layers` has one output, the logit.

    `stored`: with the network. If not, it is in folders of sentence-transformers' modules.
    """

    layers: tuple[HeadLayer, ...]
    mean: bool = False
    stored: bool = True


def read_head(folder: Path, config: Mapping[str, Any]) -> HeadSettings:
    """The head of the checkpoint in a folder. Raises CheckpointError: it is none that is computed here."""
    modules = [(re.sub(r"^sentence_transformers\..*\.", "", kind), place) for kind, place in read_modules(folder)]
    h = config["hidden_size"]
    if len(modules) > 1:
        try:
            return _of_modules(folder, modules, h)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            fault = f"modules.json lists no head that this family computes: {error}"
            raise CheckpointError(f"{folder}: {fault}; model.family sentence-transformers may") from error
    if config.get("model_type") != "modernbert":
        return HeadSettings((HeadLayer("classifier.dense", h, activation="tanh"), HeadLayer("classifier.out_proj", 1)))
    norm = ("head.norm", False, config.get("norm_eps", 1e-5))
    dense = HeadLayer("head.dense", h, config.get("classifier_bias", False), "gelu", norm)
    return HeadSettings((dense, HeadLayer("classifier", 1)), config.get("classifier_pooling") == "mean")


def _of_modules(folder: Path, modules: list[tuple[str, Path]], size: int) -> HeadSettings:
    """Raises ValueError, LookupError or TypeError: a module is another, or computes what is not computed here."""
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[-1] != "Dense" or set(kinds[2:]) - {"Dense", "LayerNorm"}:
        raise ValueError(f"{', '.join(kinds)}, not Transformer, Pooling, Dense or LayerNorm, …, Dense")
    if modules[0][1] != folder or any(place.parent != folder or place.name == ".." for _, place in modules[1:]):
        raise ValueError("a module is in no folder beside the network")
    layers: list[HeadLayer] = []
    for kind, place in modules[2:]:
        stated = read_json(place / "config.json")
        if kind == "Dense":
            layers.append(_dense(stated, place.name, size, _SCORES if place == modules[-1][1] else _EMBEDDING))
            size = layers[-1].outputs
        elif layers and not layers[-1].norm and stated["dimension"] == size:
            layers[-1] = layers[-1]._replace(norm=(f"{place.name}/norm", True, 1e-5))
        else:
            raise ValueError(f"{place.name} follows no Dense of {size} outputs")
    if size != 1:
        raise ValueError(f"{size} outputs, not one")
    pooling, place = read_json(modules[1][1] / "config.json"), modules[1][1]
    modes = pooling.get("pooling_mode") or [name for name, on in pooling.items() if "mode" in name and on is True]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if len(modes) != 1 or modes[0] not in _MEANS:
        raise ValueError(f"{place.name} is of {modes}, not of cls or mean")
    return HeadSettings(tuple(layers), _MEANS[modes[0]], stored=False)


def _dense(stated: Mapping[str, Any], name: str, inputs: int, output: str) -> HeadLayer:
    given = {"activation_function": "torch.nn.Tanh", "module_input_name": _EMBEDDING, "use_residual": False, **stated}
    given["module_output_name"] = given.get("module_output_name") or given["module_input_name"]
    wanted = {"in_features": inputs, "module_input_name": _EMBEDDING, "module_output_name": output}
    faults = [f"{key} {given[key]!r}, not {value!r}" for key, value in wanted.items() if given[key] != value]
    faults += ["a residual"] * bool(given["use_residual"])
    package, _, activation = given["activation_function"].rpartition(".")
    activation, outputs = activation.lower(), given["out_features"]
    if not package.startswith("torch.nn") or activation not in ACTIVATIONS[: 1 if output == _SCORES else None]:
        faults.append(f"activation_function {given['activation_function']}")
    if type(outputs) is not int or outputs < 1:
        faults.append(f"out_features {outputs!r}")
    if faults:
        raise ValueError(f"{name} has {', '.join(faults)}")
    return HeadLayer(f"{name}/linear", outputs, bool(given.get("bias", True)), activation)
