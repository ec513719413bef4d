"""What is published and what is not: the audit against the last run and golden judgements, and who knows better."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.audit import Bounds
from lakerank.spark.publish import AuditRules, Override
from lakerank.spark.rank.lists import RankRule
from lakerank.spark.run import run

pytestmark = pytest.mark.spark


def audit_of(lake, run_id: str) -> dict[str, dict[str, object]]:
    report = json.loads((lake.folder / "out" / "runs" / run_id / "audit.json").read_text())
    return {check["name"]: check for check in report["checks"]}


def tops(lake, run_id: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in lake.ranked(run_id):
        if row["rank"] <= 10:
            found.setdefault(row["query_id"], []).append(row["doc_id"])
    return found


def change_documents(lake, changed: int) -> None:
    """New texts for the first documents: HashReranker gives them new logits."""
    documents = [{"doc_id": f"d{i:02}", "text": f"other {i}" if i < changed else f"document {i}"} for i in range(30)]
    lake.write("documents", documents)


def test_churn_is_the_share_of_the_top_ten_that_changed(spark, storage, lake):
    run(spark, storage, lake.job("old"))
    change_documents(lake, 9)
    run(spark, storage, lake.job("new", rules=AuditRules(Bounds(max_churn=1.0))))
    old, new = tops(lake, "old"), tops(lake, "new")
    expected = np.mean([len(set(new[query]) - set(old[query])) / 10 for query in new])
    assert 0 < expected < 1
    check = audit_of(lake, "new")["top-10 churn"]
    assert check["value"] == pytest.approx(expected)
    assert "12 queries" in check["detail"]


def test_a_run_like_the_last_one_has_not_moved_at_all(spark, storage, lake):
    judge_first_documents(lake, "old", spark, storage)
    still = Bounds(max_score_drift=0.0, max_score_ks=0.0, max_churn=0.0, max_ndcg_drop=0.0)
    summary = run(
        spark, storage, lake.job("new", rules=AuditRules(still, golden_qrels=str(lake.folder / "gold.parquet")))
    )
    assert summary["failed_audits"] == []


def judge_first_documents(lake, run_id: str, spark, storage) -> None:
    """A run, and judgements that like the second document of each of five lists; one query is in no table."""
    run(spark, storage, lake.job(run_id))
    liked = [row for row in lake.ranked(run_id) if row["rank"] == 2][:5]
    rows = [{"query_id": row["query_id"], "doc_id": row["doc_id"], "relevance": 1} for row in liked]
    rows.append({"query_id": "not in the lake", "doc_id": "d00", "relevance": 1})
    schema = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), lake.folder / "gold.parquet")


def test_a_run_that_finds_less_of_what_was_judged_relevant_is_held_back(spark, storage, lake):
    judge_first_documents(lake, "old", spark, storage)
    rules = AuditRules(Bounds(max_ndcg_drop=0.1), golden_qrels=str(lake.folder / "gold.parquet"))
    deep = lake.job("new", rules=rules, rule=RankRule(0.0, (0.5,), depth=1))
    summary = run(spark, storage, deep)
    assert summary["failed_audits"] == ["golden queries, drop of nDCG@10"]
    check = audit_of(lake, "new")["golden queries, drop of nDCG@10"]
    at_second = 5 / 6 / np.log2(3)
    assert check["value"] == pytest.approx(at_second), "all that was relevant stood second, and is gone"
    assert check["detail"] == f"{at_second:.4f} → 0.0000 over 6 judged queries"


def test_a_failed_audit_is_kept_where_it_can_be_read(spark, storage, lake):
    run(spark, storage, lake.job("r1"))
    lake.write("candidates", [{"query_id": "q00", "doc_id": "d00"}, {"query_id": "q00", "doc_id": "nowhere"}])
    strict = AuditRules(Bounds(max_reject_rates={"missing_document": 0.1}))
    summary = run(spark, storage, lake.job("r2", rules=strict))
    assert summary["published"] is False
    assert not (lake.folder / "out" / "runs" / "r2" / "manifest.json").exists()
    check = audit_of(lake, "r2")["reject rate, missing_document"]
    assert check == {
        "name": "reject rate, missing_document", "value": 0.5, "bound": 0.1, "passed": False, "detail": "1 of 2",
    }  # fmt: skip
    assert check in summary["audit"]


def test_who_knows_better_publishes_and_is_named(spark, storage, lake):
    lake.write("candidates", [{"query_id": "q00", "doc_id": "d00"}, {"query_id": "q00", "doc_id": "nowhere"}])
    strict = AuditRules(Bounds(max_reject_rate=0.1), override=Override("the feed was late", "ada"))
    summary = run(spark, storage, lake.job("r1", rules=strict))
    assert summary["published"] is True
    assert summary["failed_audits"] == ["reject rate"]
    manifest = json.loads((lake.folder / "out" / "runs" / "r1" / "manifest.json").read_text())
    assert manifest["published_anyway"] == {
        "reason": "the feed was late", "by": "ada", "failed_audits": ["reject rate"],
    }  # fmt: skip
    assert json.loads((lake.folder / "out" / "current.json").read_text())["run_id"] == "r1"


def test_who_knows_better_without_need_is_not_mentioned(spark, storage, lake):
    rules = replace(lake.job("r1").rules, override=Override("for safety", "ada"))
    run(spark, storage, lake.job("r1", rules=rules))
    manifest = json.loads((lake.folder / "out" / "runs" / "r1" / "manifest.json").read_text())
    assert "published_anyway" not in manifest
