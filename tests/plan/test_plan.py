"""What a plan depends on, the pairs that a later stage takes over, and the bound of their cost."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from lakerank.cost import Sizing
from lakerank.plan.forecast import costliest
from lakerank.plan.pairs import PAIRS, chosen_pairs
from lakerank.plan.plan import PlanLimits


def test_a_plans_identity_has_the_stored_names_and_not_the_sizes_of_tasks():
    sizing = Sizing(3136, 602112, 10000)
    limits = PlanLimits(sizing, sizing, max_queries_per_group=3, unit_tokens=100, rows_per_file=1000)
    names = {"document", "query", "max_queries_per_group", "unit_tokens", "rows_per_file", "readings"}
    assert limits.identity().keys() == names
    assert replace(limits, task_pairs=1).identity() == limits.identity()


def test_a_unit_for_a_gpu_is_larger_and_a_run_may_move_to_one():
    sizing = Sizing(3136, 602112, 10000)
    limits = PlanLimits(sizing, sizing, max_queries_per_group=3, unit_tokens=None, rows_per_file=1000)
    assert (limits.unit_size(on_gpu=False), limits.unit_size(on_gpu=True)) == (2_000_000, 8_000_000)
    assert replace(limits, unit_tokens=7).unit_size(on_gpu=True) == 7
    before = replace(limits, unit_tokens=2_000_000).identity()
    assert limits.identity() == replace(limits, device="cuda").identity() == before


def test_of_pairs_only_the_chosen_are_kept_with_their_first_stage_ranks():
    rows = [
        {"doc_id": "a", "document": 10, "queries": [1, 2, 5], "ranks": [4, 3, 2]},
        {"doc_id": "b", "document": 11, "queries": [1], "ranks": [9]},
        {"doc_id": "c", "document": 12, "queries": [1, 5], "ranks": [1, 8]},
    ]
    chosen = pa.table({"doc_id": ["c", "a", "a"], "query": pa.array([5, 5, 1], pa.int32())})
    kept = chosen_pairs(pa.Table.from_pylist(rows, schema=PAIRS), chosen).drop_columns(["hash", "group_id"])
    assert kept.to_pylist() == [
        {"doc_id": "a", "document": 10, "queries": [1, 5], "ranks": [4, 2]},
        {"doc_id": "c", "document": 12, "queries": [5], "ranks": [8]},
    ]


def test_the_costliest_are_counted_from_the_top():
    numbers = {10: 3, 7: 2, 100: 1}
    assert [costliest(numbers, most) for most in (0, 1, 3, 5, 99)] == [0, 100, 120, 137, 144]
