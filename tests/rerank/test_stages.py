"""Several scorers in one run: cascades and ensembles on a small lake, with rerankers that cost nothing."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lakerank.audit import Bounds
from lakerank.cost import Calibration
from lakerank.errors import RunConflictError
from lakerank.lake.storage import Storage, StorageOptions
from lakerank.ranking import Fusion
from lakerank.rerank.publish import AuditRules, Override
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.run import already_published, planned_stages, run
from lakerank.rerank.stage import Stage
from lakerank.schemas import COMBINED

from .conftest import Lake

STRONG, THIRD = "5a17", "7a17"
RRF = Fusion("reciprocal_rank", (0.5, 0.5))


def later(lake, salt: str = STRONG, top: int | None = None, bias: float = 1.0) -> Stage:
    return Stage(salt, f"model {salt}", 3000, bias, lake.factory(salt), "cpu", lake.limits(), top)


def cascade(lake, run_id: str, top: int = 5, **changes):
    return lake.job(run_id, model="cheap", later=(later(lake, top=top),), **changes)


def ensemble(lake, run_id: str, fusion: Fusion = RRF, **changes):
    return lake.job(run_id, model="one", later=(later(lake),), fusion=fusion, **changes)


def alone(lake, run_id: str, salt: str = STRONG):
    """A run of the later scorer alone, as it would be without the others."""
    return lake.job(run_id, scorer=salt, factory=lake.factory(salt), rule=RankRule(1.0, (0.5,), None))


@pytest.fixture(scope="session")
def cascaded_once(runner, published_once, tmp_path_factory) -> Path:
    """The folder of the published lake with a cascade published as run r; not to be written to."""
    folder = tmp_path_factory.mktemp("cascaded")
    shutil.copytree(published_once, folder, dirs_exist_ok=True)
    assert run(runner, Storage(), cascade(Lake(folder), "r"))["published"]
    return folder


@pytest.fixture
def cascaded(tmp_path, cascaded_once) -> Lake:
    """A copy of it, to be changed at will: r1 has the cheap scorer alone, r the cascade."""
    shutil.copytree(cascaded_once, tmp_path, dirs_exist_ok=True)
    return Lake(tmp_path)


def by_query(rows: list[dict[str, object]]) -> dict[object, list[dict[str, object]]]:
    lists: dict[object, list[dict[str, object]]] = defaultdict(list)
    for row in rows:
        lists[row["query_id"]].append(row)
    return lists


def manifest_of(lake, run_id: str) -> dict:
    return json.loads((lake.folder / "out" / "runs" / run_id / "manifest.json").read_text())


def test_a_cascade_is_the_strong_ones_order_of_the_top_then_the_cheap_ones(runner, storage, cascaded):
    lake, cheap = cascaded, by_query(cascaded.ranked("r1"))
    summary = already_published(storage, cascade(lake, "r"))
    lake.write(
        "candidates",
        [{"query_id": row["query_id"], "doc_id": row["doc_id"]} for rows in cheap.values() for row in rows[:5]],
    )
    run(runner, storage, alone(lake, "strong"))
    strong = by_query(lake.ranked("strong"))
    assert pq.read_schema(next((lake.folder / "out/ranked/run_id=r").iterdir())) == COMBINED
    for query, rows in by_query(lake.ranked("r")).items():
        rest = [row for row in cheap[query] if row["doc_id"] not in {listed["doc_id"] for listed in strong[query]}]
        assert len(rows) == 20
        assert [row["doc_id"] for row in rows] == [row["doc_id"] for row in [*strong[query], *rest]]
        assert [row["rank"] for row in rows] == [*range(1, 21)]
        for row, own in zip(rows, [*strong[query], *rest], strict=True):
            messages = {name: row[name] for name in ("logit", "relevance", "label", "truncated")}
            assert messages == {name: own[name] for name in messages}, (
                "each row's score is the one that its scorer gave"
            )
        assert [row["scored_by"] for row in rows] == [[1, 2]] * 5 + [[1]] * 15
    assert (summary["candidates"], summary["scored"], summary["reused"]) == (240, 60, 180)


def test_what_a_cascade_costs_is_what_was_forecast(runner, storage, lake):
    calibration = Calibration("cpu", "float32", 1000, 50.0, 1000.0)
    planned = run(runner, storage, cascade(lake, "r", calibration=calibration), ["plan"])
    first, bound = planned["passes"]
    assert (first["new"], bound["new"], bound["at_most"]) == (240, 60, True)
    assert planned["new"] == 300
    assert planned["forecast_tokens"] == first["forecast_tokens"] + bound["forecast_tokens"]
    assert bound["forecast_tflop"] == round(2 * 3000 * bound["forecast_tokens"] / 1e12, 3)
    assert bound["forecast_device_hours"] == pytest.approx(bound["forecast_tokens"] / 50 * 3 / 3600, abs=1e-4)
    done = run(runner, storage, cascade(lake, "r", calibration=calibration))
    second = done["passes"][1]
    assert (second["candidates"], second["new"], second["pairs"]) == (60, 60, 60)
    assert second["forecast_tokens"] <= bound["forecast_tokens"]
    assert second["forecast_documents"] <= bound["forecast_documents"]
    kept = manifest_of(lake, "r")["passes"]
    assert [entry["counts"]["scored"] for entry in kept] == [240, 60]
    assert [entry["cost"] for entry in kept] == [first["forecast_tokens"], second["forecast_tokens"]]
    assert [entry["model"] for entry in kept] == [
        {"path": "cheap", "parameters": 1000, "device": "cpu"},
        {"path": f"model {STRONG}", "parameters": 3000, "device": "cpu"},
    ]
    assert [entry["scoring"]["pairs"] for entry in kept] == [240, 60]


def test_steps_one_by_one_and_several_files_give_the_same_cascade(runner, storage, cascaded):
    lake, rows = cascaded, cascaded.ranked("r")
    limits = lake.limits(rows_per_file=60, unit_tokens=37)
    second = replace(later(lake, top=5), scorer="5a18", limits=limits)
    job = lake.job("again", (second,), model="cheap", scorer="f00e", limits=limits)
    with pytest.raises(RunConflictError, match="--stage plan first"):
        run(runner, storage, job, ["score"])
    run(runner, storage, job, ["plan"])
    with pytest.raises(RunConflictError, match="--stage score first"):
        run(runner, storage, job, ["publish"])
    run(runner, storage, job, ["score"])
    assert run(runner, storage, job, ["publish"])["published"] is True
    assert len(lake.ranked_bytes("again")) == 4
    assert lake.ranked("again") == rows


class Died(Exception):
    """The driver's end, where a test wants it."""


