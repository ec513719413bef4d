"""Queries and documents as a network reads them, and why one cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lakerank.records import DocumentState, Query, RejectReason

#: The visual token's id for a network that reads no images.
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
class Instructions:
    """What prompts say that have a place for an instruction (`accepted`): the query's own, unless these are `ignored`,
    or else `default`, or else what is published."""

    accepted: bool = False
    default: str | None = None
    ignored: bool = False

    def of(self, query: Query) -> str | None:
        """What a query's prompt says, None: what is published. Raises RejectedInput: it has no place for it."""
        own = "" if self.ignored else (query.instruction or "").strip()
        if own and not self.accepted:
            raise RejectedInput(RejectReason.MODALITY_UNSUPPORTED, "an instruction, and this reranker takes none")
        return own or self.default


@dataclass(frozen=True, slots=True)
class Patches:
    """An image as uint8 patches (P, 3, side, side), merge² of one visual token together; its grid (rows, columns)."""

    pixels: np.ndarray
    grid: Grid


#: An image and the name of its content.
NamedImage = tuple[str, Patches]

Images = Iterable[NamedImage]


@dataclass(frozen=True, slots=True)
class Template:
    """What is around a document or query: `before` and `after` by themselves, `prefix` and `suffix` joined to its text.

    Images come between `prefix` and the text. `text`, `image`: what the document or query may hold.
    `cuts_text_alone`: a long text is cut before it is joined. `names_limit`: so does the reject of an image too large.
    """

    before: str = ""
    prefix: str = ""
    suffix: str = ""
    after: str = ""
    text: bool = True
    image: bool = True
    cuts_text_alone: bool = False
    names_limit: bool = False


@dataclass(frozen=True, slots=True)
class VisionTokens:
    """Ids of the tokens around and in place of an image; one covers `merge`² patches."""

    start: int
    end: int
    image: int
    merge: int


@dataclass(frozen=True, slots=True)
class EncodedInput:
    """A document's or query's part of the sequence, or several that follow one another.

    `token_ids` (L,) int64; `positions` (3, L) int64, counted from 0; `end`: position of whatever follows; `images`:
    its images by key, in the order of their visual tokens. `files_read`: how many image files these are of, from the
    first on; `frames_left_out`: pages or frames of those that are not among them. `preamble`: what is before a query
    that is before its document: the same for all queries of one instruction. `state`: of a document, what an encoder
    made of it, or where it leaves that.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    end: int
    images: tuple[NamedImage, ...] = ()
    truncated: bool = False
    files_read: int = 0
    frames_left_out: int = 0
    preamble: EncodedInput | None = None
    state: DocumentState | None = None

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        pixels = sum(image.pixels.nbytes for _, image in self.images)
        return int(self.token_ids.nbytes + self.positions.nbytes + pixels)


@dataclass(frozen=True, slots=True)
class DocumentQueries:
    """One document and queries on it, as the device is given them: the prefix that pairs share, and their suffixes."""

    document: EncodedInput
    queries: tuple[EncodedInput, ...]

    @property
    def tokens(self) -> int:
        """Tokens that the group's prefix and suffixes take."""
        return len(self.document.token_ids) + sum(len(query.token_ids) for query in self.queries)
