"""BM25 in Lucene's variant over texts in any language: terms, postings, and the best documents of a query.

V terms of a vocabulary, D documents and P postings throughout.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import regex

from lakerank.ranking import Float64, Int64

Int32 = npt.NDArray[np.int32]

#: Anserini's parameters, as in BEIR's and MIRACL's own BM25 figures (which also stem English).
K1, B = 0.9, 0.4

NUMBERS = pa.list_(pa.field("element", pa.int32()))

#: A document's number of terms, and how often it has each of those that are in the vocabulary, by their numbers.
POSTINGS = pa.schema([
    ("doc_id", pa.string()), ("length", pa.int32()),
    ("terms", NUMBERS), ("counts", NUMBERS),
])  # fmt: skip

#: Scripts written without spaces between words, and Hangul, whose words carry their particles.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー々"
_WORD = rf"[[\p{{L}}\p{{N}}]--[{_UNSPACED}]][[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]*"
_RUNS = regex.compile(rf"(?V1)([{_UNSPACED}]+)|({_WORD})")

_ASCII_WORDS = re.compile(r"[a-z0-9]+")  # the same for ASCII, five times as fast

#: Signs that stand beside a word and would become letters of it.
_SIGNS = str.maketrans("\u2122\u2120\u00b4\u2018\u2019", "     ")

#: What readers may leave out without writing another word: characters that are not shown (soft hyphen, zero-width
#: space and joiners, variation selectors), vowel points and accents of Arabic and Hebrew, tatweel.
_OPTIONAL = regex.compile(
    r"[\p{Default_Ignorable_Code_Point}\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    r"\u0610-\u061a\u0640\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]"
)

_DIGITS = regex.compile(r"(?V1)[\p{Nd}--[0-9]]")


def split_terms(text: str, is_document: bool = False) -> list[str]:
    """The terms of a text, in order: words, and pairs of neighbouring characters of scripts without spaces.

    "Kobe 神戸市" → ["kobe", "神戸", "戸市"]. A document also has single characters of such scripts, for queries of one
    character. Ways of writing that Unicode or readers take for equal give the same terms: composed or not, full-width,
    ligatures, upper case, digits of any script, Arabic and Hebrew with or without vowels. Other marks are part of their
    letters. Nothing is stemmed or left out.
    """
    if text.isascii():
        return _ASCII_WORDS.findall(text.lower())
    terms: list[str] = []
    for unspaced, word in _RUNS.findall(_normalised(text)):
        if word:
            terms.append(word)
            continue
        terms += map("".join, pairwise(unspaced))
        if is_document or len(unspaced) == 1:
            terms += unspaced
    return terms


def _normalised(text: str) -> str:
    folded = unicodedata.normalize("NFD", text.translate(_SIGNS)).casefold()
    folded = unicodedata.normalize("NFKD", folded).casefold()
    folded = _OPTIONAL.sub("", folded).replace("i\u0307", "i").replace("ı", "i")
    folded = _DIGITS.sub(lambda digit: str(unicodedata.decimal(digit[0], 0)), folded)
    return unicodedata.normalize("NFKC", folded)


class PostingsBuilder:
    """Collects POSTINGS of documents: of the terms of a vocabulary, or of all terms, which it then numbers."""

    def __init__(self, vocabulary: dict[str, int] | None = None) -> None:
        self.vocabulary: dict[str, int] = {} if vocabulary is None else vocabulary
        self.documents = self.length = 0  # those with any term, and the terms that they have in all
        self._grows = vocabulary is None
        self._doc_ids: list[str] = []
        self._lengths, self._numbers, self._counts, self._ends = (array(kind) for kind in "iiii")

    def add(self, doc_id: str, text: str) -> bool:
        """Add a document; False if it has no term at all."""
        terms = split_terms(text, is_document=True)
        if not terms:
            return False
        self.documents += 1
        self.length += len(terms)
        before = len(self._numbers)
        for term, count in Counter(terms).items():
            number = self.vocabulary.get(term)
            if number is None and self._grows:
                number = self.vocabulary[term] = len(self.vocabulary)
            if number is not None:
                self._numbers.append(number)
                self._counts.append(count)
        if len(self._numbers) > before:
            self._doc_ids.append(doc_id)
            self._lengths.append(len(terms))
            self._ends.append(len(self._numbers))
        return True

    def finish(self) -> pa.Table:
        """The POSTINGS of all documents that have a term of the vocabulary."""
        ends = pa.array(np.append(0, np.frombuffer(self._ends, np.int32)).astype(np.int32))
        values = (pa.array(np.frombuffer(column, np.int32)) for column in (self._numbers, self._counts))
        lists = [pa.ListArray.from_arrays(ends, column).cast(NUMBERS) for column in values]
        lengths = pa.array(np.frombuffer(self._lengths, np.int32))
        return pa.Table.from_arrays([pa.array(self._doc_ids, pa.string()), lengths, *lists], schema=POSTINGS)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a score depends on beside its document: how rare each term is (V,), the mean length, and k1 and b."""

    idf: Float64
    mean_length: float
    k1: float = K1
    b: float = B


