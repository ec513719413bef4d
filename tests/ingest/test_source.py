"""Prefetching keeps the order, bounds what is pending, and passes failures to the reader of the content."""

from __future__ import annotations

import threading

import pytest

from lakerank.ingest.source import PENDING_BYTES, prefetched


def test_items_come_in_order_with_their_content():
    items = ((item, 1, lambda item=item: b"%d" % item) if item % 2 else (item, 0, None) for item in range(200))
    result = [(item, content and content.result()) for item, content in prefetched(items)]
    assert result == [(item, b"%d" % item if item % 2 else None) for item in range(200)]


def test_no_more_waits_than_may():
    pulled = 0

    def items():
        nonlocal pulled
        for item in range(1000):
            pulled = item + 1
            yield item, PENDING_BYTES // 4, bytes

    for count, _ in enumerate(prefetched(items()), start=1):
        assert pulled - count <= 4


def test_files_are_read_at_once():
    together = threading.Barrier(4, timeout=10)

    def read():
        together.wait()
        return b""

    for _, content in prefetched((item, 1, read) for item in range(4)):
        assert content.result() == b""


def test_a_failure_stays_with_its_item():
    def read():
        raise OSError("gone")

    [(_, content)] = prefetched([("item", 1, read)])
    with pytest.raises(OSError, match="gone"):
        content.result()
