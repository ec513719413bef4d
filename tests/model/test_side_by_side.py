"""Calls on threads of their own, torch's operators in each on one."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from lakerank.model.side_by_side import SideBySide


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def operator_threads() -> int:
    """Threads that an operator called here is given."""
    torch.ones(2).sum()  # torch sets a thread up at its first operator
    found = re.search(r"omp_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("count", [1, 2])
def test_results_are_in_the_items_order(count: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert SideBySide(count).map(slow_first, range(6)) == [item * item for item in range(6)]


def test_calls_run_at_the_same_time_on_one_thread_each_and_the_process_keeps_its_threads() -> None:
    passes, both = SideBySide(2), threading.Barrier(2, timeout=10)

    def work(_: int) -> int:
        both.wait()
        return operator_threads()

    assert passes.map(work, range(2)) == [1, 1]
    assert passes.call(operator_threads) == 1
    assert operator_threads() == 3
    assert torch.get_num_threads() == 3


def test_an_error_waits_for_the_other_calls() -> None:
    finished: list[int] = []

    def work(item: int) -> None:
        if item == 0:
            raise MemoryError("no more")
        time.sleep(0.05)
        finished.append(item)

    with pytest.raises(MemoryError, match="no more"):
        SideBySide(2).map(work, range(4))
    assert sorted(finished) == [1, 2, 3]
