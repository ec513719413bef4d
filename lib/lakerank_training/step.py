"""One step: a batch drawn, computed in shards, its gradients added over shards and processes, the weights changed.

Every process draws the same batch, computes its share of the batch's shards, and adds its gradients to the others'. So
one process and many come to the same sums; which process computes a shard makes no difference.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lakerank.errors import TrainingError
from lakerank_training.batches import Batch, Sampler, TrainingStage
from lakerank_training.inputs import EncodedDataset
from lakerank_training.losses import Objective, total_loss


@dataclass(frozen=True)
class Schedule:
    """Stages one after another, and the learning rate over their steps: linear warm-up, then a cosine down to `floor`
    of the peak.
    """

    stages: Sequence[TrainingStage]
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    floor: float = 0.02

    @cached_property
    def ends(self) -> list[int]:
        """Steps up to the end of each stage."""
        return list(accumulate(stage.steps for stage in self.stages))

    def position(self, step: int) -> tuple[int, float]:
        """The stage of a step, counted from 0, by its index, and how far through that stage it is, in [0, 1).

        Raises:
            IndexError: there are not so many steps.
        """
        index = bisect_right(self.ends, step)
        if index == len(self.stages):
            raise IndexError(f"step {step} of {self.ends[-1]}")
        steps = self.stages[index].steps
        return index, (step - self.ends[index] + steps) / steps

    def stage(self, step: int) -> TrainingStage:
        """The stage of a step."""
        return self.stages[self.position(step)[0]]

    def rate(self, step: int) -> float:
        """The learning rate; a stage with its own rate restarts the schedule at that peak."""
        first, last, peak = 0, self.ends[-1], self.learning_rate
        for start, stage in zip([0, *self.ends], self.stages, strict=False):
            if stage.learning_rate is not None:
                if step < start:
                    last = start
                    break
                first, peak = start, stage.learning_rate
        done = step - first
        if done < self.warmup_steps:
            return peak * (done + 1) / self.warmup_steps
        progress = (done - self.warmup_steps) / max(1, last - first - self.warmup_steps)
        return peak * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2)


class Optimizer(Protocol):
    """What training uses of torch's optimizers. `state`: the moments of each parameter, after its first step."""

    param_groups: list[dict[str, Any]]
    state: defaultdict[Tensor, Any]

    def step(self) -> object: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...


#: Makes an optimizer of parameters by name, with this weight decay.
MakeOptimizer = Callable[[Mapping[str, nn.Parameter], float], Optimizer]


def adamw(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019). Weight decay is for matrices alone: not for norms, biases and embeddings."""
    plain = {name for name, value in parameters.items() if value.ndim < 2 or "embed_tokens" in name}
    decayed = [value for name, value in parameters.items() if name not in plain]
    others = [value for name, value in parameters.items() if name in plain]
    decays = ((decayed, weight_decay), (others, 0.0))
    groups = [{"params": values, "weight_decay": decay} for values, decay in decays if values]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)


@dataclass(frozen=True)
class DistributedContext:
    """This process, number `rank` of `count`."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """This process's device: of several GPUs, the one of its number on this machine."""
        return f"cuda:{self.local_rank}" if name == "cuda" else name

    def add(self, values: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over processes. A parameter that no process has a gradient for stays without one."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        present = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=trained[0].device)
        moved = [parameter for parameter, some in zip(trained, self.add(present).tolist(), strict=True) if some]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in moved]
        total = self.add(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(total, [parameter.numel() for parameter in moved])
        for parameter, gradient in zip(moved, parts, strict=True):
            parameter.grad = gradient.view_as(parameter).clone()

    def of_first(self, value: float) -> float:
        """The first process's number, for all."""
        if self.count == 1:
            return value
        device = f"cuda:{self.local_rank}" if dist.get_backend() == "nccl" else "cpu"
        exchanged = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(exchanged, src=0)
        return float(exchanged)

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def distributed_context(device: str) -> Iterator[DistributedContext]:
    """Join the processes that the environment names, as torchrun sets it (RANK, WORLD_SIZE, …); alone without it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield DistributedContext()
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield DistributedContext(dist.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class StepSettings:
    """How a step is computed. `step_tokens`: a step of more tokens is computed in several shards of whole groups."""

    seed: int = 0
    clip: float = 1.0
    step_tokens: int | None = None
    bf16: bool = False


@dataclass(frozen=True)
class Step:
    """What every step works on. `parameters` are all that some step may change."""

    settings: StepSettings
    schedule: Schedule
    objective: Objective
    data: EncodedDataset
    samplers: Sequence[Sampler]
    parameters: Mapping[str, nn.Parameter]
    optimizer: Optimizer
    processes: DistributedContext

    def __call__(self, number: int) -> dict[str, object]:
        """Change the weights once; everything random depends on the seed and the step's number, counted from 0.

        Raises:
            TrainingError: the loss or its gradient is not finite any more; the weights are as they were.
        """
        index, progress = self.schedule.position(number)
        sampler = self.samplers[index]
        self.objective.start_step(sampler.stage, first=progress == 0)
        random = np.random.default_rng((self.settings.seed, number))
        batch = self.objective.draw(sampler, random, progress)
        losses = self._backward(self._shards(batch, sampler.stage), sampler.stage, number)
        _check_finite(number, "loss", losses["loss"])
        self.processes.add_gradients(self.parameters.values())
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip))
        _check_finite(number, "gradient's norm", norm)
        rate = self.schedule.rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"step": number + 1, "stage": sampler.stage.name, **losses, "norm": norm, "rate": rate}

    def _shards(self, batch: Batch, stage: TrainingStage) -> list[Batch]:
        """Parts of a batch within `step_tokens`, at least one a process."""
        limit = self.settings.step_tokens
        for count in range(min(self.processes.count, batch.groups), batch.groups):
            shards = batch.shards(count)
            if limit is None or all(self._tokens(shard, stage) <= limit for shard in shards):
                return shards
        return batch.shards(batch.groups)

    def _tokens(self, batch: Batch, stage: TrainingStage) -> int:
        """Tokens that the network computes for a batch, padding included."""
        prefix = max(len(self.data.documents[row].token_ids) for row in batch.documents)
        suffix = max(len(self.data.queries[row].token_ids) for row in batch.queries)
        return prefix * len(batch.documents) + suffix * len(self.objective.pairs(stage, batch)[0])

    def _backward(self, shards: Sequence[Batch], stage: TrainingStage, number: int) -> dict[str, float]:
        """Add up gradients of this process's shards; returns the losses of all."""
        names, groups = ("loss", *self.objective.loss_names), sum(shard.groups for shard in shards)
        totals, device = torch.zeros(len(names), dtype=torch.float64), self.objective.network.device
        for index in range(self.processes.rank, len(shards), self.processes.count):
            torch.manual_seed(int(np.random.default_rng((self.settings.seed, number, index)).integers(2**62)))
            with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16):
                loss, parts = total_loss(self.objective.losses(stage, shards[index]))
            share = shards[index].groups / groups
            (loss * share).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.detach(), **parts}.items():
                totals[names.index(name)] += float(value) * share
        totals = self.processes.add(totals.to(device) if self.processes.count > 1 else totals)
        return {name: value for name, value in zip(names, totals.tolist(), strict=True) if name == "loss" or value}


def _check_finite(number: int, quantity: str, value: float) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"step {number + 1}: the {quantity} is {value}; lower optimizer.learning_rate and start anew"
        )