class DyingStorage(Storage):
    """Storage whose driver dies when it first writes a file of that name."""

    def __init__(self, dies_at: str) -> None:
        super().__init__(StorageOptions())
        self._dies_at = dies_at

    def create(self, uri: str, data: bytes) -> bool:
        if uri.endswith(self._dies_at):
            raise Died(uri)
        return super().create(uri, data)

    def replace(self, uri: str, data: bytes) -> None:
        if uri.endswith(self._dies_at):
            raise Died(uri)
        super().replace(uri, data)


def test_killed_between_stages_the_rerun_has_the_same_bytes_and_scores_nothing_twice(runner, storage, cascaded):
    lake = cascaded
    second = replace(later(lake, top=5), scorer="5a18")
    job = lake.job("killed", (second,), model="cheap", scorer="f00e")
    before = {}
    for dies_at, scored in (("pass-2/plan.json", 240), ("pass-2/scoring.json", 300)):
        with pytest.raises(Died):
            run(runner, DyingStorage(dies_at), job)
        after = _unit_files(lake, "f00e", "5a18")
        assert before.items() <= after.items()
        assert sum(pq.read_metadata(path).num_rows for path in after) == scored, "no pair is in two files"
        before = after
    assert run(runner, storage, job)["pairs"] == 0
    assert lake.ranked_bytes("killed") == lake.ranked_bytes("r")
    assert _unit_files(lake, "f00e", "5a18") == before


def _unit_files(lake, *scorers: str) -> dict:
    folders = [lake.folder / "out" / "scores" / f"scorer={scorer}" for scorer in scorers]
    return {path: path.read_bytes() for folder in folders if folder.exists() for path in sorted(folder.iterdir())}


