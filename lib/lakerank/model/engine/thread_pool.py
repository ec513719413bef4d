"""Passes side by side on a processor's threads, torch's operators in each on that thread alone.

An operator that several threads share waits for the slowest of them; passes of one thread each wait for nothing, and a
logit's bits do not depend on the number of threads. With two threads a small cross-encoder was an eighth faster so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")

#: Seconds that threads may take to start.
_START_S = 60.0


class SideBySide:
    """Calls on `count` threads of their own; with one, on the caller's, whatever torch's threads are there."""

    def __init__(self, count: int) -> None:
        self.count = count
        if count > 1:
            self._pool = _pool(count)

    def call(self, function: Callable[[], T]) -> T:
        """The function's result, called as `map` calls it."""
        return self.map(lambda _: function(), [None])[0]

    def map(self, function: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """Results in the items' order. After an error, or when interrupted, no further item is begun, and none is
        being worked on any more when it is raised.
        """
        if self.count == 1:
            return [*map(function, items)]
        calls = [self._pool.submit(function, item) for item in items]
        try:
            wait(calls, return_when=FIRST_EXCEPTION)
        finally:
            _ended(calls)
        results = []
        while calls:  # taken from the list: an error keeps this frame, which then keeps no call that keeps the error
            results.append(calls.pop(0).result())
        return results


def _ended(calls: Sequence[Future[Any]]) -> None:
    """Once none runs any more. Those before the first that failed were begun before it: none of them is cancelled."""
    for call in calls:
        call.cancel()
    wait(calls)


def _pool(count: int) -> ThreadPoolExecutor:
    """Threads that are all started, each with torch's operators to itself; torch's own number is what it was.

    `set_num_threads` holds for the thread that calls it, but what torch says, and gives to threads to come, is what the
    last call set, whoever made it.
    """
    threads, started = torch.get_num_threads(), threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, "pass", initializer=_to_itself)
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


def _to_itself() -> None:
    """Torch's operators called from this thread run on it alone."""
    torch.get_num_threads()  # sets the thread up, which its first operator would do otherwise, and undo what follows
    torch.set_num_threads(1)
