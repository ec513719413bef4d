"""The whole job on a small lake with a reranker that costs nothing: what comes out, and what a second run does."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lakerank.audit import Bounds
from lakerank.cli.resolve import rerank_job
from lakerank.config import load_config
from lakerank.cost import VISUAL_TOKEN_SIDE, Calibration, Sizing
from lakerank.errors import RunConflictError, SchemaError
from lakerank.rerank.publish import AuditRules
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.run import already_published, planned_stages, run
from lakerank.runner import LocalRunner

ROOT = Path(__file__).parents[2]


def test_every_candidate_is_ranked_and_sorted(storage, published):
    summary = already_published(storage, published.job("r1"))
    ranked = published.ranked("r1")
    assert summary["candidates"] == summary["scored"] == len(ranked) == 240
    assert summary["rejected"] == summary["reused"] == 0
    assert summary["published"] is True
    keys = [(row["query_id"], -row["logit"], row["doc_id"]) for row in ranked]
    assert keys == sorted(keys)
    assert [row["rank"] for row in ranked] == [*range(1, 21)] * 12
    assert json.loads((published.folder / "out" / "current.json").read_text())["run_id"] == "r1"


def test_the_same_bytes_whatever_the_partitioning(storage, published):
    first = published.ranked_bytes("r1")
    limits = published.limits(unit_tokens=37, max_queries_per_group=1, task_pairs=16)
    run(LocalRunner(parallelism=8), storage, published.job("r2", scorer="f00e", limits=limits))
    assert published.ranked_bytes("r2") == first


@pytest.mark.parametrize(("device", "tokens"), [("cuda", 8_000_000), ("cpu", 2_000_000)])
def test_units_are_larger_where_a_plan_is_made_with_gpus_at_hand(storage, lake, device, tokens):
    config = load_config(ROOT / "conf" / "demo.yaml", [f"model.device={device}", "scoring.unit_tokens=auto"])
    (stage,) = rerank_job(config, "r", storage).stages
    page = Sizing(300_000 * VISUAL_TOKEN_SIDE**2, 300_000 * VISUAL_TOKEN_SIDE**2, 100)  # a million tokens
    image = io.BytesIO()
    Image.new("1", (1, 1)).save(image, "PNG")
    pages = [{"doc_id": f"d{i:02}", "text": f"document {i}", "image": image.getvalue()} for i in range(30)]
    lake.write("documents", pages)
    job = lake.job("r", limits=replace(stage.limits, document=page))
    run(LocalRunner(1), storage, job, ["plan"])
    (planned,) = planned_stages(storage, job)
    assert planned.plan.cost > 30_000_000
    assert sum(planned.plan.unit_counts) == round(planned.plan.cost / tokens)
    assert tokens / 2 < planned.plan.largest_unit < tokens * 1.6


def test_ranked_files_are_cut_between_queries(runner, storage, published):
    run(runner, storage, published.job("r2", limits=published.limits(rows_per_file=60)))
    folder = published.folder / "out" / "ranked" / "run_id=r2"
    files = [pq.read_table(path)["query_id"].to_pylist() for path in sorted(folder.iterdir())]
    assert len(files) == 4
    assert all(files)
    assert [q for file in files for q in file] == sorted(q for file in files for q in file)
    assert sum(len(set(file)) for file in files) == 12


def test_a_second_run_scores_only_what_is_new(runner, storage, published):
    documents = [{"doc_id": f"d{i:02}", "text": "changed" if i == 3 else f"document {i}"} for i in range(31)]
    published.write("documents", documents)
    summary = run(runner, storage, published.job("r2"))
    changed = sum(row["doc_id"] == "d03" for row in published.ranked("r1"))
    assert summary["scored"] == changed
    assert summary["reused"] == 240 - changed
    assert len(published.ranked("r2")) == 240


def test_a_published_run_is_left_as_it_is(runner, storage, published):
    before = published.ranked_bytes("r1")
    published.write("candidates", [{"query_id": "q00", "doc_id": "d00"}])
    again = run(runner, storage, published.job("r1"))
    assert again["published"] is True
    assert again["candidates"] == 240
    assert published.ranked_bytes("r1") == before


def test_steps_one_by_one_write_what_one_driver_does(runner, storage, published):
    expected, job = published.ranked_bytes("r1"), published.job("r2", scorer="f00e")
    planned = run(runner, storage, job, ["plan"])
    assert planned["new"] == 240
    assert planned["published"] is False
    run(runner, storage, job, ["score"])
    assert run(runner, storage, job, ["publish"])["published"] is True
    assert published.ranked_bytes("r2") == expected


def test_scoring_before_planning_says_so(storage, lake):
    with pytest.raises(RunConflictError, match="--stage plan first"):
        planned_stages(storage, lake.job("r1"))


def test_a_run_id_keeps_to_what_it_was_planned_from(runner, storage, lake):
    planned_stages(storage, lake.job("r1"), runner)
    other = lake.job("r1", scorer="f00e")
    with pytest.raises(RunConflictError, match="another --run-id"):
        planned_stages(storage, other, runner)
    with pytest.raises(RunConflictError, match="planned for scorer f00d"):
        planned_stages(storage, other)


def test_a_torn_unit_is_scored_again_and_no_other(runner, storage, lake):
    run(runner, storage, lake.job("r1"), ["plan", "score"])
    before = lake.unit_files()
    assert len(before) > 3
    corrupt = lake.folder / "out" / "scores" / "scorer=f00d" / min(before)
    corrupt.write_bytes(corrupt.read_bytes()[:100])
    summary = run(runner, storage, lake.job("r1"))
    assert summary["found"] == len(before) - 1
    assert summary["pairs"] == pq.read_metadata(corrupt).num_rows < summary["scored"] == 240
    assert lake.unit_files() == before
    assert summary["published"] is True


def test_gpus_of_several_models_are_named_and_warned_of(runner, storage, lake, caplog):
    """Of a run whose second attempt, after one file was lost, had another machine."""
    for gpu in ("NVIDIA H100", "NVIDIA L4"):
        job = lake.job("r1", factory=replace(lake.factory(""), gpu=gpu))
        run(runner, storage, job, ["plan", "score"])
        if gpu == "NVIDIA H100":
            (lake.folder / "out" / "scores" / "scorer=f00d" / min(lake.unit_files())).unlink()
    run(runner, storage, job)
    manifest = json.loads((lake.folder / "out" / "runs" / "r1" / "manifest.json").read_text())
    assert manifest["scoring"]["gpus"] == ["NVIDIA H100", "NVIDIA L4"]
    (warning,) = (text for text in manifest["warnings"] if "NVIDIA H100, NVIDIA L4" in text)
    assert "give --stage score its GPUs alone, and score again into another lake.output" in warning
    assert warning in caplog.messages


def test_each_bad_row_is_rejected_and_the_rest_ranked_as_without_it(runner, storage, published):
    clean = published.ranked("r1")
    documents = [{"doc_id": f"d{i:02}", "text": f"document {i}"} for i in range(30)]
    documents += [{"doc_id": "blank", "text": " \n"}, {"doc_id": "twice", "text": "one"}]
    documents += [
        {"doc_id": "twice", "text": "other"},
        {"doc_id": "same", "text": "s"},
        {"doc_id": "same", "text": "s"},
    ]
    published.write("documents", documents)
    queries = [{"query_id": f"q{i:02}", "text": f"query {i}"} for i in range(12)]
    published.write("queries", [*queries, {"query_id": "void"}])
    candidates = pq.read_table(published.folder / "candidates.parquet").to_pylist()
    bad = [("q00", "blank"), ("q00", "nowhere"), ("q00", "twice"), ("void", "d00"), ("who", "d00"), (None, "d00")]
    same = {"query_id": "q01", "doc_id": "same"}
    published.write("candidates", [*candidates, same, same, *({"query_id": q, "doc_id": d} for q, d in bad)])
    summary = run(runner, storage, published.job("dirty"))
    reasons = {(row["query_id"], row["doc_id"]): row["reason"] for row in published.rejected("dirty")}
    assert reasons == {
        ("q00", "blank"): "empty_document",
        ("q00", "nowhere"): "missing_document",
        ("q00", "twice"): "duplicate_document_id",
        ("void", "d00"): "empty_query",
        ("who", "d00"): "missing_query",
        (None, "d00"): "missing_query",
    }
    ranked = [row for row in published.ranked("dirty") if row["doc_id"] != "same"]
    assert [{**row, "rank": 0} for row in ranked] == [{**row, "rank": 0} for row in clean]
    assert summary["candidates"] == summary["scored"] + summary["reused"] + summary["rejected"] == 247
    assert summary["duplicates"] == 1


def test_text_that_is_not_utf8_is_rejected(runner, storage, lake):
    raw = pa.array([b"fine", b"\xff\xfe broken"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"doc_id": ["d1", "d2"], "text": text}), lake.folder / "documents.parquet")
    lake.write("candidates", [{"query_id": "q00", "doc_id": "d1"}, {"query_id": "q00", "doc_id": "d2"}])
    run(runner, storage, lake.job("r1"))
    assert [(row["doc_id"], row["reason"]) for row in lake.rejected("r1")] == [("d2", "text_undecodable")]
    assert [row["doc_id"] for row in lake.ranked("r1")] == ["d1"]


def test_what_the_machine_could_not_do_is_tried_again_by_every_run(runner, storage, lake):
    lake.write("documents", [{"doc_id": "d00", "text": "too much"}, {"doc_id": "d01", "text": "long"}])
    lake.write("candidates", [{"query_id": "q00", "doc_id": "d00"}, {"query_id": "q00", "doc_id": "d01"}])
    first = run(runner, storage, lake.job("r1"))
    assert first["rejected_by_reason"] == {"out_of_memory": 1}
    assert first["truncated"] == 1
    for later in ("r2", "r3", "r4", "r5"):
        summary = run(runner, storage, lake.job(later))
        assert summary["reused"] == 1
        assert (summary["found"], summary["pairs"]) == (0, 1), "the pair got a new unit name"


def test_depth_keeps_the_best_and_counts_the_rest(runner, storage, published):
    summary = run(runner, storage, published.job("r2", rule=RankRule(0.0, (0.5,), depth=5)))
    assert max(row["rank"] for row in published.ranked("r2")) == 5
    assert summary["ranked"] == 60
    assert summary["beyond_depth"] == 180
    assert summary["published"] is True


def test_a_failed_audit_leaves_the_last_run_published(runner, storage, published):
    published.write("candidates", [{"query_id": "q00", "doc_id": "d00"}, {"query_id": "q00", "doc_id": "nowhere"}])
    strict = AuditRules(Bounds(max_reject_rate=0.1))
    summary = run(runner, storage, published.job("r2", audit=strict))
    assert summary["published"] is False
    assert summary["failed_audits"] == ["reject rate"]
    assert json.loads((published.folder / "out" / "current.json").read_text())["run_id"] == "r1"
    looser = published.job("r2", config_yaml="audit: {}\n")
    assert run(runner, storage, looser)["published"] is True, "looser bounds, same run"
    assert (published.folder / "out" / "runs" / "r2" / "config.yaml").read_text().startswith("audit: {}\n")


def test_a_missing_column_stops_the_job(runner, storage, lake):
    table = pq.read_table(lake.folder / "documents.parquet").rename_columns({"doc_id": "id"})
    pq.write_table(table, lake.folder / "documents.parquet")
    with pytest.raises(SchemaError, match=r"documents\.parquet.*doc_id"):
        run(runner, storage, lake.job("r1"))


def test_nothing_to_rank_is_published_only_where_the_config_says_so(runner, storage, lake):
    lake.write("candidates", [])
    summary = run(runner, storage, lake.job("r1"))
    assert (summary["published"], summary["failed_audits"]) == (False, ["nothing ranked"])
    assert not (lake.folder / "out" / "current.json").exists()
    summary = run(runner, storage, lake.job("r1", audit=AuditRules(Bounds(allow_empty=True))))
    assert summary["published"] is True
    assert lake.ranked("r1") == lake.rejected("r1") == []


def test_a_run_that_cannot_start_leaves_nothing(runner, storage, lake):
    table = pq.read_table(lake.folder / "queries.parquet").rename_columns({"query_id": "id"})
    pq.write_table(table, lake.folder / "queries.parquet")
    for steps, error in ((["plan"], SchemaError), (["score"], RunConflictError), (["publish"], RunConflictError)):
        with pytest.raises(error):
            run(runner, storage, lake.job("typo"), steps)
    assert not (lake.folder / "out").exists()


def test_publishing_before_scoring_says_how_much_is_missing(runner, storage, lake):
    job = lake.job("p1")
    planned = run(runner, storage, job, ["plan"])
    number = planned["units"]
    with pytest.raises(RunConflictError, match=rf"run p1 has {number} of {number} units without scores: run --stage"):
        run(runner, storage, job, ["publish"])
    run(runner, storage, job, ["score"])
    min((lake.folder / "out" / "scores" / "scorer=f00d").iterdir()).unlink()
    with pytest.raises(RunConflictError, match=rf"run p1 has 1 of {number} units without scores"):
        run(runner, storage, job, ["publish"])


def test_golden_pairs_hold_the_scores_in_place(runner, storage, published):
    row = published.ranked("r1")[0]
    golden = {"query_id": [row["query_id"]], "doc_id": [row["doc_id"]], "logit": [row["logit"]]}
    pq.write_table(pa.table(golden), published.folder / "golden.parquet")
    audit = AuditRules(Bounds(golden_pairs=str(published.folder / "golden.parquet")))
    assert run(runner, storage, published.job("r2", audit=audit))["published"] is True
    pq.write_table(pa.table(golden | {"logit": [row["logit"] + 0.1]}), published.folder / "golden.parquet")
    assert run(runner, storage, published.job("r3", audit=audit))["failed_audits"] == [
        "golden pairs, |logit - expected|"
    ]


@pytest.mark.parametrize("pairs_a_task", [(None, 16), (16, 50)])
def test_the_next_night_scores_exactly_what_changed_and_says_what_was_dropped(runner, storage, published, pairs_a_task):
    if pairs_a_task[0]:
        limits = published.limits(task_pairs=pairs_a_task[0])
        run(runner, storage, published.job("parts", limits=limits))
    limits = published.limits(task_pairs=pairs_a_task[1])
    before = {(row["query_id"], row["doc_id"]) for row in published.ranked("r1")}
    # A changed document, a renamed one (its content is known), a removed query, new pairs, one of them listed twice.
    published.write(
        "documents",
        [{"doc_id": f"d{i:02}", "text": "changed" if i == 3 else f"document {i}"} for i in range(30) if i != 5]
        + [{"doc_id": "renamed", "text": "document 5"}, {"doc_id": "new", "text": "new"}],
    )
    published.write("queries", [{"query_id": f"q{i:02}", "text": f"query {i}"} for i in range(11)])
    kept = {(q, "renamed" if d == "d05" else d) for q, d in before if q != "q11"}
    new = {("q00", "new"), ("q01", "new")} | ({("q02", "d00"), ("q02", "d29")} - kept)
    listed = [*sorted(kept), *sorted(new), ("q00", "new")]
    published.write("candidates", [{"query_id": q, "doc_id": d} for q, d in listed], row_group_rows=1000)
    summary = run(runner, storage, published.job("r2", limits=limits))
    changed = {pair for pair in kept if pair[1] == "d03"}
    assert summary["scored"] == summary["pairs"] == len(changed | new)
    assert summary["reused"] == len(kept - changed)
    assert summary["duplicates"] == 1
    gone = {pair for pair in before if pair[0] == "q11" or pair[1] == "d05"}
    assert summary["dropped"] == len(gone)
    assert {(row["query_id"], row["doc_id"]) for row in published.ranked("r2")} == kept | new
    third = run(runner, storage, published.job("r3", limits=limits))
    assert (third["scored"], third["dropped"], third["reused"]) == (0, 0, len(kept | new))
    assert published.ranked_bytes("r3") == published.ranked_bytes("r2")


def test_the_plan_forecasts_what_scoring_takes(runner, storage, lake):
    calibration = Calibration("cpu", "float32", 1000, 50.0, 1000.0)
    planned = run(runner, storage, lake.job("r1", calibration=calibration), ["plan"])
    assert planned["forecast_documents"] == 30
    assert planned["forecast_fetch_bytes"] == sum(len(f"document {i}") for i in range(30))
    assert planned["forecast_read_amplification"] == 1.0
    assert planned["forecast_patches"] == 0
    assert planned["forecast_tflop"] == round(2 * 1000 * planned["forecast_tokens"] / 1e12, 3)
    assert planned["forecast_device_hours"] == pytest.approx(planned["forecast_tokens"] / 50 / 3600, abs=1e-4)
    assert 1.0 <= planned["largest_unit_over_mean"] < 1.6
    lake.write("candidates", [{"query_id": "q00", "doc_id": "d00"}, {"query_id": "q05", "doc_id": "d00"}])
    sparse = run(runner, storage, lake.job("r2", scorer="f00e"), ["plan"])
    assert sparse["forecast_read_amplification"] == 4.0, "one document of a row group of four like it"
