"""The device that scoring runs on: its dtypes, copies to it, its memory errors, and a CPU's threads."""

from __future__ import annotations

import functools
import gc
import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lakerank.errors import CheckpointError
from lakerank.model.engine.findings import cpu_lines

S = TypeVar("S")
T = TypeVar("T")

#: Flags of processors with bfloat16 matrix units (Linux's names, x86 and Arm).
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

#: First compute capability of NVIDIA's with bfloat16 units.
_BFLOAT16_CAPABILITY = (8, 0)

#: Threads that prepare inputs for a GPU, more than which the interpreter's lock leaves nothing to do.
_MOST_HOST_THREADS = 16

#: Devices that a reranker may be put on.
_DEVICES = re.compile(r"auto|cpu|(cuda|mps)(:\d+)?")

#: Seconds that threads may take to start.
_START_S = 60.0


def choose_device(device: str) -> torch.device:
    """`auto` is the current GPU where there is one, else the CPU. Raises CheckpointError: there is no such device."""
    if not _DEVICES.fullmatch(device):
        raise CheckpointError(f"device {device!r}: expected auto, cpu, cuda, cuda:0 (a GPU's number) or mps")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        with on_device(chosen):
            torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device {device!r}: {error}") from error
    if chosen.type == "cuda":
        torch.backends.cuda.preferred_blas_library("cublaslt")
        pin_arithmetic()
    return chosen


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """A GPU made the current one of this thread, for its streams, events and libraries' handles: not the first one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def pin_arithmetic() -> None:
    """Have GPUs compute as it is written: no TF32, no products that are rounded, or split among blocks, on the way.

    Attention of cuDNN, which would plan every new shape for tens of milliseconds, is not used.
    """
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"):
        setattr(torch.backends.cuda.matmul, name, (False, False))  # the second: split among blocks
    torch.backends.cuda.enable_cudnn_sdp(False)


def release_memory() -> None:
    """Give what dropped networks held back to the GPU, for other processes and other GPUs' threads."""
    gc.collect()
    torch.cuda.empty_cache()


def supported_dtype(stored: str, device: torch.device) -> str:
    """A checkpoint's dtype where the device has units for it, else float32, in which the same weights are exact."""
    if stored == "float32":
        return stored
    if device.type == "cuda":
        capable = stored == "float16" or torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY
    else:
        capable = device.type != "cpu" or (stored == "bfloat16" and bool(_BFLOAT16_FLAGS & _processor_flags()))
    return stored if capable else "float32"


def default_host_threads(device: torch.device) -> int:
    """Threads that prepare inputs: two where the device is a CPU, whose cores are busy; for a GPU all but one of its
    task's cores, by what Spark says of them in the environment, or those of this process for each GPU that it sees."""
    if device.type == "cpu":
        return 2
    cores = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or 1)  # `spark.task.cpus`, or its default
    if cores == 1:
        of_process = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = of_process // max(1, torch.cuda.device_count())
    return min(_MOST_HOST_THREADS, max(2, cores - 1))


@functools.cache
def _processor_flags() -> frozenset[str]:
    flags = next((line for line in cpu_lines() if line.lower().startswith(("flags", "features"))), "")
    return frozenset(flags.partition(":")[2].split())


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy to the device; to a GPU from pinned memory and asynchronously."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(values: Tensor) -> Callable[[], np.ndarray]:
    """Start to copy values to the host, from a GPU into pinned memory; what is returned waits for the copy."""
    host = values.to("cpu", non_blocking=True)
    copied = torch.cuda.current_stream(values.device).record_event() if values.device.type == "cuda" else None

    def wait() -> np.ndarray:
        if copied is not None:
            copied.synchronize()
        return host.numpy()

    return wait


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out; allocators of host and device, and cuBLAS and cuDNN, say it so."""
    reports = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in reports)


class ThreadPool:
    """Calls on `count` threads of its own, torch's operators in each on that thread alone; with one, on the caller's.

    An operator shared by several threads waits for the slowest of them; micro-batches of one thread each wait for
    nothing, and a logit's bits do not depend on the number of threads. With two threads a small cross-encoder was an
    eighth faster so.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        if count > 1:
            self._pool = _start_pool(count)

    def map(self, function: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """Results in the items' order. After an error or an interrupt no call starts, and those that run end first."""
        if self.count == 1:
            return [*map(function, items)]
        calls = [self._pool.submit(function, item) for item in items]
        try:
            wait(calls, return_when=FIRST_EXCEPTION)
        finally:
            for call in calls:  # those before the first that failed were started before it: none of them is cancelled
                call.cancel()
            wait(calls)
        results = []
        while calls:  # taken from the list: an error keeps this frame, which then keeps no call that keeps the error
            results.append(calls.pop(0).result())
        return results


def _start_pool(count: int) -> ThreadPoolExecutor:
    """Started threads, each with torch's operators to itself; torch's own number of threads is restored.

    `set_num_threads` holds for the calling thread, but what torch reports, and gives to new threads, is the last value
    set by any thread.
    """
    threads, started = torch.get_num_threads(), threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, "micro-batch", initializer=_use_one_thread)
    try:
        for _ in range(count):
            pool.submit(started.wait)
        started.wait(_START_S)
    except BaseException:
        started.abort()  # or those that did start would wait for ever, and the process for them
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(threads)
    return pool


def _use_one_thread() -> None:
    """Torch's operators called from this thread run on it alone."""
    torch.get_num_threads()  # sets the thread up, which its first operator would do otherwise, and undo what follows
    torch.set_num_threads(1)
