"""Results of several stages become one list: whose score each row has, and what becomes of a pair that one rejects."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lakerank.ranking import Fusion
from lakerank.rerank.rank.combine import STAGE_RESULTS, FusionRule, combine
from lakerank.schemas import COMBINED, MEMBERSHIPS, REJECTED

IDS = (7, pa.array(["q7", "q8"]))
FUSION = Fusion("reciprocal_rank", (0.5, 0.5))


def result(query: int, doc_id: str, number: int, logit: float | None, **fields: object) -> dict[str, object]:
    row = {
        "query": query,
        "doc_id": doc_id,
        "rank": 3,
        "logit": logit,
        "truncated": False,
        "new": False,
        "stage": number,
    }
    return row | ({} if logit is not None else {"reason": "input_too_long", "detail": f"by {number}"}) | fields


RESULTS = [
    result(7, "a", 1, 5.0, truncated=True),
    result(7, "b", 1, 4.0, new=True),
    result(7, "b", 2, -1.0),
    result(7, "a", 2, None),
    result(7, "c", 1, 4.0),
    result(7, "c", 2, -1.0, truncated=True, new=True),
    result(7, "d", 1, None),
    result(8, "a", 1, 0.0),
    result(8, "d", 1, None, reason="out_of_memory"),
    result(8, "d", 2, None),
]


def combined(rule: FusionRule) -> tuple[dict[tuple[str, str], dict[str, object]], pa.Table, pa.Table]:
    lists, rejects = combine(pa.Table.from_pylist(RESULTS, schema=STAGE_RESULTS), IDS, rule)
    assert (lists.new, lists.fused) == (2, rule.fusion is not None)
    assert {(row["stage"], row["reason"]): row["count"] for row in lists.stages} == {
        (1, None): 4,
        (1, "input_too_long"): 1,
        (1, "out_of_memory"): 1,
        (2, None): 2,
        (2, "input_too_long"): 2,
    }
    assert lists.rows.schema == pa.schema([*COMBINED, *MEMBERSHIPS])
    assert rejects.schema == REJECTED
    rows = lists.rows.select(COMBINED.names)
    return {(row["query_id"], row["doc_id"]): row for row in rows.to_pylist()}, rows, rejects


def test_a_cascades_rows_have_the_score_of_the_last_stage_that_has_one():
    actual, rows, rejects = combined(FusionRule((0.0, -1.0), None, (0.5,), None))
    assert rows["doc_id"].to_pylist() == ["b", "c", "a", "a"]
    assert rows["rank"].to_pylist() == [1, 2, 3, 1]
    assert actual["q7", "b"] == {
        "query_id": "q7", "doc_id": "b", "rank": 1, "logit": -1.0, "relevance": 0.5, "label": 1,
        "first_stage_rank": 3, "truncated": False, "scored_by": [1, 2], "reason": None,
    }  # fmt: skip
    assert actual["q7", "c"]["truncated"] is True
    fallen = actual["q7", "a"]
    assert (fallen["logit"], fallen["truncated"], fallen["scored_by"], fallen["reason"]) == (
        5,
        True,
        [1],
        "input_too_long",
    )
    assert rejects.to_pylist() == [
        {"query_id": "q7", "doc_id": "d", "reason": "input_too_long", "detail": "by 1"},
        {"query_id": "q8", "doc_id": "d", "reason": "out_of_memory", "detail": "by 1"},
    ]


def test_an_ensembles_rows_have_the_fused_score_and_the_mean_relevance():
    actual, rows, rejects = combined(FusionRule((0.0, -1.0), FUSION, (0.5,), None))
    # The first ranks a, b, c; the second, which cannot read a, ranks b, c.
    assert {pair: row["logit"] for pair, row in actual.items()} == pytest.approx(
        {("q7", "a"): 1 / 61, ("q7", "b"): 1 / 62 + 1 / 61, ("q7", "c"): 1 / 63 + 1 / 62, ("q8", "a"): 1 / 61}
    )
    assert rows["doc_id"].to_pylist() == ["b", "c", "a", "a"]
    assert actual["q7", "b"]["relevance"] == pytest.approx((0.9820138 + 0.5) / 2)
    assert actual["q7", "a"]["relevance"] == pytest.approx(0.9933072), "the mean of those who scored it"
    assert actual["q7", "c"]["truncated"] is True
    assert rejects["doc_id"].to_pylist() == ["d", "d"]
