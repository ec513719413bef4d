"""What is published and what is not: the audit against the last run and golden judgements, and overrides."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.audit import Bounds
from lakerank.rerank.publish import AuditRules, Override, rank_and_publish
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.run import planned_stages, run
from lakerank.rerank.stage import ScoredRun


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


def test_churn_is_the_share_of_the_top_ten_that_changed(runner, storage, published):
    change_documents(published, 9)
    run(runner, storage, published.job("new", audit=AuditRules(Bounds(max_churn=1.0))))
    old, new = tops(published, "r1"), tops(published, "new")
    expected = np.mean([len(set(new[query]) - set(old[query])) / 10 for query in new])
    assert 0 < expected < 1
    check = audit_of(published, "new")["top-10 churn"]
    assert check["value"] == pytest.approx(expected)
    assert "12 queries" in check["detail"]


def test_a_run_like_the_last_one_has_not_moved_at_all(runner, storage, published):
    judge_second_documents(published, "r1")
    still = Bounds(max_score_drift=0.0, max_score_ks=0.0, max_churn=0.0, max_ndcg_drop=0.0)
    rules = AuditRules(replace(still, golden_qrels=str(published.folder / "gold.parquet")))
    summary = run(runner, storage, published.job("new", audit=rules))
    assert summary["failed_audits"] == []


def judge_second_documents(lake, run_id: str) -> None:
    """Judgements that like the second document of each of five lists of a run; two queries, of no table, have a NUL."""
    liked = [row for row in lake.ranked(run_id) if row["rank"] == 2][:5]
    rows = [{"query_id": row["query_id"], "doc_id": row["doc_id"], "relevance": 1} for row in liked]
    rows += [{"query_id": f"not in\0{lake}", "doc_id": "d00", "relevance": 1} for lake in ("the lake", "a lake")]
    schema = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), lake.folder / "gold.parquet")


def test_a_run_that_finds_less_of_what_was_judged_relevant_is_held_back(runner, storage, published):
    judge_second_documents(published, "r1")
    audit = AuditRules(Bounds(max_ndcg_drop=0.1, golden_qrels=str(published.folder / "gold.parquet")))
    shallow = published.job("new", audit=audit, rule=RankRule(0.0, (0.5,), depth=1))
    summary = run(runner, storage, shallow)
    assert summary["failed_audits"] == ["golden queries, drop of nDCG@10"]
    check = audit_of(published, "new")["golden queries, drop of nDCG@10"]
    at_second = 5 / 7 / np.log2(3)
    assert check["value"] == pytest.approx(at_second), "all that was relevant stood second, and is gone"
    assert check["detail"] == f"{at_second:.4f} → 0.0000 over 7 judged queries"


def test_a_failed_audit_is_kept_where_it_can_be_read(runner, storage, published):
    published.write("candidates", [{"query_id": "q00", "doc_id": "d00"}, {"query_id": "q00", "doc_id": "nowhere"}])
    strict = AuditRules(Bounds(max_reject_rates={"missing_document": 0.1}))
    summary = run(runner, storage, published.job("r2", audit=strict))
    assert summary["published"] is False
    assert not (published.folder / "out" / "runs" / "r2" / "manifest.json").exists()
    check = audit_of(published, "r2")["reject rate, missing_document"]
    assert check == {
        "name": "reject rate, missing_document", "value": 0.5, "bound": 0.1, "passed": False, "verdict": "failed",
        "detail": "1 of 2",
    }  # fmt: skip
    assert check in summary["audit"]


def test_an_override_publishes_despite_a_failed_audit_and_is_named(runner, storage, published):
    published.write("candidates", [{"query_id": "q00", "doc_id": "d00"}, {"query_id": "q00", "doc_id": "nowhere"}])
    strict = AuditRules(Bounds(max_reject_rate=0.1), override=Override("the feed was late", "ada"))
    summary = run(runner, storage, published.job("r2", audit=strict))
    assert summary["published"] is True
    assert summary["failed_audits"] == ["reject rate"]
    manifest = json.loads((published.folder / "out" / "runs" / "r2" / "manifest.json").read_text())
    assert manifest["published_anyway"] == {
        "reason": "the feed was late", "by": "ada", "failed_audits": ["reject rate"],
    }  # fmt: skip
    assert json.loads((published.folder / "out" / "current.json").read_text())["run_id"] == "r2"


def test_an_override_without_need_is_not_mentioned(runner, storage, published):
    audit = replace(published.job("r2").audit, override=Override("for safety", "ada"))
    run(runner, storage, published.job("r2", audit=audit))
    manifest = json.loads((published.folder / "out" / "runs" / "r2" / "manifest.json").read_text())
    assert "published_anyway" not in manifest


def test_the_manifest_and_the_last_line_have_the_warnings(runner, storage, published):
    """Those that the job came with, and that all labels are alike."""
    alike = published.job("r2", rule=RankRule(0.0, (), depth=None), warnings=("another lake",))
    summary = run(runner, storage, alike)
    manifest = json.loads((published.folder / "out" / "runs" / "r2" / "manifest.json").read_text())
    assert manifest["warnings"] == summary["warnings"]
    (given, of_labels) = manifest["warnings"]
    assert given == "another lake"
    assert "ranked pairs have label 0" in of_labels


def test_lists_whose_audit_failed_stand_outside_ranked_until_they_are_published_anyway(runner, storage, published):
    published.write("candidates", [{"query_id": "q00", "doc_id": "d00"}, {"query_id": "q00", "doc_id": "nowhere"}])
    strict = AuditRules(Bounds(max_reject_rate=0.1))
    out = published.folder / "out"
    summary = run(runner, storage, published.job("r2", audit=strict))
    assert (summary["published"], summary["current"], summary["superseded_by"]) == (False, "r1", None)
    assert [path.name for path in (out / "ranked").iterdir()] == ["run_id=r1"]
    aside = pq.read_table(out / "unpublished" / "run_id=r2", partitioning=None).to_pylist()
    assert [row["doc_id"] for row in aside] == ["d00"]
    assert len(published.rejected("r2")) == 1, "why it failed stays where it is looked for"
    run(runner, storage, published.job("r2", audit=replace(strict, override=Override("known", "ada"))))
    assert published.ranked("r2") == aside
    assert not list((out / "unpublished").rglob("*.parquet"))


def test_half_an_upstream_table_is_not_published_over_a_whole_one(runner, storage, published):
    rows = pq.read_table(published.folder / "candidates.parquet").to_pylist()
    bounds = AuditRules(Bounds(max_lost_queries=0.2, max_lost_pairs=0.2))
    published.write("candidates", [row for row in rows if row["query_id"] < "q09"])
    half = run(runner, storage, published.job("half", audit=bounds))
    assert half["failed_audits"] == ["queries lost", "pairs lost"]
    found = audit_of(published, "half")
    assert (found["queries lost"]["value"], found["pairs lost"]["value"]) == (0.25, 0.25)
    published.write("candidates", [row for row in rows if row["query_id"] < "q10"])
    assert run(runner, storage, published.job("most", audit=bounds))["published"] is True


def test_another_depth_is_no_drift(runner, storage, published):
    still = AuditRules(Bounds(max_score_drift=0.0, max_score_ks=0.0, max_churn=0.0))
    for run_id, depth, top in (("cut", 5, 5), ("whole", None, 5), ("deep", 15, 10)):
        summary = run(runner, storage, published.job(run_id, audit=still, rule=RankRule(0.0, (0.5,), depth)))
        assert summary["failed_audits"] == []
        found = audit_of(published, run_id)
        assert all(found[name]["verdict"] == "passed" for name in ("score drift (PSI)", f"top-{top} churn"))


def test_a_second_driver_audits_against_the_run_before(runner, storage, published):
    """As a driver that was slower: the run is current when it comes to its audit."""
    job = published.job("r2")
    run(runner, storage, job, ["plan", "score"])
    scored = ScoredRun(job.scorer, planned_stages(storage, job), job.rule)
    rank_and_publish(runner, storage, scored, job.audit)
    _, publication = rank_and_publish(runner, storage, scored, job.audit)
    assert publication.published
    assert "run r1 ranked too" in audit_of(published, "r2")["top-10 churn"]["detail"]


def test_an_earlier_run_again_says_that_a_later_one_is_current(runner, storage, published):
    assert run(runner, storage, published.job("r2"))["published"] is True
    again = run(runner, storage, published.job("r1"))
    assert (again["published"], again["current"], again["superseded_by"]) == (False, "r2", "r2")
