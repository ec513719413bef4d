"""How relevant a document is to a query, from the source data alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lakerank_pictograms.concepts import Concept
from lakerank_pictograms.texts import Label

SAME, RELATED, UNRELATED = 2, 1, 0
_SHARED_WORDS = 0.5


class Relevance:
    """2: the same concept. 1: same subgroup, and half of both concepts' English words are shared. 0: neither."""

    def __init__(self, english: Iterable[Label]) -> None:
        self._words = {
            label.concept.key: frozenset(re.findall(r"\w+", f"{label.name} {' '.join(label.keywords)}".casefold()))
            for label in english
        }

    def between(self, wanted: Concept, found: Concept) -> int:
        """SAME, RELATED or UNRELATED; symmetric."""
        if wanted.key == found.key:
            return SAME
        if wanted.subgroup != found.subgroup:
            return UNRELATED
        a, b = self._words[wanted.key], self._words[found.key]
        return RELATED if len(a & b) >= _SHARED_WORDS * len(a | b) else UNRELATED