def test_a_run_keeps_to_the_cascade_it_was_planned_as(runner, storage, cascaded):
    other = cascade(cascaded, "r", top=6)
    assert len(planned_stages(storage, cascade(cascaded, "r", top=5))) == 2
    with pytest.raises(RunConflictError, match="another `top`"):
        planned_stages(storage, other)
    with pytest.raises(RunConflictError, match="was made by scorer"):
        already_published(storage, other)
    wider = run(runner, storage, cascade(cascaded, "wider", top=6))
    assert [entry["pairs"] for entry in wider["passes"]] == [0, 12], "scores stored by either are used again"


def best(docs: Iterable[str], query: str, logits: dict[tuple[str, str], float]) -> list[str]:
    """A query's documents in the order of their logits."""
    return sorted(docs, key=lambda doc: (-logits[query, doc], doc))


def test_a_third_stage_takes_the_best_of_the_second(runner, storage, published):
    cheap, strong, third = published.ranked("r1"), published.logits(STRONG), published.logits(THIRD)
    job = published.job("r", later=(later(published, STRONG, 6), later(published, THIRD, 2)))
    summary = run(runner, storage, job)
    assert [stage["candidates"] for stage in summary["passes"]] == [240, 72, 24]
    first = {query: [row["doc_id"] for row in rows] for query, rows in by_query(cheap).items()}
    for query, rows in by_query(published.ranked("r")).items():
        second = [*best(first[query][:6], query, strong), *first[query][6:]]
        assert [row["doc_id"] for row in rows] == [*best(second[:2], query, third), *second[2:]]
        assert [len(row["scored_by"]) for row in rows] == [3] * 2 + [2] * 4 + [1] * 14


def test_what_the_strong_one_cannot_score_keeps_the_cheap_ones_score_and_is_told(runner, storage, lake):
    unreadable = {f"d{i:02}" for i in range(0, 30, 3)}
    documents = [f"d{i:02}" for i in range(30)]
    lake.write("documents", [{"doc_id": d, "text": d + (STRONG if d in unreadable else "")} for d in documents])
    cheap = lake.logits()
    rules = AuditRules(Bounds(max_reject_rate=0.01), override=Override("known", "ada"))
    summary = run(runner, storage, cascade(lake, "r", audit=rules))
    assert (summary["rejected"], summary["ranked"]) == (0, 240)
    count = 0
    for query, rows in by_query(lake.ranked("r")).items():
        top = set(best((row["doc_id"] for row in rows), query, cheap)[:5])
        strong = [row for row in rows if row["scored_by"] == [1, 2]]
        assert {row["doc_id"] for row in strong} == top - unreadable
        assert rows[: len(strong)] == strong
        rest = rows[len(strong) :]
        assert [row["logit"] for row in rest] == sorted((cheap[query, row["doc_id"]] for row in rest), reverse=True)
        assert {row["doc_id"] for row in rest if row["reason"] == "input_too_long"} == top & unreadable
        count += sum(row["reason"] is not None for row in rows)
    manifest = manifest_of(lake, "r")
    assert manifest["passes"][1]["rejected"] == {"input_too_long": count}
    assert count
    check = next(check for check in manifest["audit"] if check["name"] == "reject rate of pass 2")
    assert check["value"] == count / 60
    assert summary["failed_audits"] == ["reject rate of pass 2"]


def fuse(lists: list[dict[tuple[str, str], float]], fusion: Fusion) -> dict[tuple[str, str], float]:
    """The fusion as its papers define it, pair by pair."""
    total: dict[tuple[str, str], float] = defaultdict(float)
    for scores, weight in zip(lists, fusion.weights, strict=True):
        for query in {query for query, _ in scores}:
            own = {doc: logit for (q, doc), logit in scores.items() if q == query}
            low, high = min(own.values()), max(own.values())
            for place, doc in enumerate(sorted(own, key=lambda one, o=own: (-o[one], one)), start=1):
                scaled = (own[doc] - low) / (high - low)
                total[query, doc] += 1 / (fusion.k + place) if fusion.method == "reciprocal_rank" else weight * scaled
    return total


