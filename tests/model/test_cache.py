"""The bounded cache: each value is made once, the least used go first, failures are not kept."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lakerank.model.preprocess.pipeline import BoundedCache


def test_makes_once_and_forgets_the_least_used() -> None:
    cache: BoundedCache[bytes] = BoundedCache(max_bytes=10, size_of=len)
    created: list[str] = []

    def get(key: str) -> bytes:
        def make() -> bytes:
            created.append(key)
            return key.encode() * 4

        return cache.get(key, make)

    for key in "abaca":  # c pushes out b, which was used longer ago than a
        assert get(key) == key.encode() * 4
    assert created == ["a", "b", "c"]
    get("b")
    assert created == ["a", "b", "c", "b"]


def test_a_value_over_the_bound_is_not_kept() -> None:
    cache: BoundedCache[bytes] = BoundedCache(max_bytes=3, size_of=len)
    created = iter((b"long", b"again"))
    cache.put("b", b"b")
    assert cache.get("a", lambda: next(created)) == b"long"
    assert cache.get("a", lambda: next(created)) == b"again"
    assert cache.find("a") is None
    assert cache.find("b") == b"b", "and makes no room for itself"


def test_what_is_put_counts_right_when_threads_share_it(together: Any) -> None:
    cache: BoundedCache[bytes] = BoundedCache(500, len)

    def use(number: int) -> bool:
        for turn in range(300):
            key = (turn * 7 + number) % 25
            value = cache.find(key)
            if value is None:
                cache.put(key, bytes(10 + key * 2))
            elif len(value) != 10 + key * 2:
                return False
        return True

    assert together(use, 8) == [True] * 8
    values = [cache.find(key) for key in range(25)]
    assert cache.bytes == sum(len(value) for value in values if value is not None) <= cache.max_bytes


def test_threads_wait_for_one_making() -> None:
    cache: BoundedCache[int] = BoundedCache(max_bytes=100, size_of=lambda _: 1)
    started, finish = threading.Event(), threading.Event()
    created: list[int] = []

    def make() -> int:
        created.append(1)
        started.set()
        finish.wait(10)
        return 7

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.get, "a", make)
        assert started.wait(10)
        others = [pool.submit(cache.get, "a", make) for _ in range(3)]
        finish.set()
        assert [future.result(10) for future in (first, *others)] == [7, 7, 7, 7]
    assert created == [1]


def test_a_failure_is_raised_and_not_kept() -> None:
    cache: BoundedCache[int] = BoundedCache(max_bytes=100, size_of=lambda _: 1)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 // 0)
    assert cache.get("a", lambda: 5) == 5
    cache.clear()
    assert cache.get("a", lambda: 6) == 6
