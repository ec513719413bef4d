"""Peak memory of a contender, in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from lakerank.records import DocumentGroup
from lakerank_benchmark.contenders import load


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: resident before and after loading the weights, and at most while scoring; `device`: allocated on a GPU."""

    contender: str
    before: int
    loaded: int
    peak: int
    device: int | None

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """All four, in the order of time."""
        return self.before, self.loaded, self.peak, self.device


def peak_memory(
    name: str,
    checkpoint: str,
    dtype: str,
    device: str,
    threads: int,
    groups: Sequence[DocumentGroup],
    max_length: int | None = None,
) -> Memory:
    """Load a contender and score `groups` in a fresh process.

    Raises:
        CannotRun: it cannot load these weights.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_score, name, checkpoint, dtype, device, threads, list(groups), max_length).result()


def _score(
    name: str,
    checkpoint: str,
    dtype: str,
    device: str,
    threads: int,
    groups: Sequence[DocumentGroup],
    max_length: int | None,
) -> Memory:
    torch.set_num_threads(threads)
    before = _resident("VmRSS")
    contender = load(name, checkpoint, dtype, device, 2, max_length)
    loaded = _resident("VmRSS")
    _forget_peak()
    contender.run(groups)
    on_device = torch.cuda.max_memory_allocated(device) if torch.device(device).type == "cuda" else None
    return Memory(name, before, loaded, _resident("VmHWM"), on_device)


def _resident(line: str) -> int:
    """This process's resident memory in bytes, now (VmRSS) or at most (VmHWM); without /proc at most, either way."""
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(rf"^{line}:\s+(\d+) kB", status.read_text(), flags=re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _forget_peak() -> None:
    """Let the peak start from now on, where Linux allows it: importing the libraries takes more than a small model."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
