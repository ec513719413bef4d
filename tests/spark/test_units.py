"""Cutting a sorted stream of pairs into groups and units of even cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lakerank.spark.units import cut_units, document_groups

#: Documents as (cost, cost of each of its queries).
documents = st.lists(
    st.tuples(st.integers(1, 50), st.lists(st.integers(1, 9), min_size=1, max_size=12)), min_size=1, max_size=40
)


def rows(made: list[tuple[int, list[int]]]) -> list[dict[str, object]]:
    place = {"d_file": "f", "d_row_group": 0, "q_file": "g", "q_row_group": 0, "q_row": 0, "tried": None}
    return [
        place | {"doc_id": f"d{d}", "doc_hash": f"h{d}", "d_row": d, "d_cost": cost}
        | {"query_id": f"q{q}", "query_hash": f"k{q}", "q_cost": query_cost}
        for d, (cost, query_costs) in enumerate(made)
        for q, query_cost in enumerate(query_costs)
    ]  # fmt: skip


@given(documents, st.integers(1, 5))
def test_groups_hold_every_pair_once_in_order_and_never_too_many(made, most):
    groups = list(document_groups(rows(made), most))
    pairs = [(group["doc_id"], query["query_id"]) for group, _, _ in groups for query in group["queries"]]
    assert pairs == [(row["doc_id"], row["query_id"]) for row in rows(made)]
    assert all(1 <= count == len(group["queries"]) <= most for group, count, _ in groups)
    assert len(groups) == sum(-(-len(queries) // most) for _, queries in made)


@given(documents, st.integers(1, 5))
def test_a_split_document_costs_its_prefix_again(made, most):
    total = sum(cost for _, _, cost in document_groups(rows(made), most))
    assert total == sum(cost * -(-len(queries) // most) + sum(queries) for cost, queries in made)


@given(documents, st.integers(1, 400))
def test_units_are_even(made, target):
    groups = list(document_groups(rows(made), 12))
    total, largest = sum(cost for *_, cost in groups), max(cost for *_, cost in groups)
    units = list(cut_units(groups, total, target))
    assert [group for unit in units for group in unit.groups] == [group for group, *_ in groups]
    assert all(unit.cost == sum(c for g, _, c in groups if g in unit.groups) for unit in units)
    share = total / max(1, round(total / target))
    assert max(unit.cost for unit in units) <= share + largest
