"""The prompt of jina-reranker-m0, document first, and how long each side of it may be."""

from __future__ import annotations

from dataclasses import dataclass

from lakerank.errors import ConfigError
from lakerank.limits import Limits

#: Everything before the query. Cut after the newline: the pieces' tokens then are those of the whole prompt.
DOCUMENT_HEAD = "**Document**:\n"
DOCUMENT_TAIL = "\n"
QUERY_HEAD = "**Query**:\n"

#: Token appended to every pair; the score is read there. A checkpoint's config.json may name another.
SCORE_TOKEN_ID = 100

#: relevance = sigmoid(logit - bias), a property of the checkpoint family. A checkpoint's config.json may name another.
LOGIT_BIAS = 2.65


@dataclass(frozen=True, slots=True)
class Budgets:
    """Tokens each side may hold. They depend on no partner, so that a document's prefix is the same for every query.

    `document_text`: text tokens of a document, as published. `document`: its whole side, template and image included.
    `query`: a query's side, template and score token included; its visual tokens are not counted, so that a pair holds
    at most `max_length` tokens plus those of an image in the query. `visual`: the most that an image and its template
    may take on either side; visual tokens are never cut.
    """

    document_text: int
    document: int
    query: int
    visual: int


def budgets(limits: Limits, document_template: int, query_template: int) -> Budgets:
    """Share `max_length` between the sides. Templates are counted in tokens, the score token apart.

    Raises:
        ConfigError: nothing is left for a query.
    """
    document_text = max(limits.max_length - limits.max_query_length, limits.max_query_length)
    document = document_text + document_template
    query = limits.max_length - document
    if query <= query_template + 1:
        needed = document_template + query_template + 2
        raise ConfigError(
            [f"max_query_length {limits.max_query_length}: at least {needed}, the prompt itself takes that"]
        )
    return Budgets(document_text, document, query, visual=document_text)
