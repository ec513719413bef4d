"""The device that scoring runs on, and the types it has units for."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lakerank.errors import CheckpointError

#: Flags of processors that multiply matrices of bfloat16 (Linux's names, x86 and Arm).
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

#: First compute capability of NVIDIA's with bfloat16 units.
_BFLOAT16_CAPABILITY = (8, 0)


def choose_device(device: str) -> torch.device:
    """`auto` is the current GPU where there is one, else the CPU.

    Raises:
        CheckpointError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device {device!r}: {error}") from error
    return chosen


def supported_dtype(stored: str, device: torch.device) -> str:
    """A checkpoint's type where the device has units for it, else float32, in which the same weights are exact."""
    if stored == "float32":
        return stored
    if device.type == "cuda":
        capable = stored == "float16" or torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY
    else:
        capable = device.type != "cpu" or (stored == "bfloat16" and bool(_BFLOAT16_FLAGS & _processor_flags()))
    return stored if capable else "float32"


@functools.cache
def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(flags.partition(":")[2].split())


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy to the device; from pinned memory and without waiting where it is a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: a host's and a device's allocators do so in several ways."""
    said = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in said for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
