"""Cutting sorted pairs into groups and units of even cost, whoever cuts and whatever the partitions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lakerank.cost import CostProfile
from lakerank.plan.units import UNIT_GROUPS, Cuts, group_costs, group_starts, unit_name

#: Documents as (cost, cost of each of its queries).
documents = st.lists(
    st.tuples(st.integers(1, 50), st.lists(st.integers(1, 9), min_size=1, max_size=12)), min_size=1, max_size=40
)


def groups_of(made: list[tuple[int, list[int]]], most: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.repeat(np.arange(len(made)), [len(queries) for _, queries in made])
    starts = group_starts(numbers, most)
    document_costs = np.array([cost for cost, _ in made])[numbers[starts]]
    query_costs = np.array([cost for _, queries in made for cost in queries])
    no_image = np.zeros(len(query_costs), bool)
    return starts, group_costs(starts, document_costs, 0 * document_costs, query_costs, no_image, [CostProfile()])


@given(documents, st.integers(1, 5))
def test_groups_begin_at_documents_and_never_hold_too_many(made, most):
    starts, _ = groups_of(made, most)
    sizes = np.diff([*starts, sum(len(queries) for _, queries in made)])
    assert sizes.max() <= most
    assert len(starts) == sum(-(-len(queries) // most) for _, queries in made)
    firsts = np.cumsum([0] + [len(queries) for _, queries in made[:-1]])
    assert set(firsts) <= set(starts)


@given(documents, st.integers(1, 5))
def test_a_split_document_costs_its_prefix_again(made, most):
    _, costs = groups_of(made, most)
    assert costs.sum() == sum(cost * -(-len(queries) // most) + sum(queries) for cost, queries in made)


#: Pairs by document: (cost of the document, has it an image, (cost, has it an image) of each query).
mixed = st.lists(
    st.tuples(
        st.integers(1, 50), st.booleans(), st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=20,
)
readings = st.builds(CostProfile, st.booleans(), st.booleans(), st.just(1.0))


@given(mixed, st.lists(readings, min_size=1, max_size=2))
def test_a_group_costs_what_each_reranker_reads_of_it(made, readings):
    numbers = np.repeat(np.arange(len(made)), [len(queries) for *_, queries in made])
    starts = group_starts(numbers, 100)
    with_image = np.array([has or own for _, has, queries in made for _, own in queries])
    costs = group_costs(
        starts,
        np.array([cost for cost, *_ in made]),
        np.array([cost // 3 for cost, *_ in made]),
        np.array([cost for *_, queries in made for cost, _ in queries]),
        with_image,
        readings,
    )
    for result, (document, has, queries) in zip(costs, made, strict=True):
        expected, started = 0, set()
        for query, own in queries:
            number = int(len(readings) > 1 and (has or own))
            reading = readings[number]
            if (has or own) and not reading.accepts_images:
                expected += 1
                continue
            expected += query
            if number not in started:
                expected += document
            elif not reading.document_major:
                expected += document - document // 3
            started.add(number)
        assert result == expected


def test_tokens_of_a_smaller_model_cost_less():
    half = [CostProfile(weight=0.5)]
    numbers = (np.array([number]) for number in (0, 10, 0, 3))
    assert group_costs(*numbers, np.array([False]), half).tolist() == [7]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 400))
def test_units_are_even_and_in_order(costs, target):
    costs = np.array(costs)
    cuts = Cuts.near(int(costs.sum()), target)
    units = cuts.unit_of(np.cumsum(costs) - costs)
    assert (np.diff(units) >= 0).all()
    assert units[0] >= 0
    assert units[-1] < cuts.units
    share = costs.sum() / cuts.units
    assert np.bincount(units, weights=costs).max() <= share + costs.max()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 400))
def test_a_units_share_holds_the_groups_that_begin_in_it(costs, target):
    costs = np.array(costs)
    cuts = Cuts.near(int(costs.sum()), target)
    begins = np.cumsum(costs) - costs
    units = cuts.unit_of(begins)
    for unit in range(cuts.units):
        first, end = cuts.share(unit)
        assert ((begins >= first) & (begins < end)).tolist() == (units == unit).tolist()


def unit(**changes: object) -> pa.Table:
    query = {"query_id": "q1", "query_hash": "hq", "tried": None, "file": "f", "row_group": 0, "row": 0}
    locations = {"number": 3, "rank": 1}
    row = {"doc_id": "d1", "doc_hash": "hd", "file": "f", "row_group": 0, "row": 0}
    pair = {name: changes.pop(name) for name in list(changes) if name in query | locations}
    return pa.Table.from_pylist([row | changes | {"queries": [query | locations | pair]}], schema=UNIT_GROUPS)


def test_a_unit_is_named_by_its_pairs_and_their_contents_alone():
    name = unit_name(unit())
    for change in ({"row": 7}, {"file": "other"}, {"number": 4}, {"rank": 9}):
        assert unit_name(unit(**change)) == name, change
    for change in ({"doc_id": "d2"}, {"doc_hash": "x"}, {"query_id": "q"}, {"query_hash": "y"}, {"tried": "earlier"}):
        assert unit_name(unit(**change)) != name, change
    assert unit_name(unit(doc_id="d1h", doc_hash="d")) != unit_name(unit(doc_id="d1", doc_hash="hd"))
