"""Small files read ahead of their turn: an object store answers many at once, but each one slowly."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

#: Files read at once, and the most that may wait for their turn, in files and in bytes.
THREADS = 16
WAITING_FILES = 64
WAITING_BYTES = 2**26


def read_ahead(
    items: Iterable[Item], size: Callable[[Item], int | None], read: Callable[[Item], bytes]
) -> Iterator[tuple[Item, Future[bytes] | None]]:
    """Yield every item in order, with its content on the way if `size` says that it is to be read (None: it is not)."""
    waiting: deque[tuple[Item, Future[bytes] | None, int]] = deque()
    held = 0
    pool = ThreadPoolExecutor(THREADS, "ingest")
    try:
        for item in items:
            wanted = size(item)
            waiting.append((item, None if wanted is None else pool.submit(read, item), wanted or 0))
            held += wanted or 0
            while held > WAITING_BYTES or len(waiting) > WAITING_FILES:
                first, content, length = waiting.popleft()
                held -= length
                yield first, content
        while waiting:
            first, content, _ = waiting.popleft()
            yield first, content
    finally:
        pool.shutdown(cancel_futures=True)
