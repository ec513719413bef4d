"""Fusion and cascades against plain definitions, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lakerank.ranking import (
    Fusion,
    cascade_order,
    fused,
    last_scorer,
    log_odds,
    mean_relevance,
    min_max,
    reciprocal_ranks,
    scorer_ranks,
)

LOGITS = st.one_of(st.just(math.nan), st.integers(-3, 3).map(float), st.floats(-20, 20, width=32))


@st.composite
def results(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Some scorers' logits of some queries' documents: ties, absent scores and lone documents among them."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    query = np.repeat(np.arange(len(sizes)) * 3, sizes)
    document = np.concatenate([draw(st.permutations(range(20)))[:size] for size in sizes])
    logits = draw(arrays.arrays(np.float32, (draw(st.integers(1, 3)), len(query)), elements=LOGITS, fill=st.nothing()))
    return query, logits, document


def own_list(query: Any, logits: Any, document: Any, of: int) -> list[int]:
    """A scorer's list of a query: positions of its pairs, best first."""
    mine = [at for at in range(len(query)) if query[at] == of and not math.isnan(logits[at])]
    return sorted(mine, key=lambda at: (-logits[at], document[at]))


@given(results())
def test_places_are_ranks_in_each_scorers_own_list(drawn):
    query, logits, document = drawn
    result = scorer_ranks(query, logits, document)
    expected = np.zeros(logits.shape, int)
    for scorer, own in enumerate(logits):
        for of in set(query.tolist()):
            for place, at in enumerate(own_list(query, own, document, of), start=1):
                expected[scorer, at] = place
    assert result.tolist() == expected.tolist()


@given(results(), st.sampled_from([1.0, 60.0, 1000.0]))
def test_reciprocal_rank_is_the_published_sum(drawn, k):
    query, logits, document = drawn
    result = fused(query, logits, document, Fusion("reciprocal_rank", (1 / len(logits),) * len(logits), k))
    ranks = scorer_ranks(query, logits, document)
    expected = [sum(1 / (k + rank) for rank in column if rank) for column in ranks.T.tolist()]
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert (result <= np.float32(len(logits) / (k + 1)) * (1 + 1e-6)).all()


@given(results(), st.data())
def test_weighted_is_the_sum_of_min_maxes_within_the_query(drawn, data):
    query, logits, document = drawn
    raw = data.draw(st.lists(st.floats(0.125, 8), min_size=len(logits), max_size=len(logits)))
    weights = tuple(weight / sum(raw) for weight in raw)
    result = fused(query, logits, document, Fusion("weighted", weights))
    expected = np.zeros(len(query))
    for weight, own in zip(weights, logits.astype(float), strict=True):
        for of in set(query.tolist()):
            mine = own_list(query, own, document, of)
            for at in mine:
                low, high = own[mine[-1]], own[mine[0]]
                expected[at] += weight * ((own[at] - low) / (high - low) if high > low else 1.0)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert ((result >= 0) & (result <= 1)).all()


@given(results(), st.sampled_from(["reciprocal_rank", "weighted"]))
def test_what_all_scorers_rank_higher_is_not_fused_lower(drawn, method):
    query, logits, document = drawn
    score = fused(query, logits, document, Fusion(method, (1 / len(logits),) * len(logits)))
    for a in range(len(query)):
        for b in range(len(query)):
            if query[a] == query[b] and (logits[:, a] > logits[:, b]).all():  # never with NaN
                assert score[a] >= score[b]


@given(results())
def test_a_scorer_that_has_no_score_for_a_query_changes_nothing_of_its_order(drawn):
    query, logits, document = drawn
    more = np.vstack([logits, np.full((1, len(query)), np.nan, np.float32)])
    fusion = Fusion("reciprocal_rank", (1 / len(more),) * len(more))
    assert fused(query, more, document, fusion).tolist() == fused(query, logits, document, fusion).tolist()


@given(results())
def test_a_cascade_puts_what_a_later_scorer_scored_first_and_keeps_each_ones_order(drawn):
    query, logits, document = drawn
    last = last_scorer(logits)
    for at in range(len(query)):
        has = [scorer for scorer, own in enumerate(logits) if not math.isnan(own[at])]
        assert last[at] == (has[-1] if has else -1)
    kept = np.flatnonzero(last >= 0)
    logit = logits[last[kept], kept]
    order = kept[cascade_order(query[kept], last[kept], logit, document[kept])]
    keys = [(query[at], -last[at], -logits[last[at], at], document[at]) for at in order]
    assert keys == sorted(keys)


@given(st.data())
def test_the_mean_of_relevances_is_over_those_that_scored(data):
    relevances = data.draw(
        arrays.arrays(np.float32, (3, 6), elements=st.one_of(st.just(math.nan), st.floats(0, 1, width=32)))
    )
    weights = data.draw(st.sampled_from([(1 / 3, 1 / 3, 1 / 3), (0.5, 0.25, 0.25), (0.0, 0.5, 0.5)]))
    for result, column in zip(mean_relevance(relevances, weights), relevances.T.tolist(), strict=True):
        known = [(w, r) for w, r in zip(weights, column, strict=True) if not math.isnan(r)]
        if not known:
            continue
        total = sum(w for w, _ in known)
        expected = sum(w * r for w, r in known) / total if total else sum(r for _, r in known) / len(known)
        assert result == pytest.approx(expected, abs=1e-6)


def test_min_max_of_equal_logits_is_one_and_of_no_logit_nothing():
    query = np.array([0, 0, 1, 2, 2])
    assert min_max(query, np.array([2, 2, -7, np.nan, 3], np.float32)).tolist() == [1, 1, 1, 0, 1]
    assert min_max(query, np.full(5, np.nan, np.float32)).tolist() == [0] * 5


def test_reciprocal_rank_of_the_papers_constant():
    ranks = np.array([[1, 2, 0], [1, 0, 3]])
    np.testing.assert_allclose(reciprocal_ranks(ranks, 60), [2 / 61, 1 / 62, 1 / 63], rtol=1e-6)


def test_log_odds_turns_the_sigmoid_around_and_stays_finite():
    assert log_odds(np.array([0.5], np.float32)).tolist() == [0.0]
    assert log_odds(np.array([1 / (1 + math.exp(-3))], np.float32))[0] == pytest.approx(3, abs=1e-4)
    assert np.isfinite(log_odds(np.array([0.0, 1.0], np.float32))).all()
