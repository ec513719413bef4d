"""Passes side by side on a processor's threads, torch's operators in each on that thread alone.

An operator that several threads share waits for the slowest of them; passes of one thread each wait for nothing, and a
logit's bits do not depend on the number of threads. With two threads a small cross-encoder was an eighth faster so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


class SideBySide:
    """Calls on `count` threads of their own; with one, on the caller's, whatever torch's threads are there."""

    def __init__(self, count: int) -> None:
        self.count = count
        if count > 1:
            # `set_num_threads` holds for the thread that calls it, but what torch says and gives to threads to come is
            # the last call's, whoever made it: all are started here, and then it is set to what it was.
            threads, started = torch.get_num_threads(), threading.Barrier(count + 1)
            self._pool = ThreadPoolExecutor(count, "pass", initializer=_to_itself)
            for _ in range(count):
                self._pool.submit(started.wait)
            started.wait()
            torch.set_num_threads(threads)

    def call(self, function: Callable[[], T]) -> T:
        """The function's result, called as `map` calls it."""
        return self.map(lambda _: function(), [None])[0]

    def map(self, function: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """Results in the items' order; an error is raised when no call runs any more."""
        if self.count == 1:
            return [*map(function, items)]
        calls = [self._pool.submit(function, item) for item in items]
        wait(calls)
        return [call.result() for call in calls]


def _to_itself() -> None:
    """Torch's operators called from this thread run on it alone."""
    torch.get_num_threads()  # sets the thread up, which its first operator would do otherwise, and undo what follows
    torch.set_num_threads(1)
