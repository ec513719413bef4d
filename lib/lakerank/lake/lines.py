"""Lines of a stream, one in memory at a time, whatever their length."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedIOBase


def numbered_lines(stream: BufferedIOBase, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Number, from 1, and content of each line; None over the limit, skipped without being buffered."""
    number = 0
    while line := stream.readline(max_bytes + 1):
        number += 1
        if len(line) <= max_bytes or line.endswith(b"\n"):
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            continue
        while (rest := stream.readline(max_bytes)) and not rest.endswith(b"\n"):
            pass
        yield number, None
