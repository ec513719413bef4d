"""Prefetching keeps the order, bounds what is pending, and passes failures to the reader of the content."""

from __future__ import annotations

import threading

import pytest

from lakerank.ingest.source import PENDING_BYTES, prefetched_files


def test_items_come_in_order_with_their_content():
    result = [
        (item, content and content.result())
        for item, content in prefetched_files(
            range(200), lambda item: 1 if item % 2 else None, lambda item: b"%d" % item
        )
    ]
    assert result == [(item, b"%d" % item if item % 2 else None) for item in range(200)]


def test_no_more_waits_than_may():
    pulled = 0

    def items():
        nonlocal pulled
        for item in range(1000):
            pulled = item + 1
            yield item

    for count, _ in enumerate(prefetched_files(items(), lambda item: PENDING_BYTES // 4, lambda item: b""), start=1):
        assert pulled - count <= 4


def test_files_are_read_at_once():
    together = threading.Barrier(4, timeout=10)

    def read(item):
        together.wait()
        return b""

    for _, content in prefetched_files(range(4), lambda item: 1, read):
        assert content.result() == b""


def test_a_failure_stays_with_its_item():
    def read(item):
        raise OSError(item)

    [(_, content)] = prefetched_files(["gone"], lambda item: 1, read)
    with pytest.raises(OSError, match="gone"):
        content.result()
