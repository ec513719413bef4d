"""An iterator run ahead of its consumer in a thread, so that fetching and scoring overlap."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def prefetched(items: Iterator[T], depth: int) -> Iterator[T]:
    """Run an iterator in a thread, up to `depth` items ahead. What it raises is raised here, after the items before.

    The thread starts with the first item asked for, and is gone when the consumer stops, early or not.
    """
    if depth < 1:
        raise ValueError(f"depth {depth}: at least one item must be fetched ahead")
    return _consume(items, depth)


def _consume(items: Iterator[T], depth: int) -> Iterator[T]:
    feed = _Feed(items, depth)
    thread = threading.Thread(target=feed.fill, name="prefetch", daemon=True)
    thread.start()
    try:
        yield from feed.drain()
    finally:
        feed.stop()
        thread.join()


class _Feed(Generic[T]):
    """A bounded queue between two threads that either of them can end."""

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items = items
        self._depth = depth
        self._ready: deque[T] = deque()
        self._failure: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()

    def fill(self) -> None:
        """The thread's work: pull items until there are no more, one fails, or the consumer has stopped."""
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: self._ended or len(self._ready) < self._depth)
                    if self._ended:
                        break
                    self._ready.append(item)
                    self._changed.notify_all()
            _close(self._items)  # in the thread that ran it: a generator's files are closed where they were opened
        except BaseException as failure:  # whatever it is, drain raises it again
            self._failure = failure
        self.stop()

    def drain(self) -> Iterator[T]:
        """The consumer's side."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._ready)
                if not self._ready:
                    break
                item = self._ready.popleft()
                self._changed.notify_all()
            yield item
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End both sides; what is ready may still be drained."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _close(items: Iterator[T]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()