def test_an_ensemble_fuses_stored_scores_and_scores_nothing(runner, storage, published):
    lake = published
    run(runner, storage, alone(lake, "two"))
    before = _unit_files(lake, "f00d", STRONG)
    stored = [{(row["query_id"], row["doc_id"]): row for row in lake.ranked(name)} for name in ("r1", "two")]
    for name, fusion in {
        "rrf": Fusion("reciprocal_rank", (0.5, 0.5), 5.0),
        "sum": Fusion("weighted", (0.3, 0.7)),
    }.items():
        summary = run(runner, storage, ensemble(lake, name, fusion))
        assert (summary["pairs"], summary["scored"], summary["reused"], summary["model_loads"]) == (0, 0, 240, 0)
        assert _unit_files(lake, "f00d", STRONG) == before
        expected = fuse([{pair: row["logit"] for pair, row in rows.items()} for rows in stored], fusion)
        for query, rows in by_query(lake.ranked(name)).items():
            scores = {row["doc_id"]: row["logit"] for row in rows}
            assert [row["doc_id"] for row in rows] == sorted(scores, key=lambda doc, s=scores: (-s[doc], doc))
            for row in rows:
                assert row["logit"] == pytest.approx(expected[query, row["doc_id"]], rel=1e-6, abs=1e-7)
                messages = [of[query, row["doc_id"]]["relevance"] for of in stored]
                assert row["relevance"] == pytest.approx(
                    sum(w * r for w, r in zip(fusion.weights, messages, strict=True))
                )
                assert row["label"] == (row["relevance"] >= 0.5)
                assert (row["scored_by"], row["reason"]) == ([1, 2], None)


def test_an_ensemble_is_planned_whole_before_it_is_scored(runner, storage, lake):
    run(runner, storage, ensemble(lake, "r"), ["plan"])
    (lake.folder / "out" / "runs" / "r" / "plan" / "pass-2" / "plan.json").unlink()
    with pytest.raises(RunConflictError, match="stage 2 of run 'r' has no plan yet; run --stage plan first"):
        run(runner, storage, ensemble(lake, "r"), ["score"])


def test_an_ensemble_scores_what_is_not_stored_and_counts_who_could_not(runner, storage, lake):
    documents = [{"doc_id": f"d{i:02}", "text": f"document {i}{STRONG if i == 4 else ''}"} for i in range(30)]
    documents[7]["text"] = "too much"
    lake.write("documents", documents)
    summary = run(runner, storage, ensemble(lake, "r"))
    assert [entry["pairs"] for entry in summary["passes"]] == [240, 240]
    wanting = {
        doc: sum(row["doc_id"] == doc for row in [*lake.ranked("r"), *lake.rejected("r")]) for doc in ("d04", "d07")
    }
    rejected = {(row["query_id"], row["doc_id"]): row["reason"] for row in lake.rejected("r")}
    assert {pair[1] for pair in rejected} == {"d07"}, "no scorer could"
    assert set(rejected.values()) == {"out_of_memory"}
    fours = [row for row in lake.ranked("r") if row["doc_id"] == "d04"]
    assert len(fours) == wanting["d04"]
    assert {(*row["scored_by"], row["reason"]) for row in fours} == {(1, "input_too_long")}
    assert all(row["logit"] <= 1 / 61 + 1e-9 for row in fours), "a scorer without a score adds nothing"
    assert summary["candidates"] == summary["ranked"] + summary["rejected"] == 240
    assert manifest_of(lake, "r")["passes"][1]["rejected"] == {
        "input_too_long": wanting["d04"],
        "out_of_memory": wanting["d07"],
    }
    histogram = manifest_of(lake, "r")["histogram"]
    assert sum(histogram) == summary["ranked"]
    assert sum(count > 0 for count in histogram) > 3, "relevances on the scale of logits, so that drift shows"


def test_nothing_to_rank_is_a_cascade_and_an_ensemble_too(runner, storage, lake):
    lake.write("candidates", [])
    empty = AuditRules(Bounds(allow_empty=True))
    assert run(runner, storage, cascade(lake, "c", audit=empty))["published"] is True
    assert run(runner, storage, ensemble(lake, "e", audit=empty))["published"] is True
    assert lake.ranked("c") == lake.ranked("e") == []
    assert manifest_of(lake, "e")["counts"]["candidates"] == 0
