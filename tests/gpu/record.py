"""What a check runs on and by when, and the measures that its phases share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lakerank_benchmark.checkpoints import SHAPES
from lakerank_pictograms.network import Shape

#: What a phase found out, as JSON has it.
Findings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of what is computed: a page's grid of patches, tokens of a text and a query, documents, rows."""

    grid: tuple[int, int]
    text: int
    query: int
    documents: int
    rows: int
    ceiling: int
    copied: int
    repeat_s: float


#: By shape: the published one at the sizes of jina-reranker-m0's limits, and one that a processor does in seconds.
SIZES = {
    "2b": Sizes((64, 48), 512, 26, 21, 16_384, 8192, 2**30, 0.2),
    "tiny": Sizes((8, 8), 40, 8, 3, 512, 256, 2**20, 0.01),
}


@dataclass(slots=True)
class Check:
    """The device and the shape to check, until when a phase may go on (of time.monotonic), and what was found out."""

    device: torch.device
    shape_name: str
    until: float
    found: dict[str, Findings]

    @property
    def shape(self) -> Shape:
        """The network's."""
        return SHAPES[self.shape_name]

    @property
    def sizes(self) -> Sizes:
        """Those of the shape."""
        return SIZES[self.shape_name]

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU of NVIDIA's."""
        return self.device.type == "cuda"

    @property
    def left_s(self) -> float:
        """Seconds that are left to the phase."""
        return self.until - time.monotonic()

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Normal values on the device."""
        return torch.randn(*shape, device=self.device).to(dtype)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object]) -> float:
        """Median seconds of a call, the device's work included; the first two are not counted."""
        call()
        call()
        taken: list[float] = []
        while len(taken) < 3 or (sum(taken) < self.sizes.repeat_s and len(taken) < 200):
            self.synchronise()
            started = time.perf_counter()
            call()
            self.synchronise()
            taken.append(time.perf_counter() - started)
        return sorted(taken)[len(taken) // 2]
