"""The state of a training run on disk, and what it belongs to, so that it is never taken for another run's.

Weights and optimizer moments are safetensors, the step is JSON; no pickles.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lakerank.errors import StorageError
from lakerank.model.checkpoint import file_hash, weight_files
from lakerank.training.dataset import Dataset, ImageStore, Table
from lakerank.training.step import Optimizer


@dataclass(frozen=True)
class TrainState:
    """How far a run is: steps done, the best held-out mean so far, and the evaluations since."""

    step: int = 0
    best: float | None = None
    stale: int = 0

    def evaluated(self, figure: float) -> TrainState:
        """After an evaluation."""
        better = self.best is None or figure > self.best
        return replace(self, best=figure if better else self.best, stale=0 if better else self.stale + 1)


@dataclass(frozen=True)
class RunIdentity:
    """The settings of a run and the fingerprints of its data, by name; and its stages: how many steps of what."""

    settings: Mapping[str, object]
    stages: Sequence[tuple[int, Mapping[str, object]]]

    def at(self, step: int) -> dict[str, object]:
        """What a run is after so many steps: stages as far as they are done, as what is to come may still change."""
        named = dict(self.settings)
        for index, (steps, stage) in enumerate(self.stages):
            if done := min(step, steps):
                named |= flat({**stage, "steps": done}, f"stages.{index}.")
            step -= done
        return named


def differences(saved: Mapping[str, object], current: Mapping[str, object]) -> list[str]:
    """What is not the same in two runs, in words."""
    names = sorted(name for name in saved.keys() | current.keys() if saved.get(name) != current.get(name))
    return [f"{name} (was {saved.get(name)}, is {current.get(name)})" for name in names]


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings as one level of dotted names."""
    settings: dict[str, object] = {}
    for name, value in values.items():
        settings |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return settings


def dataset_identity(dataset: Dataset, columns: Sequence[str]) -> dict[str, object]:
    """A fingerprint of each table's rows as they are learned from, wherever and in whatever files they lie."""
    return {
        "documents": digest(_rows(dataset.documents, columns, dataset.images)),
        "queries": digest(_rows(dataset.queries, columns, dataset.images)),
        "qrels": digest(sorted(grades.items()) for grades in dataset.grades),
        "candidates": digest(list(scores.items()) for scores in dataset.candidates) if dataset.candidates else None,
        "teacher": digest(list(scores.items()) for scores in dataset.teacher) if dataset.teacher else None,
    }


def checkpoint_identity(folder: Path) -> str:
    """A fingerprint of a checkpoint's weights, configuration and tokenizer."""
    return digest(map(file_hash, [*weight_files(folder), folder / "config.json", folder / "tokenizer.json"]))


def selection_identity(dataset: Dataset, only: Iterable[str]) -> str | None:
    """A fingerprint of the columns by which a stage chooses rows; None where it takes all."""
    columns = [table.columns[name] for table in (dataset.documents, dataset.queries) for name in only]
    return digest(columns) if columns else None


def _rows(table: Table, columns: Sequence[str], images: ImageStore) -> Iterable[object]:
    @functools.cache
    def image_digest(index: int) -> bytes | None:
        if index < 0:
            return None
        pixels = images.pixels[index].transpose(2, 0, 1)  # as stored states have it: (3, height, width)
        return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes()).digest()

    digests = map(image_digest, table.images.tolist())
    return zip(table.ids, table.texts, digests, table.kinds, *(table.columns[name] for name in columns), strict=True)


def digest(parts: Iterable[object]) -> str:
    """Hash of texts, numbers and bytes, and of rows of them, in their order."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        total.update(repr(part).encode())
    return total.hexdigest()


@dataclass(frozen=True)
class StateFolder:
    """`output/state`: where a run of this identity keeps its state."""

    path: Path
    identity: RunIdentity

    def save(self, state: TrainState, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        """Replace the saved state by this one; a kill at any moment leaves the old or the new."""
        self.path.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            tensors[f"parameter/{name}"] = parameter.detach().contiguous()
            for moment, value in optimizer.moments(parameter).items():
                tensors[f"{moment}/{name}"] = value.detach().contiguous()
        weights = f"state-{state.step}.safetensors"
        save_file(tensors, self.path / weights)
        temporary = self.path / "state.json.tmp"
        record = {**asdict(state), "tensors": weights, "run": self.identity.at(state.step)}
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
        temporary.replace(self.path / "state.json")
        for old in self.path.glob("state-*.safetensors"):
            if old.name != weights:
                old.unlink()

    def load(self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> TrainState:
        """Put a saved state into parameters and optimizer; returns how far it is, 0 steps when nothing was saved.

        Raises:
            StorageError: the state was saved by another run or by an earlier version, or is torn.
        """
        if not (self.path / "state.json").is_file():
            return TrainState()
        try:
            record = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
            state = TrainState(int(record["step"]), record["best"], int(record["stale"]))
            tensors = load_file(os.fspath(self.path / record["tensors"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise StorageError(f"{self.path}: the saved state is torn ({error}); remove it to start anew") from error
        self._check(record.get("run"), state)
        shapes = {f"parameter/{name}": parameter.shape for name, parameter in parameters.items()}
        if shapes != {name: value.shape for name, value in tensors.items() if name.startswith("parameter/")}:
            raise StorageError(f"{self.path}: other parameters were trained; choose another output or remove it")
        moments: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
        for address, value in tensors.items():
            moment, _, name = address.partition("/")
            if moment != "parameter":
                moments[name][moment] = value.to(parameters[name].device)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                if moments[name]:
                    optimizer.restore(parameter, moments[name])
        return state

    def _check(self, saved: Mapping[str, object] | None, state: TrainState) -> None:
        if saved is None:
            raise StorageError(f"{self.path}: an earlier version saved this state; choose another output or remove it")
        if unlike := differences(saved, self.identity.at(state.step)):
            raise StorageError(
                f"{self.path}: holds the state of another run: {'; '.join(unlike)}; "
                "choose another output, or remove the folder to start anew"
            )
