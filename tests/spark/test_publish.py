"""What is published and what is not: the audit against the last run and golden judgements, and overrides."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.audit import Bounds
from lakerank.rerank.rank.write import RankRule
from lakerank.spark.publish import AuditRules, Override
from lakerank.spark.run import run

pytestmark = pytest.mark.spark


def audit_of(lake, run_id: str) -> dict[str, dict[str, object]]:
    report = json.loads((lake.folder / "out" / "runs" / run_id / "audit.json").read_text())
    return {check["name"]: check for check in report["checks"]}


def tops(lake, run_id: str) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for row in lake.ranked(run_id):
        if row["rank"] <= 10:
            result.setdefault(row["query_id"], []).append(row["doc_id"])
    return result


def change_documents(lake, changed: int) -> None:
    """New texts for the first documents: HashReranker gives them new logits."""
    documents = [{"doc_id": f"d{i:02}", "text": f"other {i}" if i < changed else f"document {i}"} for i in range(30)]
    lake.write("documents", documents)


def test_churn_is_the_share_of_the_top_ten_that_changed(spark, storage, published):
    change_documents(published, 9)
    run(spark, storage, published.job("new", audit=AuditRules(Bounds(max_churn=1.0))))
    old, new = tops(published, "r1"), tops(published, "new")
    expected = np.mean([len(set(new[query]) - set(old[query])) / 10 for query in new])
    assert 0 < expected < 1
    check = audit_of(published, "new")["top-10 churn"]
    assert check["value"] == pytest.approx(expected)
    assert "12 queries" in check["detail"]


def test_a_run_like_the_last_one_has_not_moved_at_all(spark, storage, published):
    judge_second_documents(published, "r1")
    still = Bounds(max_score_drift=0.0, max_score_ks=0.0, max_churn=0.0, max_ndcg_drop=0.0)
    rules = AuditRules(still, golden_qrels=str(published.folder / "gold.parquet"))
    summary = run(spark, storage, published.job("new", audit=rules))
    assert summary["failed_audits"] == []


def judge_second_documents(lake, run_id: str) -> None:
    """Judgements that like the second document of each of five lists of a run; one query is in no table."""
    liked = [row for row in lake.ranked(run_id) if row["rank"] == 2][:5]
    rows = [{"query_id": row["query_id"], "doc_id": row["doc_id"], "relevance": 1} for row in liked]
    rows.append({"query_id": "not in the lake", "doc_id": "d00", "relevance": 1})
    schema = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), lake.folder / "gold.parquet")


def test_a_run_that_finds_less_of_what_was_judged_relevant_is_held_back(spark, storage, published):
    judge_second_documents(published, "r1")
    audit = AuditRules(Bounds(max_ndcg_drop=0.1), golden_qrels=str(published.folder / "gold.parquet"))
    shallow = published.job("new", audit=audit, rule=RankRule(0.0, (0.5,), depth=1))
    summary = run(spark, storage, shallow)
    assert summary["failed_audits"] == ["golden queries, drop of nDCG@10"]
    check = audit_of(published, "new")["golden queries, drop of nDCG@10"]
    at_second = 5 / 6 / np.log2(3)
    assert check["value"] == pytest.approx(at_second), "all that was relevant stood second, and is gone"
    assert check["detail"] == f"{at_second:.4f} → 0.0000 over 6 judged queries"


def test_a_failed_audit_is_kept_where_it_can_be_read(spark, storage, published):
    published.write("candidates", [{"query_id": "q00", "doc_id": "d00"}, {"query_id": "q00", "doc_id": "nowhere"}])
    strict = AuditRules(Bounds(max_reject_rates={"missing_document": 0.1}))
    summary = run(spark, storage, published.job("r2", audit=strict))
    assert summary["published"] is False
    assert not (published.folder / "out" / "runs" / "r2" / "manifest.json").exists()
    check = audit_of(published, "r2")["reject rate, missing_document"]
    assert check == {
        "name": "reject rate, missing_document", "value": 0.5, "bound": 0.1, "passed": False, "detail": "1 of 2",
    }  # fmt: skip
    assert check in summary["audit"]


def test_an_override_publishes_despite_a_failed_audit_and_is_named(spark, storage, published):
    published.write("candidates", [{"query_id": "q00", "doc_id": "d00"}, {"query_id": "q00", "doc_id": "nowhere"}])
    strict = AuditRules(Bounds(max_reject_rate=0.1), override=Override("the feed was late", "ada"))
    summary = run(spark, storage, published.job("r2", audit=strict))
    assert summary["published"] is True
    assert summary["failed_audits"] == ["reject rate"]
    manifest = json.loads((published.folder / "out" / "runs" / "r2" / "manifest.json").read_text())
    assert manifest["published_anyway"] == {
        "reason": "the feed was late", "by": "ada", "failed_audits": ["reject rate"],
    }  # fmt: skip
    assert json.loads((published.folder / "out" / "current.json").read_text())["run_id"] == "r2"


def test_an_override_without_need_is_not_mentioned(spark, storage, published):
    audit = replace(published.job("r2").audit, override=Override("for safety", "ada"))
    run(spark, storage, published.job("r2", audit=audit))
    manifest = json.loads((published.folder / "out" / "runs" / "r2" / "manifest.json").read_text())
    assert "published_anyway" not in manifest


def test_the_manifest_and_the_last_line_have_the_warnings(spark, storage, published):
    """Those that the job came with, and that all labels are alike."""
    alike = published.job("r2", rule=RankRule(0.0, (), depth=None), warnings=("another lake",))
    summary = run(spark, storage, alike)
    manifest = json.loads((published.folder / "out" / "runs" / "r2" / "manifest.json").read_text())
    assert manifest["warnings"] == summary["warnings"]
    (given, of_labels) = manifest["warnings"]
    assert given == "another lake"
    assert "ranked pairs have label 0" in of_labels
