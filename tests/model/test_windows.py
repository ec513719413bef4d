"""Windows against the published loop, written anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lakerank.model.cross_encoder.tokenize import windows


def in_steps(tokens: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """One window after the other, each `overlap` before the end of the last."""
    result = []
    begin = 0
    while True:
        end = begin + room
        if end >= tokens:
            result.append((max(0, tokens - room), tokens))
            return result
        result.append((begin, end))
        begin = end - min(overlap, room // 4)


@given(st.integers(0, 700), st.integers(1, 120), st.integers(0, 100))
def test_windows_are_the_published_ones(tokens: int, room: int, overlap: int) -> None:
    assert windows(tokens, room, overlap) == in_steps(tokens, room, overlap)


@given(st.integers(0, 700), st.integers(1, 120))
def test_every_token_is_read_and_none_twice_without_need(tokens: int, room: int) -> None:
    result = windows(tokens, room)
    assert {place for start, stop in result for place in range(start, stop)} == set(range(tokens))
    assert all(stop - start <= room for start, stop in result)
    assert len(result) == 1 or tokens > room
