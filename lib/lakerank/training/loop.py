"""The training loop: each step depends on the seed and its number alone, so that a run can go on after a kill."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from tqdm import tqdm

from lakerank.errors import TrainingError
from lakerank.training.batches import Neighbours, Sampler, Selection
from lakerank.training.config import StageConfig, TrainConfig
from lakerank.training.evaluation import Slice, evaluate
from lakerank.training.objective import Learner, Material, batch_loss
from lakerank.training.schedule import learning_rate, place, total_steps
from lakerank.training.state import load_state, save_state
from lakerank.training.tables import TrainingLake

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    steps: int
    resumed_at: int
    seconds: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class _Work:
    """What every step works on. `parameters` are all that some step may change."""

    config: TrainConfig
    learner: Learner
    material: Material
    bias: float
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer

    def step(self, step: int, sampler: Sampler) -> dict[str, object]:
        """Change the weights once; everything random depends on the seed and the step."""
        here = place(self.config.stages, step)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(not here.stage.upper_only or self.learner.is_upper(name))
        random = np.random.default_rng((self.config.seed, step))
        neighbours = _neighbours(self.learner) if here.mined > 0 else None
        batch = sampler.draw(random, here.stage.groups, here.stage.group_size, here.mined, neighbours)
        seed = int(random.integers(2**62))
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed) if self.config.augment else None
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            loss, parts = batch_loss(self.learner, self.material, batch, here.stage, self.bias, generator)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {step + 1}: the loss is {float(loss.detach())}; lower optimizer.learning_rate and start anew"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.optimizer.clip)
        rate = learning_rate(self.config.optimizer, self.config.stages, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        record = {"step": step + 1, "stage": here.stage.name, "loss": float(loss.detach()), **parts}
        return {**record, "norm": float(norm), "rate": rate}


def train(
    config: TrainConfig,
    learner: Learner,
    material: Material,
    slices: Mapping[str, Slice],
    bias: float,
    publish: Callable[[], None],
) -> Outcome:
    """Train to the end of the last stage. `publish` is called at every checkpoint, to save the network for use."""
    folder = Path(config.output) / "state"
    parameters = learner.parameters()
    decay = config.optimizer.weight_decay
    optimizer = torch.optim.AdamW(_decayed(parameters, decay), lr=0.0, betas=(0.9, 0.98), fused=True)
    first, steps, started = load_state(folder, parameters, optimizer), total_steps(config.stages), time.monotonic()
    work = _Work(config, learner, material, bias, parameters, optimizer)
    samplers = make_samplers(config, material.lake)
    figures: dict[str, float] = {}
    learner.network.train()
    with _metrics(Path(config.output) / "metrics.jsonl", first) as metrics:
        for step in tqdm(range(first, steps), initial=first, total=steps, disable=None, unit="step"):
            here = place(config.stages, step)
            record = work.step(step, samplers[here.index])
            _write(metrics, {**record, "seconds": time.monotonic() - started})
            last = step + 1 == steps
            if last or (step + 1) % config.checkpoint_every == 0:
                save_state(folder, step + 1, parameters, optimizer)
                publish()
            if last or (step + 1) % config.evaluation.every == 0:
                whole = here.stage.ranking is not None
                figures = evaluate(learner, slices, config.evaluation.candidates, config.seed, config.bf16, whole)
                _write(metrics, {"step": step + 1, "stage": here.stage.name, "ndcg@10": figures})
                log.info("step %d of %d: %s", step + 1, steps, figures)
    return Outcome(steps, first, time.monotonic() - started, figures)


def make_samplers(config: TrainConfig, lake: TrainingLake) -> list[Sampler]:
    """What each stage draws from."""
    apart = {name: frozenset(values) for name, values in config.lake.apart.items()}
    return [Sampler(lake, _selection(stage), apart) for stage in config.stages]


def _metrics(path: Path, first: int) -> IO[str]:
    """The file to go on writing to, without what a killed run wrote after the state that this one starts from."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first]
    path.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _decayed(parameters: Mapping[str, torch.nn.Parameter], decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices alone: not on norms, biases and embeddings."""
    plain = {name for name, value in parameters.items() if value.ndim < 2 or "embed_tokens" in name}
    return [
        {"params": [value for name, value in parameters.items() if name not in plain], "weight_decay": decay},
        {"params": [value for name, value in parameters.items() if name in plain], "weight_decay": 0.0},
    ]


def _selection(stage: StageConfig) -> Selection:
    only = {name: frozenset(values) for name, values in stage.only.items()}
    return Selection(only, stage.document_weights, stage.query_weights)


def _neighbours(learner: Learner) -> Neighbours | None:
    """Topics whose proxies point in nearly the same direction."""
    if learner.proxies is None:
        return None
    proxies = torch.nn.functional.normalize(learner.proxies.weight.detach().float(), dim=1)

    def nearest(topic: int) -> np.ndarray:
        likeness = proxies @ proxies[topic]
        likeness[topic] = -torch.inf
        return likeness.topk(min(48, len(likeness) - 1)).indices.numpy()

    return nearest


def _write(metrics: IO[str], record: Mapping[str, object]) -> None:
    metrics.write(json.dumps(record) + "\n")
    metrics.flush()
