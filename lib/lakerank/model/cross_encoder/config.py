"""What the JSON files of a cross-encoder say of it; torch is not imported here, for a plan needs it too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json, read_modules, resolve_dtype
from lakerank.model.config import read_config
from lakerank.model.registry import CheckpointInfo

_POSITIVE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def check_config(config: Mapping[str, Any], source: str) -> None:
    """Refuse a config.json that describes no cross-encoder.

    Raises CheckpointError: it lacks a size, or describes what is not computed here.
    """
    sizes = {name: config.get(name) for name in _POSITIVE}
    faults = [f"{name} is {size!r}" for name, size in sizes.items() if not isinstance(size, int) or size < 1]
    if config.get("hidden_act", "gelu") != "gelu":
        faults.append(f"hidden_act is {config['hidden_act']!r}, not 'gelu'")
    if config.get("position_embedding_type", "absolute") != "absolute":
        faults.append(f"position_embedding_type is {config['position_embedding_type']!r}, not 'absolute'")
    if config.get("is_decoder"):
        faults.append("is_decoder is true: each token reads those before it alone")
    labels = config.get("num_labels", len(config.get("id2label") or {0: "", 1: ""}))
    if labels != 1:
        faults.append(f"{labels} labels, not the one of a relevance score")
    if not faults and config["hidden_size"] % config["num_attention_heads"]:
        faults.append(f"hidden_size {config['hidden_size']} does not divide by {config['num_attention_heads']} heads")
    if faults:
        raise CheckpointError(f"{source}: config.json is no cross-encoder's: {'; '.join(faults)}")


def check_modules(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what sentence-transformers would compute otherwise, by the files that it writes.

    Raises CheckpointError: there are modules beside the network, a default prompt, or an activation whose values are
    neither logits nor their sigmoid.
    """
    written = read_json(file) if (file := folder / "config_sentence_transformers.json").is_file() else {}
    nested = config.get("sentence_transformers") or {}
    activation = (
        written.get("activation_fn")
        or nested.get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
    )
    faults = []
    if activation and str(activation).rpartition(".")[2] not in ("Identity", "Sigmoid"):
        faults.append(f"activation {activation}, not Identity or Sigmoid")
    if written.get("default_prompt_name"):
        faults.append(f"a prompt by default, {written['default_prompt_name']!r}")
    faults += [f"module {kind}" for kind, _ in read_modules(folder) if kind.rpartition(".")[2] != "Transformer"]
    if faults:
        raise CheckpointError(
            f"{folder}: sentence-transformers' files say what is not computed here: {'; '.join(faults)}"
        )


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """The dtype of a cross-encoder, whose relevance is the sigmoid of its logit: it has no bias.

    Raises CheckpointError: config.json describes what is not computed here.
    """
    config = read_config(folder)
    check_config(config, str(folder))
    check_modules(folder, config)
    return CheckpointInfo(resolve_dtype(folder, dtype))
