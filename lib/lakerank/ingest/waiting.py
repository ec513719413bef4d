"""Which queries wait for which document, at twelve bytes a pair: corpora are read once, after the first stage."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np


class WaitingQueries:
    """Pairs of a document and a query's number, looked up by document.

    Ids are kept as 64-bit hashes. Two of a billion that fall together would cost one document or judgement too many.
    """

    def __init__(self) -> None:
        self._added: tuple[array[int], array[int]] = (array("q"), array("i"))
        self._documents: np.ndarray[Any, Any] = np.empty(0, np.int64)
        self._queries: np.ndarray[Any, Any] = np.empty(0, np.int32)

    def add(self, doc_id: str, query: int) -> None:
        """Add a pair; it is found after `settle`."""
        self._added[0].append(hash(doc_id))
        self._added[1].append(query)

    def settle(self) -> None:
        """Sort what was added, so that it can be looked up."""
        documents, queries = (np.frombuffer(column, dtype=column.typecode) for column in self._added)
        order = np.argsort(documents, kind="stable")
        self._documents, self._queries = documents[order], queries[order]
        self._added = (array("q"), array("i"))

    def __contains__(self, doc_id: str) -> bool:
        return len(self.of(doc_id)) > 0

    def of(self, doc_id: str) -> Sequence[int]:
        """Numbers of the queries that wait for a document, in the order they were added."""
        wanted = np.int64(hash(doc_id))
        first = np.searchsorted(self._documents, wanted, "left")
        last = np.searchsorted(self._documents, wanted, "right")
        found: list[int] = self._queries[first:last].tolist()
        return found
