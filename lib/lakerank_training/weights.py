"""Checkpoints of jina-reranker-m0's architecture, written as it was published."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lakerank.model.checkpoint import WEIGHTS_NAME
from lakerank.model.jina_m0.weights import JinaVLForRanking


def published_name(name: str) -> str:
    """The name under which the published checkpoint stores one of the network's tensors."""
    return re.sub(r"^model\.language_model\.", "model.", re.sub(r"^model\.visual\.", "visual.", name))


def save_checkpoint(folder: Path, network: JinaVLForRanking, config: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `config.json` in the published layout; the tokenizer's files are the caller's.

    `config` is config.json without the type of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    tensors = {published_name(name): tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    typed = {**config, "torch_dtype": str(network.dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(typed, indent=2, sort_keys=True) + "\n", encoding="utf-8")
