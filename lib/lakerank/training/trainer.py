"""The training loop: each step depends on the seed and its number alone, so that a killed run resumes exactly."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import IO

from tqdm import tqdm

from lakerank.errors import StorageError
from lakerank.training.state import StateFolder, TrainState
from lakerank.training.step import DistributedContext, Step
from lakerank.training.validate import Validation

log = logging.getLogger(__name__)


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
        if not self._processes.same(self._state.step):
            raise StorageError(f"{output}/state: processes found different steps; put output where all see it")

    def train(self) -> TrainingResult:
        """Every step that is left."""
        first, started, steps = self._state.step, time.monotonic(), self._step.schedule.steps
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
        figures = self._figures() if self._processes.first else {}
        done = self._state.step
        return TrainingResult(done, first, time.monotonic() - started, figures, stopped_early=done < steps)

    def _figures(self) -> dict[str, float]:
        """Held-out figures of the weights that are kept: the last evaluation's, or the best one's."""
        lines = (self._output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        evaluations = [record for line in lines if (record := json.loads(line)).get("ndcg@10")]
        if self._cadence.patience is not None:
            ranking = {stage.name for stage in self._step.schedule.stages if stage.ranking is not None}
            evaluations = [record for record in evaluations if record["stage"] in ranking]
            # the first of equals, as `TrainState.evaluated` has it
            evaluations = evaluations and [max(evaluations, key=lambda record: fmean(record["ndcg@10"].values()))]
        return dict(evaluations[-1]["ndcg@10"]) if evaluations else {}

    def _after(self, number: int, metrics: IO[str]) -> None:
        """Evaluate, publish and save where it is time to, the state last: a run killed before that does it all again.

        What it had written by then does no harm: `_open_metrics` drops lines of later steps, publishing replaces.
        """
        last = number + 1 == self._step.schedule.steps
        self._state = replace(self._state, step=number + 1)
        keep_best = self._cadence.patience is not None
        save = last or (number + 1) % self._cadence.save_every == 0
        publish = save and not keep_best
        if last or (number + 1) % self._cadence.evaluate_every == 0:
            figure = self._evaluate(number, metrics)
            if keep_best and figure is not None:
                self._state = self._state.evaluated(figure)
                save, publish = True, self._state.stale == 0
        if save:
            if self._processes.first:
                if publish:
                    self._publish()
                self._folder.save(self._state, self._step.parameters, self._step.optimizer)
            self._processes.wait()

    def _evaluate(self, number: int, metrics: IO[str]) -> float | None:
        """The mean by which weights are the best, the first process's for all, so that they stop together; None where
        there is none. Each process measures, but two machines may differ in the last digit.
        """
        stage = self._step.schedule.stage(number)
        figures = self._validation.measure(self._step.objective, stage)
        if self._processes.first:
            _write(metrics, {"step": number + 1, "stage": stage.name, "ndcg@10": figures})
            log.info("step %d of %d: %s", number + 1, self._step.schedule.steps, figures)
        return self._processes.of_first(fmean(figures.values())) if stage.ranking and figures else None


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
