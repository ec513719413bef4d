"""A cascade whose last stage scores lists: with a lister that costs nothing, whose scores depend on the whole list."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from collections import defaultdict
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.audit import Bounds
from lakerank.errors import EvaluationError
from lakerank.lake.storage import Storage
from lakerank.limits import Listwise
from lakerank.records import CandidateList, Document, Query
from lakerank.rerank.publish import AuditRules
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.run import Rerank, run
from lakerank.rerank.stage import Stage
from lakerank.runner import LocalRunner
from lakerank.schemas import QRELS
from lakerank_evaluation.position_bias import position_bias

from .conftest import HashLister, HashListFactory, Lake

LISTER = "115e"


def job(lake: Lake, run_id: str, top: int = 5, dies: str | None = None, **limits: Any):
    factory = HashListFactory(str(lake.folder / "lists.jsonl"), dies)
    limits = lake.limits(listwise=Listwise(), **limits)
    stage = Stage(LISTER, "lister", 3000, 0.0, factory, "cpu", limits, top)
    return lake.job(run_id, later=(stage,), rule=RankRule(0.0, (0.5,), None))


def with_limits(stage: Stage, **changes: Any) -> Stage:
    return replace(stage, limits=replace(stage.limits, **changes))


def given(lake: Lake) -> dict[str, list[str]]:
    """The lists that were given since the last time, by query."""
    log = lake.folder / "lists.jsonl"
    lists = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    assert len({query for query, _ in lists}) == len(lists), "no list is scored twice"
    return dict(lists)


def by_query(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    lists = defaultdict(list)
    for row in rows:
        lists[row["query_id"]].append(row)
    return dict(lists)


def test_the_head_of_each_list_is_in_the_order_of_the_lister(storage, published, caplog):
    lake, before = published, by_query(published.ranked("r1"))
    caplog.set_level(logging.INFO)
    summary = run(LocalRunner(2), storage, job(lake, "r"))
    for _ in range(2):
        run(LocalRunner(2), storage, job(lake, "again"), ["plan", "score"])
    log = "\n".join(caplog.messages)
    assert "plan: at most 60 pairs of 12 lists, 30 documents, " in log
    assert "score: 60 documents of 12 lists in " in log
    assert "score: the model read 60 tokens" in log
    assert "plan: 0 lists, 12 more reused, 0 documents, 0 tokens, " in log
    before_lists, *of_lists = log.split("stage 2 of 2: lister")
    assert "pair by pair" in before_lists
    assert not any("pair by pair" in part.partition("stage 1")[0] for part in of_lists), "they share tokens"
    lists, ranked = given(lake), by_query(lake.ranked("r"))
    assert lists == {query: [row["doc_id"] for row in rows[:5]] for query, rows in before.items()}
    for query, rows in ranked.items():
        assert [row["scored_by"] for row in rows] == [[1, 2]] * 5 + [[1]] * 15
        assert {row["doc_id"] for row in rows[:5]} == set(lists[query])
        assert [row["logit"] for row in rows[:5]] == sorted((row["logit"] for row in rows[:5]), reverse=True)
        assert [row["doc_id"] for row in rows[5:]] == [row["doc_id"] for row in before[query][5:]]
    figures = {"passes": 1, "window": None, "stride": None, "lists": 12, "scored": 12, "reused": 0}
    assert summary["passes"][1]["listwise"] == figures
    manifest = json.loads((lake.folder / "out/runs/r/manifest.json").read_text())
    assert manifest["passes"][1]["listwise"] == figures
    assert (summary["candidates"], summary["scored"], summary["passes"][1]["pairs"]) == (240, 60, 60)


@pytest.mark.parametrize("listwise", [Listwise(), Listwise(passes=3, window=4, stride=2)])
def test_no_list_costs_more_than_was_forecast(storage, lake, listwise):
    texts = [{"doc_id": f"d{i:02}", "text": f"{i} " * 17 ** (i % 4)} for i in range(30)]
    lake.write("documents", texts)
    several = job(lake, "r", top=7)
    stages = [with_limits(stage, unit_tokens=10**7) for stage in several.stages]
    several = replace(several, stages=(stages[0], with_limits(stages[1], listwise=listwise)))
    bound = run(LocalRunner(1), storage, several, ["plan"])["passes"][1]
    exact = run(LocalRunner(1), storage, several)["passes"][1]
    for name in ("new", "forecast_tokens", "forecast_tokens_pairwise", "forecast_documents"):
        assert 0 < exact[name] <= bound[name], name
    assert exact["forecast_tokens"] > listwise.passes * exact["forecast_tokens_pairwise"] / 2


def test_only_lists_that_hold_a_changed_document_are_scored_again(storage, published):
    lake = published
    run(LocalRunner(2), storage, job(lake, "r"))
    first, ranked = given(lake), by_query(lake.ranked("r"))
    texts = [{"doc_id": f"d{i:02}", "text": f"document {i}"} for i in range(30)]
    changed = first["q00"][4]
    texts[int(changed[1:])]["text"] += " anew"
    lake.write("documents", texts)
    summary = run(LocalRunner(1), storage, job(lake, "s"))
    second, after = given(lake), by_query(lake.ranked("s"))
    holders = {row["query_id"] for row in lake.ranked("r") if row["doc_id"] == changed}
    same = {query for query in first if [r["doc_id"] for r in after[query]] == [r["doc_id"] for r in ranked[query]]}
    assert 0 < len(second) < 12
    assert set(second) <= holders
    counts = summary["passes"][1]["listwise"]
    assert (counts["scored"], counts["reused"]) == (len(second), 12 - len(second))
    for query in set(first) - set(second):
        assert after[query][:5] == ranked[query][:5]
    assert summary["passes"][1]["pairs"] == 5 * len(second)
    run(LocalRunner(1), storage, job(lake, "t"))
    assert not given(lake), "nothing has changed since"
    assert lake.ranked_bytes("t") == lake.ranked_bytes("s")
    assert same


def test_contents_that_repeat_are_in_a_list_once_and_share_a_score(storage, lake):
    texts = [{"doc_id": f"d{i:02}", "text": f"document {i % 10}"} for i in range(30)]
    lake.write("documents", texts)
    lake.write("queries", [{"query_id": f"q{i:02}", "text": f"query {i % 11}"} for i in range(12)])
    both = [{"query_id": query, "doc_id": f"d{d:02}"} for query in ("q00", "q11") for d in range(20)]
    others = [{"query_id": "q03", "doc_id": f"d{d:02}"} for d in range(0, 30, 10)]
    lake.write("candidates", both + others)
    summary = run(LocalRunner(1), storage, job(lake, "r", top=9))
    lists, ranked = given(lake), by_query(lake.ranked("r"))
    assert {query: len(documents) for query, documents in lists.items()} == {"q00": 5, "q03": 1}
    assert summary["passes"][1]["listwise"]["lists"] == 2
    assert (summary["passes"][1]["pairs"], summary["passes"][1]["reused"]) == (6, 15)
    for rows in ranked.values():
        scores = defaultdict(set)
        for row in rows:
            scores[int(row["doc_id"][1:]) % 10, len(row["scored_by"])].add(row["logit"])
        assert all(len(logits) == 1 for logits in scores.values())
    assert [row["logit"] for row in ranked["q00"]] == [row["logit"] for row in ranked["q11"]]
    run(LocalRunner(1), storage, job(lake, "s", top=9))
    assert not given(lake)
    assert lake.ranked_bytes("s") == lake.ranked_bytes("r")


def test_a_document_that_cannot_be_read_leaves_its_list(storage, lake):
    texts = [{"doc_id": f"d{i:02}", "text": f"document {i}"} for i in range(30)]
    for number, text in ((3, "unreadable"), (4, "unreadable for now"), (29, "unreadable too")):
        texts[number]["text"] = text
    lake.write("documents", texts)
    pairs = [("q00", d) for d in range(10)] + [("q01", 29)] + [("q02", 5)]
    lake.write("candidates", [{"query_id": query, "doc_id": f"d{d:02}"} for query, d in pairs])
    bounds = AuditRules(Bounds(max_reject_rate=None))
    run(LocalRunner(1), storage, replace(job(lake, "r", top=300), audit=bounds))
    given(lake)
    ranked = by_query(lake.ranked("r"))
    assert [row["scored_by"] for row in ranked["q00"]] == [[1, 2]] * 8 + [[1]] * 2
    reasons = {row["doc_id"]: row["reason"] for row in lake.ranked("r") if row["reason"]}
    assert reasons == {"d03": "input_too_long", "d04": "out_of_memory", "d29": "input_too_long"}
    assert [row["doc_id"] for row in ranked["q02"]] == ["d05"]
    for again in ("s", "t", "u", "v"):
        summary = run(LocalRunner(1), storage, replace(job(lake, again, top=300), audit=bounds))
        assert set(given(lake)) == {"q00"}, "a reject that may not last has its list scored again"
        assert summary["passes"][1]["listwise"]["reused"] == 2
        assert lake.ranked_bytes(again) == lake.ranked_bytes("r")


def _run(job: Rerank) -> None:
    run(LocalRunner(1), Storage(), job)


def test_a_run_that_is_killed_in_its_lister_resumes_and_a_list_that_kills_again_is_rejected(storage, published):
    lake, killed_once, whole = published, published.folder.parent / "killed", Lake(published.folder.parent / "whole")
    shutil.copytree(lake.folder, whole.folder)
    run(LocalRunner(1), storage, job(whole, "r", unit_tokens=200))
    for _ in range(2):
        process = get_context("fork").Process(target=_run, args=(job(lake, "r", dies="query 5", unit_tokens=200),))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        if not killed_once.exists():
            shutil.copytree(lake.folder, killed_once)
    units = lake.unit_files(LISTER)
    assert 0 < len(units) < len(whole.unit_files(LISTER))

    (lake.folder / "lists.jsonl").unlink()
    run(LocalRunner(1), storage, job(lake, "r", dies="query 5", unit_tokens=200))
    assert "q05" not in given(lake)
    ranked, expected = by_query(lake.ranked("r")), by_query(whole.ranked("r"))
    rejected = ranked.pop("q05")
    assert {(row["reason"], *row["scored_by"]) for row in rejected[:5]} == {("out_of_memory", 1)}
    del expected["q05"]
    assert ranked == expected

    shutil.rmtree(lake.folder)
    shutil.copytree(killed_once, lake.folder)
    summary = run(LocalRunner(1), storage, job(lake, "r", unit_tokens=200))
    assert summary["passes"][1]["found"] == len(units)
    assert lake.ranked_bytes("r") == whole.ranked_bytes("r")


def test_position_bias_is_measured_on_new_lists_and_reused_ones(storage, published, tmp_path):
    lake = published
    qrels = [{"query_id": "q01", "doc_id": row["doc_id"], "relevance": 1} for row in lake.ranked("r1")[20:21]]
    pq.write_table(pa.Table.from_pylist(qrels, QRELS), tmp_path / "qrels.parquet")
    run(LocalRunner(1), storage, job(lake, "r"))
    given(lake)
    lake.write("documents", [{"doc_id": f"d{i:02}", "text": f"document {i}{' ' * (i == 7)}"} for i in range(30)])
    summary = run(LocalRunner(1), storage, job(lake, "s"))
    assert summary["passes"][1]["listwise"]["reused"] > 0 < summary["passes"][1]["listwise"]["scored"]
    (lake.folder / "lists.jsonl").unlink()
    bias = position_bias(storage, job(lake, "s"), str(tmp_path / "qrels.parquet"), 100)
    lists = [json.loads(line) for line in (lake.folder / "lists.jsonl").read_text().splitlines()]
    orders = lists[:12], lists[12:24], lists[24:]
    ranked = by_query(lake.ranked("s"))
    assert {query: {*ids} for query, ids in orders[0]} == {
        query: {row["doc_id"] for row in rows[:5]} for query, rows in ranked.items()
    }
    assert [[query, ids[::-1]] for query, ids in orders[0]] == orders[1]
    assert [[query, sorted(ids)] for query, ids in orders[0]] == [[query, sorted(ids)] for query, ids in orders[2]]
    assert [ids for _, ids in orders[2]] != [ids for _, ids in orders[0]]
    assert (bias["sampled"], bias["lists"], bias["judged"]) == (12, 12, 1)
    top = {query: [row["doc_id"] for row in rows[:5]] for query, rows in ranked.items()}
    rank = {order: expected(lake, lists) for order, lists in zip(("given", "reversed"), orders, strict=False)}
    assert rank["given"] == top, "the same lists give the run's own order"
    moves = [abs(i - rank["reversed"][q].index(d)) for q in top for i, d in enumerate(top[q])]
    assert bias["reversed"]["displacement"] == pytest.approx(sum(moves) / 60)
    signs = [
        1 if rank["reversed"][q].index(a) < rank["reversed"][q].index(b) else -1
        for q in top
        for i, a in enumerate(top[q])
        for b in top[q][i + 1 :]
    ]
    assert bias["reversed"]["kendall_tau"] == pytest.approx(sum(signs) / 120)
    assert bias["reversed"]["overlap@10"] == 1
    few = position_bias(storage, job(lake, "s"), str(tmp_path / "qrels.parquet"), 4)
    assert few["lists"] == 4
    with pytest.raises(EvaluationError, match="no stage that scores lists"):
        position_bias(storage, lake.job("r1"), str(tmp_path / "qrels.parquet"), 4)


def expected(lake: Lake, lists: list[tuple[str, list[str]]]) -> dict[str, list[str]]:
    """What the lister makes of lists, by query."""
    texts = {row["doc_id"]: row["text"] for row in pq.read_table(lake.folder / "documents.parquet").to_pylist()}
    queries = [Query(query, f"query {int(query[1:])}") for query, _ in lists]
    documents = [tuple(Document(doc_id, texts[doc_id]) for doc_id in ids) for _, ids in lists]
    results = HashLister().score_lists(map(CandidateList, queries, documents))
    ranked = defaultdict(list)
    for pair in sorted(results, key=lambda pair: (-pair.logit, pair.doc_id)):
        ranked[pair.query_id].append(pair.doc_id)
    return dict(ranked)
