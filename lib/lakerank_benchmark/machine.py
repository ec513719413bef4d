"""Which device and how many threads a benchmark uses where it was not told."""

from __future__ import annotations

import torch

from lakerank.model.engine.device import choose_device


def device_name(device: str) -> str:
    """`auto` resolved: the current GPU where there is one, else the CPU.

    Raises:
        CheckpointError: there is no such device.
    """
    return str(choose_device(device))


def chosen_threads(threads: int | None) -> int:
    """Torch's threads: as told, or as many as it would take."""
    return threads or torch.get_num_threads()
