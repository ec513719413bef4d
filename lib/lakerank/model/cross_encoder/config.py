"""What config.json says of an XLM-RoBERTa cross-encoder; torch is not imported here, for a plan needs it too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json, resolve_dtype
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
    labels = config.get("num_labels", len(config.get("id2label") or {0: "", 1: ""}))
    if labels != 1:
        faults.append(f"{labels} labels, not the one of a relevance score")
    if not faults and config["hidden_size"] % config["num_attention_heads"]:
        faults.append(f"hidden_size {config['hidden_size']} does not divide by {config['num_attention_heads']} heads")
    if faults:
        raise CheckpointError(f"{source}: config.json is no XLM-RoBERTa cross-encoder's: {'; '.join(faults)}")


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """The dtype of a cross-encoder, whose relevance is the sigmoid of its logit: it has no bias.

    Raises CheckpointError: config.json describes what is not computed here.
    """
    check_config(read_json(folder / "config.json"), str(folder))
    return CheckpointInfo(resolve_dtype(folder, dtype))
