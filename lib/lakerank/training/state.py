"""The state of a training run on disk: weights and optimizer moments as safetensors, the step as JSON; no pickles."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lakerank.errors import StorageError

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(
    folder: Path, step: int, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Replace the saved state by this one; a kill at any moment leaves the old or the new."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach().contiguous()
        for moment in _MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment].detach().contiguous()
    weights = f"state-{step}.safetensors"
    save_file(tensors, folder / weights)
    temporary = folder / "state.json.tmp"
    temporary.write_text(json.dumps({"step": step, "tensors": weights}), encoding="utf-8")
    temporary.replace(folder / "state.json")
    for old in folder.glob("state-*.safetensors"):
        if old.name != weights:
            old.unlink()


def load_state(folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Put a saved state into parameters and optimizer; returns the number of steps done, 0 when nothing was saved.

    Raises:
        StorageError: the state was saved by a run with other parameters.
    """
    if not (folder / "state.json").is_file():
        return 0
    record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors = load_file(os.fspath(folder / record["tensors"]))
    saved = {name.removeprefix("parameter/") for name in tensors if name.startswith("parameter/")}
    if saved != set(parameters):
        raise StorageError(f"{folder}: holds the state of another run; choose another output or remove it")
    with torch.no_grad():
        for name, parameter in parameters.items():
            stored = tensors[f"parameter/{name}"]
            if stored.shape != parameter.shape:
                raise StorageError(f"{folder}: {name} has another shape; choose another output or remove it")
            parameter.copy_(stored)
            if f"step/{name}" in tensors:
                optimizer.state[parameter] = {moment: tensors[f"{moment}/{name}"] for moment in _MOMENTS}
    return int(record["step"])
