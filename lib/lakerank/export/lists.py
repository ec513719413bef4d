"""What is exported at a time: one list, whole, of a query's documents or of a document's queries."""

from __future__ import annotations

from dataclasses import dataclass

from lakerank.records import RankedDocument

#: Columns of ranked/ that an exported row has.
COLUMNS = ("query_id", "doc_id", "rank", "logit", "relevance", "label", "first_stage_rank", "truncated")


@dataclass(frozen=True, slots=True)
class ExportList:
    """The rows of one key: a query's documents by rank, or a document's queries by id.

    `number` is that of the query among all of the run, from 1, in the order of ids; 0 where a format does not ask.
    `query_text` and `first_stage_scores` (one a row) are there where a format asks for them and the lake has them.
    """

    key: str
    rows: tuple[RankedDocument, ...]
    number: int = 0
    query_text: str | None = None
    first_stage_scores: tuple[float | None, ...] = ()


def shortest(value: float) -> float:
    """A float32 as the double with the fewest digits that is the same float32: nine digits always tell them apart."""
    return float(f"{value:.9g}")
