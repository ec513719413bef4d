"""The immutable records that flow between the layers: queries, documents, candidates, scores, ranks and rejects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


class RejectReason(StrEnum):
    """Why a candidate has no score. The list is closed: docs/rejects.md documents every code."""

    MISSING_QUERY = "missing_query"
    MISSING_DOCUMENT = "missing_document"
    EMPTY_QUERY = "empty_query"
    EMPTY_DOCUMENT = "empty_document"
    DUPLICATE_QUERY_ID = "duplicate_query_id"
    DUPLICATE_DOCUMENT_ID = "duplicate_document_id"
    TEXT_UNDECODABLE = "text_undecodable"
    IMAGE_UNSUPPORTED_FORMAT = "image_unsupported_format"
    IMAGE_UNDECODABLE = "image_undecodable"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_ZERO_SIZE = "image_zero_size"
    IMAGE_ASPECT_RATIO = "image_aspect_ratio"
    IMAGE_UNREACHABLE = "image_unreachable"
    MODALITY_UNSUPPORTED = "modality_unsupported"
    INPUT_TOO_LONG = "input_too_long"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE_LOGIT = "non_finite_logit"


#: Reasons that depend on machine or network, not on the content: the next run scores such a pair again.
TRANSIENT_REASONS = frozenset(
    {RejectReason.OUT_OF_MEMORY, RejectReason.NON_FINITE_LOGIT, RejectReason.IMAGE_UNREACHABLE}
)


@dataclass(frozen=True, slots=True)
class Query:
    """A search query: a text, an encoded image (PNG, JPEG, …), or both.

    `instruction`: by what documents are to be judged, for rerankers that take one; a blank one is none.
    """

    query_id: str = ""
    text: str | None = None
    image: bytes | None = None
    instruction: str | None = None

    @property
    def images(self) -> tuple[bytes, ...]:
        """Its image, as documents have theirs."""
        return () if self.image is None else (self.image,)


@dataclass(frozen=True, slots=True)
class Document:
    """A document: a text, encoded images (PNG, JPEG, …), or both (images first, then text).

    `images` are its pages, frames or figures in order, `image` is the first of them: one of the two is given.
    """

    doc_id: str = ""
    text: str | None = None
    image: bytes | None = None
    images: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        images = tuple(self.images) or (() if self.image is None else (self.image,))
        if self.image is not None and self.image is not images[0] and self.image != images[0]:
            raise ValueError("image is not the first of images; give one of the two")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "image", images[0] if images else None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A query–document pair from the first stage, with its score and rank there when known."""

    query_id: str
    doc_id: str
    first_stage_score: float | None = None
    first_stage_rank: int | None = None


@dataclass(slots=True)
class DocumentState:
    """What a reranker's encoder made of a document's `tokens`, as bytes; without any, a place where it leaves them."""

    encoded: bytes = b""
    tokens: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class DocumentGroup:
    """One document and the queries it is a candidate for: they share the work on the document.

    `state`: the document's, for rerankers that have an encoder; with its bytes the document's content is not needed.
    """

    document: Document
    queries: tuple[Query, ...]
    state: DocumentState | None = None


@dataclass(frozen=True, slots=True)
class CandidateList:
    """A query and its candidates, in the order of the stage before, best first."""

    query: Query
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A raw float32 logit, before bias and sigmoid. Token counts are positions in the model's sequence.

    `document_images`: how many of the document's images were read, the first ones; None where it has none. Pages or
    frames of the files that were read are `…_frames_left_out` where the model saw only the first, or did not see all.
    """

    query_id: str
    doc_id: str
    logit: float
    query_tokens: int
    document_tokens: int
    query_truncated: bool
    document_truncated: bool
    document_images: int | None = None
    document_frames_left_out: int | None = None
    query_frames_left_out: int | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """A pair without a score, and why. `detail` never contains document or query text."""

    query_id: str
    doc_id: str
    reason: RejectReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """An item of a ranked list. `rank` starts at 1; `relevance` is in [0, 1]; `label` counts the thresholds reached."""

    query_id: str
    doc_id: str
    rank: int
    logit: float
    relevance: float
    label: int
    first_stage_rank: int | None
    truncated: bool


@dataclass(frozen=True, slots=True)
class RankResult:
    """An item of `RerankModel.rank`: `index` is the document's place in the list given, counted from 0.

    `relevance` and `logit` are None exactly where `reason`, a reject code, is not. `text`: the document's, if any.
    """

    index: int
    relevance: float | None
    logit: float | None
    text: str | None = None
    doc_id: str = ""
    reason: RejectReason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Qrel:
    """A relevance judgement of a document for a query (0 = not relevant)."""

    query_id: str
    doc_id: str
    relevance: int


class Reranker(Protocol):
    """Scores pairs: document groups in, one scored pair or reject out for every pair in them."""

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """Yield exactly one result for each (query, document) of each group, in any order."""
        ...


@runtime_checkable
class ListReranker(Protocol):
    """Scores lists: the score of a document depends on the others and on their order."""

    def score_lists(self, lists: Iterable[CandidateList]) -> Iterator[ScoredPair | Reject]:
        """Yield one result for each document, list after list, in their order.

        A document that cannot be read is rejected, and the others are scored as if it were not in the list; a query
        that cannot be read rejects all of them.
        """
        ...
