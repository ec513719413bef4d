"""Figures equal ir_measures' and those of trec_eval's own tests; the random baseline is the mean over shuffles."""

from __future__ import annotations

import math
import random

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import AP, RR, Judged, R, Success, nDCG

from lakerank_evaluation.metrics.measures import (
    NAMES,
    RANDOM_BASELINE,
    QueryFigures,
    figures,
    list_figures,
    list_random_baseline,
    perfect_ranks,
)

#: The measures as ir_measures has them, in the order of NAMES.
MEASURES = (nDCG @ 5, nDCG @ 10, R @ 10, R @ 100, RR @ 10, AP, Success @ 5, Success @ 10, Judged @ 10)

DOCS = [f"d{number:02}" for number in range(30)]


def of(lists):
    """Figures of lists given as (length, {place or absent name: judgement})."""
    judged = [
        (number, where if isinstance(where, int) else -1, grade)
        for number, (_, judgements) in enumerate(lists)
        for where, grade in judgements.items()
    ]
    query, place, grade = np.array(judged, np.int64).reshape(-1, 3).T
    return figures([length for length, _ in lists], query, place, grade)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 130),
            st.dictionaries(st.integers(0, 140) | st.sampled_from("abc"), st.integers(0, 4), min_size=1, max_size=20),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_figures_are_those_of_ir_measures(lists):
    lists = [
        (length, {where: grade for where, grade in judgements.items() if not isinstance(where, int) or where < length})
        for length, judgements in lists
    ]
    qrels = {
        str(number): {str(where): grade for where, grade in grades.items()} for number, (_, grades) in enumerate(lists)
    }
    run = {
        str(number): {str(place): float(-place) for place in range(length)} for number, (length, _) in enumerate(lists)
    }
    expected = np.zeros((len(lists), len(MEASURES)))
    for metric in ir_measures.iter_calc(list(MEASURES), qrels, run):
        expected[int(metric.query_id), MEASURES.index(metric.measure)] = metric.value
    np.testing.assert_array_equal(of(lists), expected)


#: Where the judged documents of trec_eval's test run stand (test/results.test and test/qrels.test of its sources), as
#: its own output for them tells (test/out.test.aqc): topic 303 has 10 relevant documents, 6 of them retrieved; 301 has
#: 474, of which 71 at places that its precisions bound; 302 has 77, and nothing was retrieved for it.
TOPIC_303 = (84, {2: 1, 3: 1, 4: 1, 6: 1, 12: 1, 17: 1, **{f"absent {number}": 1 for number in range(4)}})
TOPIC_301 = (
    500,
    dict.fromkeys((5, 6, 15, 16, 17, 20, 21, *range(30, 46), *range(100, 119), *range(200, 229)), 1)
    | {f"absent {number}": 1 for number in range(474 - 71)},
)
TOPIC_302 = (0, {f"absent {number}": 1 for number in range(77)})

#: By topic 301, 303, and all with `-c`.
PRINTED = {
    "nDCG@5": ("0.0000", "0.4469", "0.1490"),
    "nDCG@10": ("0.1518", "0.3633", "0.1717"),
    "Recall@10": ("0.0042", "0.4000", "0.1347"),
    "Recall@100": ("0.0485", "0.6000", "0.2162"),
    "RR@10": ("0.1667", "0.3333", "0.1667"),
    "Success@5": ("0.0000", "1.0000", "0.3333"),
    "Success@10": ("1.0000", "1.0000", "0.6667"),
}


@pytest.mark.parametrize("name", PRINTED)
def test_trec_evals_own_test_run_to_the_last_digit(name):
    result = of([TOPIC_301, TOPIC_303, TOPIC_302])[:, NAMES.index(name)]
    assert tuple(f"{value:.4f}" for value in (result[0], result[1], result.mean())) == PRINTED[name]


def test_trec_evals_average_precision():
    assert f"{of([TOPIC_303])[0, NAMES.index('AP')]:.4f}" == "0.2723"


@pytest.mark.parametrize(("place", "expected"), [(2, 0.5), (0, 1.0), (1, 0.6309297535714575)])
def test_pytrec_evals_own_examples(place, expected):
    grades = {place: 1} | {where: 0 for where in range(3) if where != place}
    assert of([(3, grades)])[0, NAMES.index("nDCG@10")] == pytest.approx(expected, abs=1e-15)


def test_a_judgement_below_0_counts_as_0():
    assert of([(3, {0: -2, 1: 1})]).tolist() == of([(3, {0: 0, 1: 1})]).tolist()


def of_list(docs, **judgements):
    """Figures of one list by measure."""
    return dict(zip(NAMES, list_figures([docs], [judgements])[0].tolist(), strict=True))


