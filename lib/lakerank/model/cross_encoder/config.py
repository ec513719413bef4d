"""What config.json says of an XLM-RoBERTa cross-encoder; torch is not imported here, for a plan needs it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json, resolve_dtype
from lakerank.model.registry import CheckpointInfo

_POSITIVE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What config.json says of the network. `positions` counts the `padding` + 1 that no token has."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    inner: int
    positions: int
    types: int
    padding: int
    epsilon: float

    @property
    def longest(self) -> int:
        """Tokens of one sequence at most."""
        return self.positions - self.padding - 1

    def flops(self, tokens: int) -> float:
        """Operations that a sequence of so many tokens needs, two a multiply-add; its last layer, its first token's."""
        h = self.hidden
        layer = 2.0 * tokens * (4 * h * h + 2 * h * self.inner) + 4.0 * tokens * tokens * h
        last = 4.0 * tokens * h * h + 2.0 * (2 * h * h + 2 * h * self.inner) + 4.0 * tokens * h
        return (self.layers - 1) * layer + last + 2.0 * h * (h + 1)


def read_shape(config: Mapping[str, Any], source: str) -> EncoderShape:
    """The network that a config.json describes.

    Raises:
        CheckpointError: it lacks a size, or describes what is not computed here.
    """
    faults = [f"{name} is {config.get(name)!r}" for name in _POSITIVE if not _positive(config.get(name))]
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
    return EncoderShape(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        inner=config["intermediate_size"],
        positions=int(config.get("max_position_embeddings", 514)),
        types=int(config.get("type_vocab_size", 1)),
        padding=int(config.get("pad_token_id", 1)),
        epsilon=float(config.get("layer_norm_eps", 1e-5)),
    )


def _positive(value: object) -> bool:
    return isinstance(value, int) and value > 0


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """The dtype of a cross-encoder, whose relevance is the sigmoid of its logit: it has no bias.

    Raises:
        CheckpointError: config.json describes what is not computed here.
    """
    read_shape(read_json(folder / "config.json"), str(folder))
    return CheckpointInfo(resolve_dtype(folder, dtype))
