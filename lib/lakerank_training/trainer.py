"""The training loop: each step depends on the seed and its number alone, so that a killed run resumes exactly.

A saved state belongs to one run, by its settings and by what it reads, so that it is never taken for another run's. Its
weights and optimizer moments are safetensors, the step is JSON; no pickles.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from lakerank.errors import StorageError
from lakerank.lake.checksums import json_bytes, parse_json
from lakerank.model.checkpoint import file_hash, weight_files
from lakerank_training.dataset import Dataset, ImageStore, Table
from lakerank_training.step import DistributedContext, Optimizer, Step
from lakerank_training.validate import Validation

log = logging.getLogger(__name__)


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


def dataset_identity(dataset: Dataset) -> dict[str, object]:
    """A fingerprint of each table's rows as training reads them, whatever their paths and files."""
    scores = {"candidates": dataset.candidates, "teacher": dataset.teacher}
    return {
        "documents": digest(_rows(dataset.documents, dataset.images)),
        "queries": digest(_rows(dataset.queries, dataset.images)),
        "qrels": digest(sorted(grades.items()) for grades in dataset.grades),
        **{name: digest(list(each.items()) for each in rows) if rows else None for name, rows in scores.items()},
    }


def _rows(table: Table, images: ImageStore) -> Iterable[object]:
    @functools.cache
    def image_digest(index: int) -> bytes:
        pixels = images.pixels[index]
        return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes()).digest()

    shown = (image_digest(index) if index >= 0 else None for index in table.images.tolist())
    return zip(table.ids, table.texts, shown, table.kinds, table.topics.tolist(), strict=True)


def checkpoint_identity(folder: Path) -> str:
    """A fingerprint of a checkpoint's weights, configuration and tokenizer."""
    return digest(map(file_hash, [*weight_files(folder), folder / "config.json", folder / "tokenizer.json"]))


def digest(parts: Iterable[object]) -> str:
    """Hash of texts, numbers and bytes, and of rows of them, in their order."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        total.update(repr(part).encode())
    return total.hexdigest()


@dataclass(frozen=True)
class TrainState:
    """The progress of a run: steps done, the best held-out mean so far, and the evaluations since.

    `figures`: those of the weights that the run would leave.
    """

    step: int = 0
    best: float | None = None
    stale: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)

    def evaluated(self, mean: float, figures: Mapping[str, float]) -> TrainState:
        """After an evaluation of a run that keeps its best weights; of equals the first."""
        if self.best is None or mean > self.best:
            return replace(self, best=mean, stale=0, figures=figures)
        return replace(self, stale=self.stale + 1)


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
            for kind, value in {"parameter": parameter, **optimizer.state.get(parameter, {})}.items():
                tensors[f"{kind}/{name}"] = value.detach().contiguous()
        weights = f"state-{state.step}.safetensors"
        save_file(tensors, self.path / weights)
        temporary = self.path / "state.json.tmp"
        record = {**asdict(state), "tensors": weights, "hash": file_hash(self.path / weights)}
        temporary.write_bytes(json_bytes({**record, "run": self.identity.at(state.step)}))
        temporary.replace(self.path / "state.json")
        for old in self.path.glob("state-*.safetensors"):
            if old.name != weights:
                old.unlink()

    def load(self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> TrainState:
        """Put a saved state into parameters and optimizer; returns how far it is, 0 steps when nothing was saved.

        Raises:
            StorageError: the state was saved by another run or by an earlier version, or is corrupt.
        """
        if not (self.path / "state.json").is_file():
            return TrainState()
        try:
            record = parse_json("state.json", (self.path / "state.json").read_bytes())
            weights = self.path / record["tensors"]
            if record.get("hash") not in (None, file_hash(weights)):
                raise ValueError(f"{weights.name} is not what was written")
            tensors = load_file(os.fspath(weights))
        except (StorageError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise StorageError(
                f"{self.path}: the saved state is corrupt ({error}); remove it to start again"
            ) from error
        names = {each.name for each in fields(TrainState)}
        if not record.keys() >= {*names, "run"}:
            raise StorageError(f"{self.path}: an earlier version saved this state; choose another output or remove it")
        state = TrainState(**{name: record[name] for name in names})
        if unlike := differences(record["run"], self.identity.at(state.step)):
            raise StorageError(
                f"{self.path}: holds the state of another run: {'; '.join(unlike)}; "
                "choose another output, or remove the folder to start anew"
            )
        saved: dict[str, dict[str, Tensor]] = {}
        for address, value in tensors.items():
            kind, _, name = address.partition("/")
            saved.setdefault(name, {})[kind] = value
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        if shapes != {name: each["parameter"].shape for name, each in saved.items()}:
            raise StorageError(f"{self.path}: other parameters were trained; choose another output or remove it")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name].pop("parameter"))
                if saved[name]:
                    optimizer.state[parameter] = {kind: each.to(parameter.device) for kind, each in saved[name].items()}
        return state


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to; `figures` are those of the weights that it leaves."""

    steps: int
    resumed_at: int
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    stopped_early: bool = False


