"""The prompt of jina-reranker-m0, document first, and how many tokens documents and queries may have."""

from __future__ import annotations

from dataclasses import dataclass

from lakerank.errors import ConfigError
from lakerank.limits import Limits

#: Everything before the query. Cut after the newline: the pieces' tokens then are those of the whole prompt.
DOCUMENT_PREFIX = "**Document**:\n"
DOCUMENT_SUFFIX = "\n"
QUERY_PREFIX = "**Query**:\n"

#: Token appended to every pair; the score is read there. A checkpoint's config.json may name another.
SCORE_TOKEN_ID = 100

#: relevance = sigmoid(logit - bias), a property of the checkpoint family. A checkpoint's config.json may name another.
LOGIT_BIAS = 2.65


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """Tokens that inputs may have. They depend on no partner, so that a document's prefix is the same for every query.

    `text`: text tokens of a document, as published, and the most that an image and its template may take of a document
    or query: visual tokens are never cut. `document`: all of a document's, template and image included. `query`: all of
    a query's, template and score token included, but not its visual tokens: a pair has at most `max_length` tokens plus
    those of an image in the query.
    """

    text: int
    document: int
    query: int


def token_limits(limits: Limits, document_template: int, query_template: int) -> TokenLimits:
    """Share `max_length` between document and query. Templates are counted in tokens, the score token apart.

    Raises:
        ConfigError: nothing is left for a query.
    """
    text = max(limits.max_length - limits.max_query_length, limits.max_query_length)
    document = text + document_template
    query = limits.max_length - document
    if query <= query_template + 1:
        needed = document_template + query_template + 2
        raise ConfigError(
            [f"max_query_length {limits.max_query_length}: at least {needed}, the prompt itself takes that"]
        )
    return TokenLimits(text, document, query)
