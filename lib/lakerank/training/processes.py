"""The processes that train together: started by torchrun or Spark's TorchDistributor, or this one alone.

Every process draws the same batch, computes its share of the batch's shards, and adds its gradients to the others'. So
one process and many come to the same sums; which process computes a shard makes no difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process, number `rank` of `count`."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

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
        device = trained[0].device
        has = self.add(torch.tensor([float(parameter.grad is not None) for parameter in trained], device=device))
        moved = [parameter for parameter, some in zip(trained, has.tolist(), strict=True) if some]
        flat = torch.cat([_gradient(parameter).flatten() for parameter in moved])
        self.add(flat)
        parts = torch.split(flat, [parameter.numel() for parameter in moved])
        for parameter, gradient in zip(moved, parts, strict=True):
            parameter.grad = gradient.view_as(parameter).clone()

    def same(self, value: int) -> bool:
        """Whether all processes say the same number."""
        total, squares = self.add(self._placed(float(value), float(value * value))).tolist()
        return bool(abs(squares * self.count - total * total) < 0.5)

    def agreed(self, value: float) -> float:
        """The first process's number, for all."""
        own = self._placed(value)
        if self.count > 1:
            dist.broadcast(own, src=0)
        return float(own)

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()

    def _placed(self, *values: float) -> Tensor:
        """Numbers where processes can exchange them."""
        on_gpu = self.count > 1 and dist.get_backend() == "nccl"
        return torch.tensor(values, dtype=torch.float64, device=f"cuda:{self.local_rank}" if on_gpu else "cpu")


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that the environment names, as torchrun sets it (RANK, WORLD_SIZE, …); alone without it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend)
    try:
        yield Processes(dist.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
