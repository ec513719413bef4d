"""Figures equal ir_measures' and what trec_eval's own tests say."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.evaluation.metrics.measures import MEASURES, NAMES, figures


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
    qrels = {str(number): {str(where): grade for where, grade in one.items()} for number, (_, one) in enumerate(lists)}
    run = {
        str(number): {str(place): float(-place) for place in range(length)} for number, (length, _) in enumerate(lists)
    }
    expected = np.zeros((len(lists), len(MEASURES)))
    for one in ir_measures.iter_calc(list(MEASURES), qrels, run):
        expected[int(one.query_id), NAMES.index(MEASURES[one.measure])] = one.value
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
    found = of([TOPIC_301, TOPIC_303, TOPIC_302])[:, NAMES.index(name)]
    assert tuple(f"{value:.4f}" for value in (found[0], found[1], found.mean())) == PRINTED[name]


def test_trec_evals_average_precision():
    assert f"{of([TOPIC_303])[0, NAMES.index('AP')]:.4f}" == "0.2723"


@pytest.mark.parametrize(("place", "expected"), [(2, 0.5), (0, 1.0), (1, 0.6309297535714575)])
def test_pytrec_evals_own_examples(place, expected):
    grades = {place: 1} | {where: 0 for where in range(3) if where != place}
    assert of([(3, grades)])[0, NAMES.index("nDCG@10")] == pytest.approx(expected, abs=1e-15)


def test_a_judgement_below_0_counts_as_0():
    assert of([(3, {0: -2, 1: 1})]).tolist() == of([(3, {0: 0, 1: 1})]).tolist()
