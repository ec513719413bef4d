"""What a device is given and asked for, by stand-ins for CUDA: no machine that tests run on has any."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from lakerank.model.engine.budget import Budget, MicroBatcher
from lakerank.model.engine.device import on_device, out_of_memory, pin_arithmetic
from lakerank.rerank.score import _Worker

MESSAGES = (
    "CUDA out of memory. Tried to allocate 1.00 GiB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


class FakeCuda:
    """The part of torch.cuda that the engine uses, of several GPUs: events remember on which they were recorded."""

    def __init__(self) -> None:
        self.now = 0
        self.recorded: list[int] = []
        self.emptied = 0

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.now = self.now, device.index
        try:
            yield
        finally:
            self.now = before

    def Event(self, **_: Any) -> FakeEvent:  # noqa: N802 torch's own name
        return FakeEvent(self)

    def get_device_name(self, device: torch.device) -> str:
        return f"GPU {device.index}"

    def empty_cache(self) -> None:
        self.emptied += 1


class FakeEvent:
    """An event on the current GPU's stream."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def record(self) -> None:
        self._cuda.recorded.append(self._cuda.now)

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: FakeEvent) -> float:
        return 500.0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name in ("device", "Event", "empty_cache", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


class Batcher(MicroBatcher):
    """Runs a network that needs a token of memory an item, and of a long one as many as the budget has."""

    ROOM: ClassVar[int] = 300

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(torch.device(device), Budget(1024))
        self.budgets: list[int] = []

    def network(self, items: Sequence[str]) -> list[str]:
        with self.timer.stage("prefix_s"):
            self.budgets.append(self.budget.tokens)
            if "long" in items and (len(items) > 1 or self.budget.tokens > self.ROOM):
                raise RuntimeError(MESSAGES[1])
        return [*items]


def run(batcher: Batcher, *items: str) -> list[str | None]:
    return batcher.run(batcher.network, items, smaller_batches_help=lambda part: len(part) == 1)


def test_kernels_and_events_are_on_the_gpu_that_was_chosen(cuda: FakeCuda) -> None:
    batcher = Batcher("cuda:3")
    assert run(batcher, "short") == ["short"]
    assert cuda.recorded == [3, 3]
    assert batcher.counters.prefix_s == 0.5
    assert batcher.gpu == "GPU 3"
    assert cuda.now == 0, "the thread's own"
    with on_device(torch.device("cpu")):
        assert cuda.now == 0


def test_memory_goes_back_before_another_try(cuda: FakeCuda) -> None:
    assert run(Batcher("cuda:1"), "long", "short") == ["long", "short"]
    assert cuda.emptied == 3


class Loaded:
    """A reranker that refers to itself."""

    def __init__(self, device: str) -> None:
        self.device, self.itself = device, self


def test_a_worker_gives_back_what_another_scorer_held(cuda: FakeCuda) -> None:
    """Before the next is loaded."""
    loaded: list[weakref.ref[Any]] = []

    def load(device: str) -> Any:
        assert all(reranker() is None for reranker in loaded)
        reranker = Loaded(device)
        loaded.append(weakref.ref(reranker))
        return reranker

    worker = _Worker()
    for number, scorer in enumerate(("first", "first", "second", "third")):
        job: Any = SimpleNamespace(scorer=scorer, device="cuda:1", factory=load)
        assert worker.reranker(job)[0].device == "cuda:1"
        assert (len(loaded), cuda.emptied) == (max(1, number), max(0, number - 1))


def test_a_budget_halved_by_one_document_returns() -> None:
    batcher = Batcher()
    assert run(batcher, "long") == ["long"]
    assert run(batcher, "short") == ["short"]
    assert batcher.budgets == [1024, 512, 256, 1024]
    batcher.ROOM = 0  # type: ignore[misc]
    assert run(batcher, "long") == [None]
    assert batcher.budget == Budget(1024), "after a reject, too"


@pytest.mark.parametrize("message", MESSAGES)
def test_an_allocator_that_has_none_left_is_out_of_memory(message: str) -> None:
    assert out_of_memory(RuntimeError(message))
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_products_are_computed_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    torch.set_float32_matmul_precision("high")
    cudnn.allow_tf32 = matmul.allow_bf16_reduced_precision_reduction = True
    torch.backends.cuda.enable_cudnn_sdp(True)
    pin_arithmetic()
    assert torch.get_float32_matmul_precision() == "highest"
    allowed = [matmul.allow_tf32, cudnn.allow_tf32, torch.backends.cuda.cudnn_sdp_enabled()]
    for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"):
        allowed += [getattr(matmul, name), getattr(matmul, f"{name}_split_k")]
    assert not any(allowed)
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
