"""What scoring has cost so far: tokens, padding, operations, and seconds by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch


@dataclass(slots=True)
class Work:
    """Work since loading; `pairwise` is what whole pairs, unpadded, would have cost in tokens.

    Images count as visual tokens. `padding` is the part of `computed` that no pair needed: filled rows and slots.
    `flops` are floating-point operations that the real tokens needed, two a multiply-add; padding is not in them.

    Seconds of `decode` (images) and `tokenise` are processor time summed over the host's threads, which work ahead of
    the device. Those of `vision`, `prefix` and `suffix` are the device's: on a GPU between events on its stream, on a
    CPU the wall time of the thread that drives it, or the mean of the threads that do. `drive` is the wall time of the
    thread that scores inside the engine, launches and waiting for the device included; `wait` the time it waited for
    the host's threads.
    """

    computed: int = 0
    pairwise: int = 0
    pairs: int = 0
    documents: int = 0
    images_encoded: int = 0
    padding: int = 0
    prefixes_reused: int = 0
    flops: float = 0.0
    decode_s: float = 0.0
    tokenise_s: float = 0.0
    vision_s: float = 0.0
    prefix_s: float = 0.0
    suffix_s: float = 0.0
    drive_s: float = 0.0
    wait_s: float = 0.0

    def __sub__(self, earlier: Work) -> Work:
        """What was done since `earlier`, a copy made with `dataclasses.replace(work)`."""
        return Work(**{field.name: getattr(self, field.name) - getattr(earlier, field.name) for field in fields(self)})


class DeviceTimer:
    """Adds up a device's seconds by stage without making it wait: events on a GPU are read when results are.

    Of a processor, `threads` may be in a stage at the same time: their mean is added.
    """

    def __init__(self, device: torch.device, work: Work, threads: int = 1) -> None:
        self._cuda = device.type == "cuda"
        self._work = work
        self._threads = threads
        self._adding = threading.Lock()
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def stage(self, field: str) -> Iterator[None]:
        """Count what the body launches under one of Work's fields; stages do not nest."""
        if self._cuda:
            start, stop = _event(), _event()
            start.record()
            yield
            stop.record()
            self._pending.append((field, start, stop))
            return
        started = time.perf_counter()
        yield
        self._add(field, time.perf_counter() - started)

    def collect(self) -> None:
        """Read the events of stages that are over; to be called after results were copied back."""
        for field, start, stop in self._pending:
            stop.synchronize()
            self._add(field, start.elapsed_time(stop) / 1000)
        self._pending.clear()

    def _add(self, field: str, seconds: float) -> None:
        with self._adding:
            setattr(self._work, field, getattr(self._work, field) + seconds / self._threads)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
