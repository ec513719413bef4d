"""Encoded lists into files of a bounded size; a list is never split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """An encoded list, and the rows in it."""

    data: bytes
    rows: int


@dataclass(frozen=True, slots=True)
class PartLimits:
    """What a file may hold, before compression; a larger list gets a file of its own."""

    rows: int
    size: int


def parts(pieces: Iterable[Piece], limits: PartLimits) -> Iterator[list[Piece]]:
    """Cut pieces, in order, into files within the limits. No file is empty."""
    held: list[Piece] = []
    rows = size = 0
    for piece in pieces:
        if held and (rows + piece.rows > limits.rows or size + len(piece.data) > limits.size):
            yield held
            held, rows, size = [], 0, 0
        held.append(piece)
        rows += piece.rows
        size += len(piece.data)
    if held:
        yield held