@dataclass(frozen=True)
class Cadence:
    """After how many steps a run is measured and saved. `patience`: it stops after so many evaluations in a row without
    a better mean, and leaves the best weights, not the last.
    """

    evaluate_every: int = 250
    save_every: int = 200
    patience: int | None = None


class Trainer:
    """Trains to the end of the last stage, or until nothing gets better.

    `publish` saves the network for use: at every checkpoint, or, with patience, whenever it is the best.
    """

    def __init__(
        self, step: Step, output: Path, state: StateFolder, cadence: Cadence, validation: Validation,
        publish: Callable[[], None],
    ) -> None:  # fmt: skip
        """Resume where the output has a state.

        Raises:
            StorageError: the output holds the state of another run; nothing there is changed.
        """
        self._step, self._output, self._folder = step, output, state
        self._cadence, self._validation, self._publish = cadence, validation, publish
        self._processes: DistributedContext = step.processes
        self._state: TrainState = state.load(step.parameters, step.optimizer)
        if self._state.step != self._processes.of_first(self._state.step):
            raise StorageError(f"{output}/state: processes found different steps; put output on a shared file system")

    def train(self) -> TrainingResult:
        """Every step that is left."""
        first, started, steps = self._state.step, time.monotonic(), self._step.schedule.ends[-1]
        quiet = None if self._processes.first else True  # None: a bar if standard error is a terminal
        self._step.objective.network.network.train()
        with _open_metrics(self._output / "metrics.jsonl", first, self._processes) as metrics:
            for number in tqdm(range(first, steps), initial=first, total=steps, unit="step", disable=quiet):
                if self._cadence.patience is not None and self._state.stale >= self._cadence.patience:
                    break
                record = self._step(number)
                if self._processes.first:
                    _write(metrics, {**record, "seconds": time.monotonic() - started})
                self._after(number, metrics)
        done = self._state.step
        return TrainingResult(done, first, time.monotonic() - started, self._state.figures, stopped_early=done < steps)

    def _after(self, number: int, metrics: IO[str]) -> None:
        """Evaluate, publish and save where it is time to, the state last: a run killed before that does it all again.

        What it had written by then does no harm: `_open_metrics` drops lines of later steps, publishing replaces.
        """
        done = number + 1
        last, keep_best = done == self._step.schedule.ends[-1], self._cadence.patience is not None
        self._state = replace(self._state, step=done)
        save = last or done % self._cadence.save_every == 0
        publish = save and not keep_best
        if last or done % self._cadence.evaluate_every == 0:
            mean, figures = self._evaluate(number, metrics)
            if keep_best and mean is not None:
                self._state = self._state.evaluated(mean, figures)
                save, publish = True, self._state.stale == 0
            elif not keep_best and figures:
                self._state = replace(self._state, figures=figures)
        if save:
            if self._processes.first:
                if publish:
                    self._publish()
                self._folder.save(self._state, self._step.parameters, self._step.optimizer)
            self._processes.wait()

    def _evaluate(self, number: int, metrics: IO[str]) -> tuple[float | None, dict[str, float]]:
        """The mean by which weights are the best, None where there is none, and the figures.

        The mean is the first process's for all, so that they stop together: each measures, but two machines may differ
        in the last digit.
        """
        stage = self._step.schedule.stage(number)
        figures = self._validation.measure(self._step.objective, stage)
        if self._processes.first:
            _write(metrics, {"step": number + 1, "stage": stage.name, "ndcg@10": figures})
            log.info("step %d of %d: %s", number + 1, self._step.schedule.ends[-1], figures)
        mean = self._processes.of_first(fmean(figures.values())) if stage.ranking and figures else None
        return mean, figures


def _open_metrics(path: Path, first: int, processes: DistributedContext) -> IO[str]:
    """The file to append to, without what a killed run wrote after the state that this one resumes from."""
    if not processes.first:
        return Path("/dev/null").open("a", encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first]
    path.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _write(metrics: IO[str], record: Mapping[str, object]) -> None:
    metrics.write(json.dumps(record) + "\n")
    metrics.flush()
