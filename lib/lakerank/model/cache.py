"""A bounded memory of results by content, safe to share between threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedCache(Generic[T]):
    """Makes each value once, keeps those last used. Two threads that want one value wait for one making of it."""

    def __init__(self, max_bytes: int, size_of: Callable[[T], int]) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._lock = threading.Lock()
        self._futures: OrderedDict[Hashable, Future[T]] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, from memory or made now. What `make` raises is raised to everyone waiting, not kept."""
        with self._lock:
            future = self._futures.get(key)
            waiting = future is not None
            if future is None:
                future = self._futures[key] = Future()
            self._futures.move_to_end(key)
        if waiting:
            return future.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                self._futures.pop(key, None)
            future.set_exception(error)
            raise
        self._keep(key, value)
        future.set_result(value)
        return value

    def clear(self) -> None:
        """Forget everything that has been made."""
        with self._lock:
            for key in self._sizes:
                del self._futures[key]
            self._sizes.clear()
            self._bytes = 0

    def _keep(self, key: Hashable, value: T) -> None:
        with self._lock:
            self._sizes[key] = self._size_of(value)
            self._bytes += self._sizes[key]
            for oldest in list(self._sizes_in_order()):
                if self._bytes <= self._max_bytes:
                    break
                del self._futures[oldest]
                self._bytes -= self._sizes.pop(oldest)

    def _sizes_in_order(self) -> list[Hashable]:
        """Finished keys, least recently used first."""
        return [key for key in self._futures if key in self._sizes]
