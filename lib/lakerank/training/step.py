"""One step: a batch drawn, computed in shards, its gradients added over shards and processes, the weights changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lakerank.errors import TrainingError
from lakerank.training.batches import Batch, Neighbours, Sampler, Selection
from lakerank.training.config import StageConfig, TrainConfig
from lakerank.training.learner import Learner
from lakerank.training.negatives import NegativeRule
from lakerank.training.objective import Material, batch_loss, pairs_of
from lakerank.training.optimizer import Optimizer
from lakerank.training.processes import Processes
from lakerank.training.schedule import learning_rate, place
from lakerank.training.tables import TrainingLake

#: The losses that a step may have, in the order in which processes add them up.
LOSSES = ("loss", "ranking", "pointwise", "distillation", "contrastive", "proxies")


@dataclass(frozen=True)
class Step:
    """What every step works on. `parameters` are all that some step may change."""

    config: TrainConfig
    learner: Learner
    material: Material
    samplers: Sequence[Sampler]
    bias: float
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: Optimizer
    processes: Processes

    def __call__(self, number: int) -> dict[str, object]:
        """Change the weights once; everything random depends on the seed and the step's number, counted from 0.

        Raises:
            TrainingError: the loss or its gradient is not finite any more; the weights are as they were.
        """
        here = place(self.config.stages, number)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(self._trains(here.stage, name))
        if here.stage.recall and here.begins:
            self.learner.recall()
        random = np.random.default_rng((self.config.seed, number))
        neighbours = _neighbours(self.learner) if here.mined > 0 else None
        stage, sampler = here.stage, self.samplers[here.index]
        batch = sampler.draw(random, stage.groups, stage.group_size, here.mined, neighbours)
        shards = self._shards(batch, stage)
        losses = self._backward(shards, stage, number)
        _check_finite(number, "loss", losses["loss"])
        self.processes.add_gradients(self.parameters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.optimizer.clip))
        _check_finite(number, "gradient's norm", norm)
        rate = learning_rate(self.config.optimizer, self.config.stages, number)
        self.optimizer.step(rate)
        return {"step": number + 1, "stage": stage.name, **losses, "norm": norm, "rate": rate}

    def _trains(self, stage: StageConfig, name: str) -> bool:
        if stage.upper_only:
            return self.learner.is_upper(name)
        return not stage.layers_only or self.learner.is_layer(name)

    def _shards(self, batch: Batch, stage: StageConfig) -> list[Batch]:
        """Parts of a batch within `step_tokens`, at least one a process."""
        most = self.config.optimizer.step_tokens
        count = min(self.processes.count, batch.groups)
        while most and count < batch.groups:
            if max(self._tokens(shard, stage) for shard in batch.shards(count)) <= most:
                break
            count += 1
        return batch.shards(count)

    def _tokens(self, batch: Batch, stage: StageConfig) -> int:
        """Tokens that the network computes for a batch, padding included."""
        prefix = max(len(self.material.documents[row].ids) for row in batch.documents)
        suffix = max(len(self.material.queries[row].ids) for row in batch.queries)
        pairs = len(pairs_of(batch, stage.ranking is not None)[0])
        return prefix * len(batch.documents) + suffix * pairs

    def _backward(self, shards: Sequence[Batch], stage: StageConfig, number: int) -> dict[str, float]:
        """Add up gradients of this process's shards; returns the losses of all."""
        config, groups = self.config, sum(shard.groups for shard in shards)
        totals = torch.zeros(len(LOSSES), dtype=torch.float64)
        for index in range(self.processes.rank, len(shards), self.processes.count):
            seed = int(np.random.default_rng((config.seed, number, index)).integers(2**62))
            torch.manual_seed(seed)  # dropout
            generator = torch.Generator().manual_seed(seed) if config.augment else None
            with torch.autocast(self.learner.device.type, torch.bfloat16, enabled=config.bf16):
                loss, parts = batch_loss(self.learner, self.material, shards[index], stage, self.bias, generator)
            share = shards[index].groups / groups
            (loss * share).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.detach(), **parts}.items():
                totals[LOSSES.index(name)] += float(value) * share
        totals = self.processes.add(totals.to(self.learner.device) if self.processes.count > 1 else totals)
        named = dict(zip(LOSSES, totals.tolist(), strict=True))
        return {name: value for name, value in named.items() if name == "loss" or value}


def make_samplers(config: TrainConfig, lake: TrainingLake) -> list[Sampler]:
    """What each stage draws from."""
    apart = {name: frozenset(values) for name, values in config.lake.apart.items()}
    rule = NegativeRule(config.negatives.skip, config.negatives.depth, config.negatives.below)
    return [Sampler(lake, _selection(stage), apart, rule) for stage in config.stages]


def _selection(stage: StageConfig) -> Selection:
    only = {name: frozenset(values) for name, values in stage.only.items()}
    return Selection(only, stage.document_weights, stage.query_weights, stage.hard_negatives, by_topic=stage.bag)


def _check_finite(number: int, what: str, value: float) -> None:
    if not math.isfinite(value):
        raise TrainingError(f"step {number + 1}: the {what} is {value}; lower optimizer.learning_rate and start anew")


def _neighbours(learner: Learner) -> Neighbours | None:
    """Topics whose proxies point in nearly the same direction."""
    if learner.proxies is None:
        return None
    proxies = torch.nn.functional.normalize(learner.proxies.weight.detach().float(), dim=1)

    def nearest(topic: int) -> np.ndarray:
        likeness = proxies @ proxies[topic]
        likeness[topic] = -torch.inf
        return likeness.topk(min(48, len(likeness) - 1)).indices.cpu().numpy()

    return nearest