def statistics(frequencies: Int64, documents: int, length: int, k1: float = K1, b: float = B) -> Statistics:
    """The statistics of `documents` with `length` terms in all, of which so many have each term (V,)."""
    idf = np.log(1 + (documents - frequencies + 0.5) / (frequencies + 0.5))
    return Statistics(idf, length / max(1, documents), k1, b)


class PostingsIndex:
    """An index in memory of all documents or of some: a document's score has the same bits in either."""

    def __init__(self, postings: pa.Table, statistics: Statistics) -> None:
        lists, counts = (_joined(postings[name]) for name in ("terms", "counts"))
        terms, times = lists.flatten().to_numpy(), counts.flatten().to_numpy()  # (P,)
        documents = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy())
        lengths = postings["length"].to_numpy() / (statistics.mean_length or 1.0)
        norms = statistics.k1 * (1 - statistics.b + statistics.b * lengths)  # (D,)
        weights = statistics.idf[terms] * (times / (times + norms[documents]))
        order = np.argsort(terms, kind="stable")
        self._documents, self._weights = documents[order], weights[order]
        self._ends = np.searchsorted(terms[order], np.arange(len(statistics.idf) + 1))
        self.doc_ids: list[str] = postings["doc_id"].to_pylist()
        by_id = sorted(range(len(self.doc_ids)), key=self.doc_ids.__getitem__)
        changes = [self.doc_ids[a] != self.doc_ids[b] for a, b in pairwise(by_id)]
        self._place = np.empty(len(by_id), np.int64)  # (D,) among the distinct ids
        self._place[by_id] = np.cumsum([0, *changes])[: len(by_id)]
        self._is_distinct = all(changes)
        self._scores = np.zeros(len(by_id))

    def search(self, terms: Sequence[int] | Int32, depth: int) -> tuple[Int64, Float64]:
        """Positions and scores of the `depth` best documents that share a term, best first, equal scores by id.

        A document with several rows counts once, with the best.
        """
        numbers, times = np.unique(np.asarray(terms, np.int64), return_counts=True)
        spans = [slice(self._ends[number], self._ends[number + 1]) for number in numbers]
        for span, count in zip(spans, times, strict=True):
            self._scores[self._documents[span]] += count * self._weights[span]
        touched = [self._documents[span] for span in spans]
        if sum(map(len, touched)) > len(self._scores) // 8:
            hits = np.flatnonzero(self._scores)
        else:
            hits = np.unique(np.concatenate([np.empty(0, np.int64), *touched]))
        scores = self._scores[hits]
        self._scores[hits] = 0.0
        if len(hits) > depth and self._is_distinct:
            best = scores >= np.partition(scores, -depth)[-depth]  # keeps all ties at the end: ids decide
            hits, scores = hits[best], scores[best]
        order = np.lexsort((self._place[hits], -scores))
        if not self._is_distinct:
            _, first = np.unique(self._place[hits][order], return_index=True)
            order = order[np.sort(first)]
        order = order[:depth]
        return hits[order], scores[order]


def _joined(column: pa.ChunkedArray) -> pa.ListArray:
    return pa.concat_arrays([pa.array([], NUMBERS), *column.chunks])
