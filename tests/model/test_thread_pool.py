"""Calls on threads of their own, torch's operators in each on one."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch

from lakerank.model.engine.device import ThreadPool


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def operator_threads() -> int:
    """Threads that an operator called here is given."""
    torch.ones(2).sum()  # torch sets a thread up at its first operator
    threads = re.search(r"omp_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
    assert threads is not None
    return int(threads[1])


@pytest.mark.parametrize("count", [1, 2])
def test_results_are_in_the_items_order(count: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert ThreadPool(count).map(slow_first, range(6)) == [item * item for item in range(6)]


def test_calls_run_at_the_same_time_on_one_thread_each_and_the_process_keeps_its_threads() -> None:
    pool, both = ThreadPool(2), threading.Barrier(2, timeout=10)

    def work(_: int) -> int:
        both.wait()
        return operator_threads()

    assert pool.map(work, range(2)) == [1, 1]
    assert pool.map(lambda _: operator_threads(), [None]) == [1]
    assert operator_threads() == 3
    assert torch.get_num_threads() == 3


def test_after_an_error_nothing_runs_or_begins_and_nothing_is_kept() -> None:
    started, ended, buffered = [], [], []

    class Large:
        """What a micro-batch would hold."""

    def work(item: int) -> None:
        started.append(item)
        if item == 0:
            large = Large()
            buffered.append(weakref.ref(large))
            raise MemoryError("no more")
        time.sleep(0.2)
        ended.append(item)

    with contextlib.suppress(MemoryError):  # pytest would keep the error
        ThreadPool(2).map(work, range(20))
        pytest.fail("no error")
    assert sorted(started)[1:] == sorted(ended), "what ran was waited for"
    assert len(started) < 20
    assert buffered[0]() is None, "before any garbage is collected"


def test_threads_that_cannot_all_start_leave_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def start_one(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        ThreadPool(2)
    started[0].join(timeout=10)
    assert not started[0].is_alive()
    assert torch.get_num_threads() == 3
