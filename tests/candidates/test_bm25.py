"""BM25: Lucene's formula, terms of any script, ties in the order of ids."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter

import bm25s
import numpy as np
import pytest
from bm25s.tokenization import Tokenized
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerank.candidates.bm25 import K1, B, PostingsBuilder, PostingsIndex, split_terms, statistics
from lakerank_datasets.first_stage import Bm25Index


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Red APPLE, red!", ["red", "apple", "red"]),
        ("get_user(name2)", ["get", "user", "name2"]),
        ("Kobe 神戸市", ["kobe", "神戸", "戸市"]),
        ("コーヒー豆", ["コー", "ーヒ", "ヒー", "ー豆"]),
        ("赤", ["赤"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("한국어", ["한국", "국어"]),
        ("abc漢字def", ["abc", "漢字", "def"]),
        ("Foo™ l´eau", ["foo", "l", "eau"]),
        (" -- … \u0301", []),
        ("", []),
    ],
)
def test_terms(text, terms):
    assert split_terms(text) == terms


@given(st.text())
def test_text_that_is_canonically_equal_has_equal_terms(text):
    terms = split_terms(text)
    assert split_terms(unicodedata.normalize("NFC", text)) == split_terms(unicodedata.normalize("NFD", text)) == terms
    assert all(term and not any(character.isspace() for character in term) for term in terms)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ＦＵＬＬ　ｗｉｄｔｈ１", "full width1"),
        ("ｶﾞｷﾞ", "ガギ"),
        ("STRASSE", "straße"),
        ("STRAẞE", "strasse"),
        ("İSTANBUL", "istanbul"),
        ("ISPARTA", "ısparta"),
        ("ſecond", "second"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("ﬁnd eﬀect", "find effect"),
        ("كِتَابٌ", "كتاب"),
        ("كـــتاب", "كتاب"),
        ("ﻛﺘﺎﺏ", "كتاب"),
        ("שָׁלוֹם", "שלום"),
        ("\u1112\u1161\u11ab\u1100\u116e\u11a8", "한국"),
        ("co\u00adoperate", "cooperate"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("می\u200cخواهم", "میخواهم"),
        ("q\u0307\u0323", "q\u0323\u0307"),
        ("٢٠٢٤ ۲۰۲۴", "2024 2024"),
        ("H₂O", "h2o"),
        ("𝐁old ℌ", "bold h"),
    ],
)
def test_ways_of_writing_the_same_word_have_equal_terms(one, other):
    assert split_terms(one) == split_terms(other)
    assert Bm25Index([("d", one)]).search(other, 1)
    assert Bm25Index([("d", other)]).search(one, 1)


@pytest.mark.parametrize(("query", "text"), [("猫", "白い猫が好き"), ("แมว", "ฉันชอบแมวดำ"), ("국", "한국어")])
def test_a_word_is_found_inside_text_without_spaces(query, text):
    assert Bm25Index([("d", text)]).search(query, 1)


@given(st.text(st.characters(codec="ascii")))
def test_ascii_is_split_like_any_text(text):
    assert split_terms(text) == split_terms(f"{text} ж")[:-1]


def test_marks_that_make_another_letter_are_kept():
    assert split_terms("má") != split_terms("ma")
    assert split_terms("й") != split_terms("и")


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
    assert result == sorted(result, key=lambda hit: (-hit[1], hit[0]))
    assert result == index.search(query, depth), "one search leaves nothing to the next"


def lucene(texts: list[str], query: str) -> list[float]:
    """The formula, a document at a time: idf × tf / (tf + k1 (1 − b + b length / mean))."""
    documents = [Counter(text.split()) for text in texts]
    count = max(1, sum(document.total() > 0 for document in documents))
    mean = sum(document.total() for document in documents) / count
    scores = []
    for document in documents:
        score = 0.0
        for term in query.split():
            having = sum(term in other for other in documents)
            idf = math.log(1 + (count - having + 0.5) / (having + 0.5))
            norm = K1 * (1 - B + B * document.total() / mean) if mean else K1
            score += idf * document[term] / (document[term] + norm) if document[term] else 0.0
        scores.append(score)
    return scores


@settings(max_examples=40)
@given(st.lists(WORDS.filter(bool), min_size=1, max_size=12), WORDS.filter(bool))
def test_scores_are_bm25s(texts, query):
    vocabulary = {term: number for number, term in enumerate(sorted({term for text in texts for term in text.split()}))}
    oracle = bm25s.BM25(method="lucene", k1=K1, b=B)
    oracle.index(
        Tokenized([[vocabulary[term] for term in text.split()] for text in texts], vocabulary), show_progress=False
    )
    known = [vocabulary[term] for term in query.split() if term in vocabulary]
    scores = dict(Bm25Index((f"{n:02}", text) for n, text in enumerate(texts)).search(query, len(texts)))
    expected = oracle.get_scores_from_ids(known) if known else [0.0] * len(texts)
    assert [scores.get(f"{number:02}", 0.0) for number in range(len(texts))] == pytest.approx(list(expected), rel=1e-4)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), WORDS), max_size=10), WORDS, st.integers(1, 4))
def test_parts_of_a_lake_give_the_scores_of_the_whole(rows, query, depth):
    vocabulary = {"red": 0, "green": 1, "apple": 2}
    terms = [vocabulary[term] for term in split_terms(query) if term in vocabulary]

    def postings(rows):
        builder = PostingsBuilder(vocabulary)
        for doc_id, text in rows:
            builder.add(doc_id, text)
        return builder, builder.finish()

    whole, table = postings(rows)
    frequencies = np.bincount([number for row in table["terms"].to_pylist() for number in row], minlength=3)
    numbers = statistics(frequencies, whole.documents, whole.length)

    def best(table):
        index = PostingsIndex(table, numbers)
        positions, scores = index.search(terms, depth)
        return [(-score, index.doc_ids[at]) for at, score in zip(positions, scores, strict=True)]

    half = len(rows) // 2
    merged: dict[str, float] = {}
    for score, doc_id in sorted(best(postings(rows[:half])[1]) + best(postings(rows[half:])[1])):
        merged.setdefault(doc_id, score)
    assert [(score, doc_id) for doc_id, score in merged.items()][:depth] == best(table)
