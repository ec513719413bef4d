"""The state of a training run on disk: weights and optimizer moments as safetensors, the step as JSON; no pickles."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lakerank.errors import StorageError
from lakerank.training.identity import Identity, differences
from lakerank.training.optimizer import Optimizer


@dataclass(frozen=True)
class Progress:
    """How far a run is: steps done, the best held-out mean so far, and the evaluations since."""

    step: int = 0
    best: float | None = None
    stale: int = 0

    def judged(self, figure: float) -> Progress:
        """After an evaluation."""
        better = self.best is None or figure > self.best
        return replace(self, best=figure if better else self.best, stale=0 if better else self.stale + 1)


def save_state(
    folder: Path,
    identity: Identity,
    progress: Progress,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
) -> None:
    """Replace the saved state by this one; a kill at any moment leaves the old or the new."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach().contiguous()
        for moment, value in optimizer.moments(parameter).items():
            tensors[f"{moment}/{name}"] = value.detach().contiguous()
    weights = f"state-{progress.step}.safetensors"
    save_file(tensors, folder / weights)
    temporary = folder / "state.json.tmp"
    record = {**asdict(progress), "tensors": weights, "run": identity.at(progress.step)}
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    temporary.replace(folder / "state.json")
    for old in folder.glob("state-*.safetensors"):
        if old.name != weights:
            old.unlink()


def load_state(
    folder: Path, identity: Identity, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> Progress:
    """Put a saved state into parameters and optimizer; returns how far it is, 0 steps when nothing was saved.

    Raises:
        StorageError: the state was saved by another run or by an earlier version, or is torn.
    """
    if not (folder / "state.json").is_file():
        return Progress()
    try:
        record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        progress = Progress(int(record["step"]), record["best"], int(record["stale"]))
        tensors = load_file(os.fspath(folder / record["tensors"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StorageError(f"{folder}: the saved state is torn ({error}); remove it to start anew") from error
    _check(folder, record.get("run"), identity.at(progress.step))
    shapes = {f"parameter/{name}": parameter.shape for name, parameter in parameters.items()}
    if shapes != {name: value.shape for name, value in tensors.items() if name.startswith("parameter/")}:
        raise StorageError(f"{folder}: other parameters were trained; choose another output or remove it")
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for address, value in tensors.items():
        moment, _, name = address.partition("/")
        if moment != "parameter":
            moments[name][moment] = value
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            if moments[name]:
                placed = {moment: value.to(parameter.device) for moment, value in moments[name].items()}
                optimizer.remember(parameter, placed)
    return progress


def _check(folder: Path, saved: Mapping[str, object] | None, own: Mapping[str, object]) -> None:
    if saved is None:
        raise StorageError(f"{folder}: an earlier version saved this state; choose another output or remove it")
    if unlike := differences(saved, own):
        raise StorageError(
            f"{folder}: holds the state of another run: {'; '.join(unlike)}; "
            "choose another output, or remove the folder to start anew"
        )
