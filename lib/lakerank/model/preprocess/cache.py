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
        self._futures: dict[Hashable, Future[T]] = {}
        self._sizes: OrderedDict[Hashable, int] = OrderedDict()  # finished values, least recently used first
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, from memory or made now. What `make` raises is raised to everyone waiting, not kept."""
        with self._lock:
            future = self._futures.get(key)
            if key in self._sizes:
                self._sizes.move_to_end(key)
            if future is None:
                mine = self._futures[key] = Future()
        if future is not None:
            return future.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._futures[key]
            mine.set_exception(error)
            raise
        mine.set_result(value)
        self._keep(key, value)
        return value

    def find(self, key: Hashable) -> T | None:
        """The value of `key` if it is in memory."""
        with self._lock:
            if key not in self._sizes:
                return None
            self._sizes.move_to_end(key)
            return self._futures[key].result()

    def put(self, key: Hashable, value: T) -> None:
        """Remember a value that was made elsewhere."""
        self.get(key, lambda: value)

    def clear(self) -> None:
        """Forget every value that has been made."""
        with self._lock:
            while self._sizes:
                self._forget_oldest()

    def _keep(self, key: Hashable, value: T) -> None:
        with self._lock:
            self._sizes[key] = self._size_of(value)
            self._bytes += self._sizes[key]
            while self._bytes > self._max_bytes:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        key, size = self._sizes.popitem(last=False)
        del self._futures[key]
        self._bytes -= size
