"""Items come ahead of time, in order, with the faults they meet, and no thread outlives its consumer."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.lake.blobs import prefetched


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


class Counted:
    """More numbers than anybody asks for; says how many were pulled, and whether it was closed and in which thread."""

    def __init__(self) -> None:
        self.pulled = 0
        self.pulled_enough = threading.Event()
        self.closed_by = ""

    def numbers(self, enough: int) -> Iterator[int]:
        try:
            while self.pulled < 10_000:
                yield self.pulled
                self.pulled += 1
                if self.pulled >= enough:
                    self.pulled_enough.set()
        finally:
            self.closed_by = threading.current_thread().name


@given(st.lists(st.integers()), st.integers(1, 5))
def test_the_same_items_in_the_same_order(items: list[int], depth: int) -> None:
    assert list(prefetched(iter(items), (depth,))) == items
    assert not prefetching()


def test_items_are_pulled_ahead_but_no_further_than_the_depth() -> None:
    counted = Counted()
    items = prefetched(counted.numbers(enough=3), (3,))
    assert counted.pulled == 0
    assert next(items) == 0
    assert counted.pulled_enough.wait(10)  # 0 was taken, 1 to 3 wait
    time.sleep(0.05)
    assert counted.pulled == 3
    items.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("most", "waiting"), [((100, 10**9), 10), ((10**9, 60), 6), ((7, 7), 1)])
def test_items_are_pulled_until_they_have_enough_of_any_of_their_sizes(most: tuple[int, int], waiting: int) -> None:
    counted = Counted()
    items = prefetched(counted.numbers(enough=waiting), most, lambda item: (10, 10))
    assert next(items) == 0
    assert counted.pulled_enough.wait(10)
    time.sleep(0.05)
    assert counted.pulled == waiting
    assert next(items) == 1
    items.close()  # type: ignore[attr-defined]
    assert not prefetching()


def test_what_is_raised_comes_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the network is gone")

    items = prefetched(broken(), (8,))
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="the network is gone"):
        next(items)
    assert not prefetching()


def test_stopping_early_ends_the_thread_and_closes_the_source_in_it() -> None:
    counted = Counted()
    items = prefetched(counted.numbers(enough=1), (2,))
    assert [next(items), next(items)] == [0, 1]
    items.close()  # type: ignore[attr-defined]
    assert not prefetching()
    assert counted.closed_by.startswith("prefetch")


def test_a_consumer_that_fails_or_forgets_ends_the_thread() -> None:
    def failing() -> None:
        for number in prefetched(Counted().numbers(enough=1), (2,)):
            1 / number

    with pytest.raises(ZeroDivisionError):
        failing()
    gc.collect()
    assert not prefetching()
    items = prefetched(Counted().numbers(enough=1), (2,))
    next(items)
    del items
    gc.collect()
    assert not prefetching()


def test_nothing_runs_before_the_first_item_is_asked_for() -> None:
    counted = Counted()
    prefetched(counted.numbers(enough=1), (2,))
    assert counted.pulled == 0
    assert not prefetching()
