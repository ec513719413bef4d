"""Queries and documents as a network reads them, and why one cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lakerank.records import RejectReason

#: Stands for the visual token of a network that reads no images.
NO_TOKEN = -1

#: Rows of patches and columns of patches of an image, before the merger joins squares of them into visual tokens.
Grid = tuple[int, int]


class RejectedInput(Exception):
    """A query or document cannot be scored; it ends as a reject. `detail` never holds text of a query or document."""

    def __init__(self, reason: RejectReason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Patches:
    """An image as uint8 patches (P, 3, side, side), merge² of one visual token together; its grid (rows, columns)."""

    pixels: np.ndarray
    grid: Grid


class TokenSequence(Protocol):
    """Tokens that follow one another: an encoded input, or more than one.

    `token_ids` (L,) int64; `positions` (3, L) int64, counted from 0; `end`: position of whatever follows; `images`:
    its images by key, in the order of their visual tokens.
    """

    @property
    def token_ids(self) -> np.ndarray: ...

    @property
    def positions(self) -> np.ndarray: ...

    @property
    def end(self) -> int: ...

    @property
    def images(self) -> tuple[tuple[str, Patches], ...]: ...


@dataclass(frozen=True, slots=True)
class EncodedInput:
    """A document's or query's part of the sequence.

    `token_ids` (L,) int64; `positions` (3, L) int64, counted from 0; `end`: position of whatever follows.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    end: int
    image: Patches | None
    image_key: str
    truncated: bool

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        pixels = 0 if self.image is None else self.image.pixels.nbytes
        return int(self.token_ids.nbytes + self.positions.nbytes + pixels)

    @property
    def images(self) -> tuple[tuple[str, Patches], ...]:
        """The image by its key, if there is one."""
        return () if self.image is None else ((self.image_key, self.image),)


@dataclass(frozen=True, slots=True)
class DocumentQueries:
    """One document and queries on it, as the device is given them: the prefix that pairs share, and their suffixes."""

    document: TokenSequence
    queries: tuple[TokenSequence, ...]

    @property
    def tokens(self) -> int:
        """Tokens that the group's prefix and suffixes take."""
        return len(self.document.token_ids) + sum(len(query.token_ids) for query in self.queries)