def random_of(candidates, **judgements):
    return dict(zip(RANDOM_BASELINE, list_random_baseline([candidates], [judgements])[0].tolist(), strict=True))


def test_by_hand():
    after, before = of_list("abdc", a=2, d=1), of_list("bcda", a=2, d=1)
    ideal = 2 + 1 / math.log2(3)
    assert after["nDCG@10"] == pytest.approx((2 + 1 / math.log2(4)) / ideal)
    assert before["nDCG@10"] == pytest.approx((1 / math.log2(4) + 2 / math.log2(5)) / ideal)
    assert after["AP"] == pytest.approx((1 + 2 / 3) / 2)
    assert before["RR@10"] == pytest.approx(1 / 3)
    assert after["Recall@10"] == 1
    assert after["Judged@10"] == pytest.approx(0.5)


def test_a_rejected_candidate_counts_as_not_found():
    assert of_list("ab", a=1)["Recall@10"] == 1
    assert of_list("b", a=1)["Recall@10"] == 0


def test_a_query_without_results_counts_as_nothing_found():
    result = of_list("", a=1)
    assert set(result) == set(NAMES)
    assert set(result.values()) == set(random_of("", a=1).values()) == {0.0}


def test_the_gain_is_over_the_first_stage_or_else_over_the_random_baseline():
    after, before = list_figures(["ab", "ba"], [{"a": 1}] * 2), list_figures(["ba", "ba"], [{"a": 1}] * 2)
    baseline = list_random_baseline(["ab", "ab"], [{"a": 1}] * 2)
    column, loss = NAMES.index("nDCG@10"), 1 / math.log2(3)
    assert QueryFigures({"reranked": after, "first_stage": before}, baseline).gain.tolist() == pytest.approx(
        [1 - loss, 0]
    )
    expected = [1 - baseline[0, 1], loss - baseline[1, 1]]
    assert QueryFigures({"reranked": after}, baseline).gain.tolist() == pytest.approx(expected)
    assert after[1, column] == pytest.approx(loss)


@given(
    st.lists(st.sampled_from(DOCS), unique=True, min_size=1),
    st.dictionaries(st.sampled_from(DOCS), st.integers(0, 3), min_size=1),
)
def test_equal_to_trec_eval(ranked, judgements):
    result = of_list(ranked, **judgements)
    evaluator = pytrec_eval.RelevanceEvaluator({"q": judgements}, {"ndcg_cut.5,10", "recall.10,100", "map"})
    expected = evaluator.evaluate({"q": {doc: 1 / (1 + rank) for rank, doc in enumerate(ranked)}})["q"]
    for ours, theirs in {
        "nDCG@5": "ndcg_cut_5",
        "nDCG@10": "ndcg_cut_10",
        "Recall@10": "recall_10",
        "Recall@100": "recall_100",
        "AP": "map",
    }.items():
        assert result[ours] == expected[theirs], ours


@given(
    st.lists(st.sampled_from(DOCS), unique=True),
    st.dictionaries(st.sampled_from(DOCS), st.integers(-1, 3), min_size=1),
    st.data(),
)
def test_no_order_of_the_candidates_is_better_than_the_perfect_one(candidates, judgements, data):
    query, grade = np.zeros(len(judgements), np.int64), np.array([*judgements.values()])
    ranks = perfect_ranks(query, grade, np.array([doc in candidates for doc in judgements]))
    ceiling = figures([len(candidates)], query, ranks, grade)[0]
    best = sorted(candidates, key=lambda doc: -judgements.get(doc, -9))
    np.testing.assert_array_equal(ceiling[:-1], list_figures([best], [judgements])[0, :-1])
    other = list_figures([data.draw(st.permutations(candidates))], [judgements])[0]
    assert (other <= ceiling + 1e-12).all()


@pytest.mark.parametrize(
    ("candidates", "judgements"),
    [
        ("abcdefghijklmnopqrst", {"a": 2, "b": 1, "z": 3}),
        ("abcdef", {"a": 1, "f": 3}),
        ("abcdefghijkl", {"a": 0, "b": 1}),
    ],
)
def test_the_random_baseline_is_the_mean_over_random_orders(candidates, judgements):
    generator = random.Random(1)
    shuffled = [generator.sample(candidates, len(candidates)) for _ in range(4000)]
    means = dict(zip(NAMES, list_figures(shuffled, [judgements] * 4000).mean(axis=0).tolist(), strict=True))
    for name, value in random_of(candidates, **judgements).items():
        assert means[name] == pytest.approx(value, abs=0.02), name


def test_without_candidates_or_relevant_documents_the_random_baseline_is_0():
    assert set(random_of("", a=1).values()) == {0.0}
    assert set(random_of("ab", a=0).values()) == {0.0}
