"""BM25 over a pool of texts in any language, the first stage where no run is given."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lakerank.errors import DependencyError

#: Anserini's parameters, as in BEIR's and MIRACL's own BM25 figures (which also stem English).
K1, B = 0.9, 0.4

#: Scripts written without spaces between words, and Hangul, whose words carry their particles.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー々"
_RUNS = rf"(?V1)([{_UNSPACED}]+)|([[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]+)"


class Terms:
    """Splits text into terms: words in lower case, and pairs of neighbouring characters of scripts without spaces.

    "Kobe 神戸市" → ["kobe", "神戸", "戸市"]. A letter's marks stay with it. Nothing is stemmed or left out.
    """

    def __init__(self) -> None:
        """Raises DependencyError when `regex` is not installed."""
        try:
            import regex
        except ImportError as error:
            raise DependencyError("a BM25 first stage needs regex and bm25s: pip install 'lakerank[ingest]'") from error
        self._runs = regex.compile(_RUNS)

    def __call__(self, text: str) -> list[str]:
        """The terms of a text, in order, each as often as it occurs."""
        terms: list[str] = []
        for unspaced, word in self._runs.findall(text.casefold()):
            if word:
                terms.append(word)
            else:
                terms += [unspaced[at : at + 2] for at in range(len(unspaced) - 1)] or [unspaced]
        return terms


class _TokenIds:
    """Term ids of many documents in one array; bm25s iterates over them by document."""

    def __init__(self) -> None:
        self._numbers = array("i")
        self._ends = array("q", [0])

    def add(self, numbers: Iterable[int]) -> None:
        self._numbers.extend(numbers)
        self._ends.append(len(self._numbers))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for document in range(len(self)):
            yield self._numbers[self._ends[document] : self._ends[document + 1]].tolist()


class Bm25Index:
    """An index in memory; Lucene's variant of BM25. Equal scores are in the order of the corpus."""

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        """`texts` are document ids and texts. Raises DependencyError when `bm25s` or `regex` is not installed."""
        try:
            import bm25s
            from bm25s.tokenization import Tokenized
        except ImportError as error:
            raise DependencyError("a BM25 first stage needs regex and bm25s: pip install 'lakerank[ingest]'") from error
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG when it is imported
        self._terms = Terms()
        self._doc_ids: list[str] = []
        self._vocabulary: dict[str, int] = {}
        tokens = _TokenIds()
        for doc_id, text in texts:
            self._doc_ids.append(doc_id)
            tokens.add(self._vocabulary.setdefault(term, len(self._vocabulary)) for term in self._terms(text))
        self._bm25: Any = bm25s.BM25(method="lucene", k1=K1, b=B)
        if self._vocabulary:
            self._bm25.index(Tokenized(tokens, dict(self._vocabulary)), show_progress=False)

    def __len__(self) -> int:
        return len(self._doc_ids)

    def search(self, text: str, depth: int) -> list[tuple[str, float]]:
        """Up to `depth` documents that share a term with the text, and their scores, best first."""
        known = [number for term in self._terms(text) if (number := self._vocabulary.get(term)) is not None]
        if not known:
            return []
        scores: np.ndarray[Any, Any] = self._bm25.get_scores_from_ids(known)  # (D,)
        hits = np.flatnonzero(scores > 0)
        if len(hits) > depth:
            threshold = np.partition(scores[hits], -depth)[-depth]
            hits = hits[scores[hits] >= threshold]  # keeps all ties at the end, so that the cut is in corpus order
        best = hits[np.argsort(-scores[hits], kind="stable")][:depth]
        return [(self._doc_ids[document], float(scores[document])) for document in best]
