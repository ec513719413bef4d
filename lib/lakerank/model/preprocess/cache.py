"""A cache of results by content, bounded in bytes and thread-safe."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedCache(Generic[T]):
    """Computes each value once and evicts those least recently used; threads wait for a value that another computes."""

    def __init__(self, max_bytes: int, size_of: Callable[[T], int]) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._lock = threading.Lock()
        self._futures: dict[Hashable, Future[T]] = {}
        self._sizes: OrderedDict[Hashable, int] = OrderedDict()  # finished values, least recently used first
        self._bytes = 0

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `key`, cached or computed now. An error of `compute` is raised to all who wait, never cached."""
        with self._lock:
            future = self._futures.get(key)
            if key in self._sizes:
                self._sizes.move_to_end(key)
            if future is None:
                computed = self._futures[key] = Future()
        if future is not None:
            return future.result()
        try:
            value = compute()
        except BaseException as error:
            with self._lock:
                del self._futures[key]
            computed.set_exception(error)
            raise
        computed.set_result(value)
        self._keep(key, value)
        return value

    def find(self, key: Hashable) -> T | None:
        """The value of `key` if it is cached."""
        with self._lock:
            if key not in self._sizes:
                return None
            self._sizes.move_to_end(key)
            return self._futures[key].result()

    def put(self, key: Hashable, value: T) -> None:
        """Cache a value that was computed elsewhere."""
        self.get(key, lambda: value)

    def clear(self) -> None:
        """Evict every value."""
        with self._lock:
            while self._sizes:
                self._evict_oldest()

    def _keep(self, key: Hashable, value: T) -> None:
        with self._lock:
            self._sizes[key] = self._size_of(value)
            self._bytes += self._sizes[key]
            while self._bytes > self._max_bytes:
                self._evict_oldest()

    def _evict_oldest(self) -> None:
        key, size = self._sizes.popitem(last=False)
        del self._futures[key]
        self._bytes -= size
