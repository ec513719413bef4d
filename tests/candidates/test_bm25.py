"""BM25: Lucene's formula, terms of any script, ties in the corpus's order."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.candidates.bm25 import K1, B, Bm25Index, Terms

TERMS = Terms()


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Red APPLE, red!", ["red", "apple", "red"]),
        ("get_user(name2)", ["get", "user", "name2"]),
        ("Kobe 神戸市", ["kobe", "神戸", "戸市"]),
        ("コーヒー豆", ["コー", "ーヒ", "ヒー", "ー豆"]),
        ("赤", ["赤"]),
        ("แมวดำ", ["แม", "มว", "วด", "ดำ"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("한국어", ["한국", "국어"]),
        ("abc漢字def", ["abc", "漢字", "def"]),
        (" -- … ", []),
        ("", []),
    ],
)
def test_terms(text, terms):
    assert TERMS(text) == terms


@given(st.text())
def test_any_text_has_terms_without_spaces_and_of_its_own_characters(text):
    for term in TERMS(text):
        assert term
        assert term in text.casefold()
        assert not any(character.isspace() for character in term)


WORDS = st.lists(st.sampled_from(["red", "green", "blue", "apple", "train"]), max_size=6).map(" ".join)


@given(st.lists(WORDS, max_size=12), WORDS, st.integers(1, 5))
def test_scores_are_lucenes_and_the_best_are_kept(texts, query, depth):
    index = Bm25Index((f"d{number}", text) for number, text in enumerate(texts))
    expected = {f"d{number}": score for number, score in enumerate(lucene(texts, query)) if score > 0}
    result = index.search(query, depth)
    assert len(result) == min(depth, len(expected))
    assert all(score == pytest.approx(expected[doc], rel=1e-4) for doc, score in result)
    left_out = max((score for doc, score in expected.items() if doc not in dict(result)), default=0.0)
    assert all(expected[doc] >= left_out * (1 - 1e-4) for doc, _ in result)
    assert result == sorted(
        result, key=lambda one: (-one[1], int(one[0][1:]))
    )  # equal scores: in the order of the lake


def lucene(texts: list[str], query: str) -> list[float]:
    """The formula, a document at a time: idf × tf / (tf + k1 (1 − b + b length / mean))."""
    documents = [Counter(text.split()) for text in texts]
    mean = sum(document.total() for document in documents) / max(1, len(documents))
    scores = []
    for document in documents:
        score = 0.0
        for term in query.split():
            having = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            norm = K1 * (1 - B + B * document.total() / mean) if mean else K1
            score += idf * document[term] / (document[term] + norm) if document[term] else 0.0
        scores.append(score)
    return scores
