"""The training loop: each step depends on the seed and its number alone, so that a run can go on after a kill."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import IO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lakerank.errors import StorageError
from lakerank.training.config import TrainConfig, to_yaml
from lakerank.training.evaluation import Slice, evaluate
from lakerank.training.identity import Identity
from lakerank.training.learner import Learner
from lakerank.training.objective import Material
from lakerank.training.optimizer import Optimizer, make_optimizer
from lakerank.training.processes import Processes
from lakerank.training.schedule import place, total_steps
from lakerank.training.state import Progress, load_state, save_state
from lakerank.training.step import Step, make_samplers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run came to; `figures` are those of the weights that it leaves."""

    steps: int
    resumed_at: int
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    stopped_early: bool = False


def train(
    config: TrainConfig,
    identity: Identity,
    learner: Learner,
    material: Material,
    slices: Mapping[str, Slice],
    bias: float,
    publish: Callable[[], None],
    processes: Processes,
) -> Outcome:
    """Train to the end of the last stage, or until nothing gets better.

    `publish` saves the network for use: at every checkpoint, or, with `evaluation.patience`, whenever it is the best.

    Raises:
        StorageError: the output holds the state of another run; nothing there is changed.
    """
    parameters = learner.parameters()
    optimizer = make_optimizer(config.optimizer, parameters)
    progress = load_state(Path(config.output) / "state", identity, parameters, optimizer)
    if not processes.same(progress.step):
        raise StorageError(f"{config.output}/state: processes found different steps; put output where all see it")
    if processes.first:
        Path(config.output).mkdir(parents=True, exist_ok=True)
        Path(config.output, "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    samplers = make_samplers(config, material.lake)
    step = Step(config, learner, material, samplers, bias, parameters, optimizer, processes)
    run = _Run(config, identity, learner, slices, publish, processes, optimizer, parameters, step, progress)
    first, started = progress.step, time.monotonic()
    learner.network.train()
    with _metrics(run.output / "metrics.jsonl", first, processes) as metrics:
        bar = tqdm(range(first, run.steps), initial=first, total=run.steps, unit="step", disable=run.quiet)
        for number in bar:
            if run.exhausted:
                break
            record = run.step(number)
            if processes.first:
                _write(metrics, {**record, "seconds": time.monotonic() - started})
            run.after(number, metrics)
    done = run.progress.step
    figures = run.figures() if processes.first else {}
    return Outcome(done, first, time.monotonic() - started, figures, stopped_early=done < run.steps)


@dataclass
class _Run:
    """A run on its way; `progress` is what it comes back to after a kill."""

    config: TrainConfig
    identity: Identity
    learner: Learner
    slices: Mapping[str, Slice]
    publish: Callable[[], None]
    processes: Processes
    optimizer: Optimizer
    parameters: Mapping[str, torch.nn.Parameter]
    step: Step
    progress: Progress

    @property
    def output(self) -> Path:
        return Path(self.config.output)

    @property
    def steps(self) -> int:
        return total_steps(self.config.stages)

    @property
    def quiet(self) -> bool | None:
        """No bar but the first process's; None: if standard error is a terminal."""
        return None if self.processes.first else True

    @property
    def exhausted(self) -> bool:
        patience = self.config.evaluation.patience
        return patience is not None and self.progress.stale >= patience

    def figures(self) -> dict[str, float]:
        """Held-out figures of the weights that are kept: the last evaluation's, or the best one's."""
        lines = (self.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        judged = [record for line in lines if (record := json.loads(line)).get("ndcg@10")]
        if self.config.evaluation.patience is not None:
            ranking = {stage.name for stage in self.config.stages if stage.ranking is not None}
            judged = [record for record in judged if record["stage"] in ranking]
            # the first of equals, as `Progress.judged` has it
            judged = judged and [max(judged, key=lambda record: fmean(record["ndcg@10"].values()))]
        return dict(judged[-1]["ndcg@10"]) if judged else {}

    def after(self, number: int, metrics: IO[str]) -> None:
        """Evaluate, publish and save where it is time to, the state last: a run killed before that does it all again.

        What it had written by then does no harm: `_metrics` drops lines of steps after the state, publishing replaces.
        """
        last = number + 1 == self.steps
        self.progress = replace(self.progress, step=number + 1)
        keep_best = self.config.evaluation.patience is not None
        save = last or (number + 1) % self.config.checkpoint_every == 0
        publish = save and not keep_best
        if last or (number + 1) % self.config.evaluation.every == 0:
            figure = self._evaluate(number, metrics)
            if keep_best and figure is not None:
                self.progress = self.progress.judged(figure)
                save, publish = True, self.progress.stale == 0
        if save:
            self._save(publish)

    def _save(self, publish: bool) -> None:
        if self.processes.first:
            if publish:
                self.publish()
            save_state(self.output / "state", self.identity, self.progress, self.parameters, self.optimizer)
        self.processes.wait()

    def _evaluate(self, number: int, metrics: IO[str]) -> float | None:
        """The mean that a run is judged by, the first process's for all, so that they stop together; None without one.

        Each measures, but two machines may differ in the last digit.
        """
        stage, evaluation = place(self.config.stages, number).stage, self.config.evaluation
        whole = stage.ranking is not None
        figures = evaluate(self.learner, self.slices, evaluation.candidates, self.config.seed, self.config.bf16, whole)
        if self.processes.first:
            _write(metrics, {"step": number + 1, "stage": stage.name, "ndcg@10": figures})
            log.info("step %d of %d: %s", number + 1, self.steps, figures)
        return self.processes.agreed(fmean(figures.values())) if whole and figures else None


def _metrics(path: Path, first: int, processes: Processes) -> IO[str]:
    """The file to go on writing to, without what a killed run wrote after the state that this one starts from."""
    if not processes.first:
        return Path("/dev/null").open("a", encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first]
    path.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _write(metrics: IO[str], record: Mapping[str, object]) -> None:
    plain = {name: float(value) if isinstance(value, Tensor | np.floating) else value for name, value in record.items()}
    metrics.write(json.dumps(plain) + "\n")
    metrics.flush()
