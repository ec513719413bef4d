"""Measures equal trec_eval's; chance is what shuffling gives."""

from __future__ import annotations

import math
import random

import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from lakerank.evaluation.metrics.lists import QueryLists, chance, measure
from lakerank.evaluation.metrics.measures import MEASURES

DOCS = [f"d{number:02}" for number in range(30)]


def lists(candidates="abcd", reranked="abcd", **judgements):
    return QueryLists("q", tuple(candidates), tuple(reranked), judgements)


def test_by_hand():
    [result] = measure([lists("bcda", "abdc", a=2, d=1)])
    ideal = 2 + 1 / math.log2(3)
    assert result.reranked["nDCG@10"] == pytest.approx((2 + 1 / math.log2(4)) / ideal)
    assert result.first_stage["nDCG@10"] == pytest.approx((1 / math.log2(4) + 2 / math.log2(5)) / ideal)
    assert result.reranked["AP"] == pytest.approx((1 + 2 / 3) / 2)
    assert result.first_stage["RR@10"] == pytest.approx(1 / 3)
    assert result.reranked["Recall@10"] == 1
    assert result.reranked["Judged@10"] == pytest.approx(0.5)
    assert result.gain == pytest.approx(result.reranked["nDCG@10"] - result.first_stage["nDCG@10"])


def test_a_rejected_candidate_counts_as_not_found():
    [result] = measure([lists("ab", "b", a=1)])
    assert result.first_stage["Recall@10"] == 1
    assert result.reranked["Recall@10"] == 0


def test_a_query_without_results_counts_as_nothing_found():
    [result] = measure([lists("", "", a=1)])
    assert set(result.reranked) == set(MEASURES.values())
    assert set(result.reranked.values()) == set(result.chance.values()) == {0.0}


def test_without_an_order_there_is_no_first_stage():
    [result] = measure([lists("ab", "ab", a=1)], ordered=False)
    assert result.first_stage is None
    assert result.gain == pytest.approx(1 - result.chance["nDCG@10"])


@given(
    st.lists(st.sampled_from(DOCS), unique=True, min_size=1),
    st.dictionaries(st.sampled_from(DOCS), st.integers(0, 3), min_size=1),
)
def test_equal_to_trec_eval(ranked, judgements):
    [result] = measure([QueryLists("q", tuple(DOCS), tuple(ranked), judgements)])
    evaluator = pytrec_eval.RelevanceEvaluator({"q": judgements}, {"ndcg_cut.5,10", "recall.10,100", "map"})
    expected = evaluator.evaluate({"q": {doc: 1 / (1 + rank) for rank, doc in enumerate(ranked)}})["q"]
    for ours, theirs in {
        "nDCG@5": "ndcg_cut_5",
        "nDCG@10": "ndcg_cut_10",
        "Recall@10": "recall_10",
        "Recall@100": "recall_100",
        "AP": "map",
    }.items():
        assert result.reranked[ours] == expected[theirs], ours


@pytest.mark.parametrize(
    ("candidates", "judgements"),
    [
        ("abcdefghijklmnopqrst", {"a": 2, "b": 1, "z": 3}),
        ("abcdef", {"a": 1, "f": 3}),
        ("abcdefghijkl", {"a": 0, "b": 1}),
    ],
)
def test_chance_is_the_mean_over_random_orders(candidates, judgements):
    generator = random.Random(1)
    shuffled = [
        QueryLists(str(trial), (), tuple(generator.sample(candidates, len(candidates))), judgements)
        for trial in range(4000)
    ]
    results = measure(shuffled, ordered=False)
    expected = chance(lists(candidates, "", **judgements))
    for name, value in expected.items():
        assert sum(result.reranked[name] for result in results) / len(results) == pytest.approx(value, abs=0.02), name


def test_chance_without_candidates_or_relevant_documents_is_nothing():
    assert set(chance(lists("", "", a=1)).values()) == {0.0}
    assert set(chance(lists("ab", "", a=0)).values()) == {0.0}
