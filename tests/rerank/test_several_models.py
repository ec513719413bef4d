"""conf/cascade.yaml and conf/ensemble.yaml on a few queries of the bundled lake: reranked, evaluated, cleaned."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click import Command
from click.testing import CliRunner

from checkpoints.listwise import write_jina_v3, write_lister
from lakerank import Document, Query, load_reranker
from lakerank.cli.resolve import rerank_job
from lakerank.cli.runs import clean
from lakerank.config import load_config
from lakerank.errors import ConfigError
from lakerank.lake.storage import Storage
from lakerank.rerank.run import run
from lakerank.runner import Runner
from lakerank_evaluation.cli import evaluate

ROOT = Path(__file__).parents[2]
LAKE = ROOT / "lib" / "lakerank" / "ingest" / "demo_lake"
QUERIES, TOP = 5, 10


def settings(folder: Path) -> list[str]:
    """The bundled lake's tables, with candidates of a few queries."""
    tables = {name: LAKE / f"{name}.parquet" for name in ("documents", "queries", "qrels")}
    tables |= {"candidates": folder / "candidates.parquet", "output": folder / "out"}
    return [f"lake.{name}={address}" for name, address in tables.items()]


def rerank(runner: Runner, name: str, folder: Path) -> dict[str, Any]:
    """Summary of a run named after its config."""
    config = load_config(ROOT / "conf" / f"{name}.yaml", settings(folder))
    return run(runner, Storage(), rerank_job(config, name, Storage()))


def invoke(command: Command, config: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """A command's last line."""
    words = [word for setting in settings(folder) for word in ("--set", setting)]
    result = CliRunner().invoke(command, ["--config", str(ROOT / "conf" / config), *words, *arguments])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    candidates = pq.read_table(LAKE / "candidates.parquet")
    few = pc.unique(candidates["query_id"])[:QUERIES]
    pq.write_table(candidates.filter(pc.is_in(candidates["query_id"], few)), folder / "candidates.parquet")
    return folder


@pytest.fixture(scope="module")
def cascade(runner: Runner, folder: Path) -> dict[str, Any]:
    """Summary of the cascade's run, and what it logged."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logger = logging.getLogger("lakerank")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        summary = rerank(runner, "cascade", folder)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return summary | {"log": log.getvalue()}


def ranked(folder: Path, run_id: str) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / "out" / "ranked" / f"run_id={run_id}", partitioning=None).to_pylist())


@pytest.mark.parametrize(
    "model",
    [
        "{ensemble: [{path: embedded}, {path: embedded}], fusion: reciprocal_rank}",
        "[{path: embedded}, {path: embedded, top: 3}]",
    ],
)
def test_a_reranker_beside_itself_is_refused(model):
    with pytest.raises(ConfigError, match="embedded is named twice"):
        rerank_job(load_config(ROOT / "conf" / "demo.yaml", [f"model={model}"]), "r", Storage())


def test_the_top_of_a_cascade_is_as_the_strong_one_alone_would_have_it(folder, cascade):
    first, second = cascade["passes"]
    assert cascade["published"] is True
    assert (first["pairs"], second["pairs"]) == (cascade["candidates"], QUERIES * TOP)
    assert second["tokens_computed"] > 0
    assert "stage 2 of 2: embedded, top 10 of each query" in cascade["log"]
    rows = [row for row in ranked(folder, "cascade") if row["scored_by"] == [1, 2]]
    assert [row["rank"] for row in rows] == [*range(1, TOP + 1)] * QUERIES
    tables = {name: pq.read_table(LAKE / f"{name}.parquet").to_pylist() for name in ("documents", "queries")}
    documents = {row["doc_id"]: Document(row["doc_id"], row["text"], row["image"]) for row in tables["documents"]}
    queries = {row["query_id"]: Query(row["query_id"], row["text"], row["image"]) for row in tables["queries"]}
    strong = load_reranker("embedded", device="cpu", dtype="float32")
    logits = strong.score([(queries[row["query_id"]], documents[row["doc_id"]]) for row in rows])
    assert [row["logit"] for row in rows] == pytest.approx(logits.tolist(), abs=1e-4)
    own = [(row["query_id"], -row["logit"], row["doc_id"]) for row in rows]
    assert own == sorted(own)


def test_an_ensemble_of_stored_scores_scores_what_is_missing_alone(runner, folder, cascade):
    summary = rerank(runner, "ensemble", folder)
    exact, short = summary["passes"]
    assert (short["pairs"], short["reused"]) == (0, cascade["candidates"]), "the cascade's first pass scored them all"
    assert (exact["pairs"], exact["reused"]) == (cascade["candidates"] - QUERIES * TOP, QUERIES * TOP)
    rows = ranked(folder, "ensemble")
    assert len(rows) == cascade["candidates"]
    assert {tuple(row["scored_by"]) for row in rows} == {(1, 2)}
    keys = [(row["query_id"], -row["logit"], row["doc_id"]) for row in rows]
    assert keys == sorted(keys)
    assert max(row["logit"] for row in rows) == pytest.approx(2 / 61)


def test_a_cascade_is_judged_and_kept_like_any_run(folder, cascade):
    assert invoke(evaluate, "cascade.yaml", folder, "--run-id", "cascade")["reranked"]
    report = (folder / "out" / "runs" / "cascade" / "report.html").read_text()
    assert "embedded; 50 pairs, the best 10 a query; 50 scored in this run" in report
    cleaned = invoke(clean, "cascade.yaml", folder)
    assert cleaned["listed"] == {"files": 0, "bytes": 0}
    assert "cascade" in cleaned["kept_runs"]


def test_the_tops_of_lists_are_ranked_together(runner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("listwise")
    path = str(write_jina_v3(folder / "v3"))
    candidates = pq.read_table(LAKE / "candidates.parquet")
    kinds = ("text-to-text-seen.011.fr", "text-to-mixed-seen.021.nl", "image-to-text-unseen-style.013.fluent")
    pq.write_table(candidates.filter(pc.is_in(candidates["query_id"], pa.array(kinds))), folder / "candidates.parquet")
    model = [f"model.1.path={path}", "model.1.revision=null", "model.1.top=6"]
    config = load_config(ROOT / "conf" / "listwise.yaml", [*settings(folder), *model])
    summary = run(runner, Storage(), rerank_job(config, "lists", Storage()))
    counts = {"passes": 1, "window": 125, "stride": None, "lists": 3, "scored": 3, "reused": 0}
    assert summary["passes"][1]["listwise"] == counts
    assert summary["passes"][1]["forecast_tokens"] > 0
    rows = [row for row in ranked(folder, "lists") if row["query_id"] == kinds[0]]
    text_of = {row["doc_id"]: row["text"] for row in pq.read_table(LAKE / "documents.parquet").to_pylist()}
    query = next(row for row in pq.read_table(LAKE / "queries.parquet").to_pylist() if row["query_id"] == kinds[0])
    first = {name: score for name, score in scores(folder, kinds[0]) if name in {row["doc_id"] for row in rows[:6]}}
    given = sorted(first, key=lambda doc_id: (-first[doc_id], doc_id))
    results = load_reranker(path, device="cpu").rank(query["text"], [text_of[doc_id] for doc_id in given])
    assert [given[result.index] for result in results] == [row["doc_id"] for row in rows[:6]]
    assert [result.logit for result in results] == [row["logit"] for row in rows[:6]]
    reasons = {row["query_id"]: row["reason"] for row in ranked(folder, "lists") if row["reason"]}
    assert reasons.keys() == set(kinds[1:])
    assert set(reasons.values()) == {"modality_unsupported"}
    words = [word for setting in model for word in ("--set", setting)]
    last = invoke(evaluate, "listwise.yaml", folder, "--run-id", "lists", "--position-bias", "5", *words)
    bias = last["position_bias"]
    assert (bias["sampled"], bias["lists"]) == (3, 2), "nothing can be read of the third"
    assert -1 <= bias["reversed"]["kendall_tau"] < 1
    report = (folder / "out" / "runs" / "lists" / "report.html").read_text()
    assert "3 lists, 3 of them new" in report
    assert "Position bias</h2>" in report
    assert "Nothing can be read of 1 more of the sample." in report


def scores(folder: Path, query_id: str) -> list[tuple[str, float]]:
    """Ids and logits of a query's documents in the first stage."""
    manifest = json.loads((folder / "out" / "runs" / "lists" / "manifest.json").read_text())
    stage = folder / "out" / "scores" / f"scorer={manifest['passes'][0]['scorer']}"
    rows = [row for file in stage.iterdir() for row in pq.read_table(file, partitioning=None).to_pylist()]
    return [(row["doc_id"], row["logit"]) for row in rows if row["query_id"] == query_id]


@pytest.mark.parametrize(
    "model",
    [
        "{path: LISTER}",
        "[{path: LISTER}, {path: embedded, top: 3}]",
        "[{path: embedded}, {path: LISTER, keep: {recall: 0.9}}]",
        "{ensemble: [{path: embedded}, {path: LISTER}]}",
        "{text: {path: LISTER, calibration: SCALE}, image: {path: embedded, calibration: SCALE}}",
    ],
)
def test_a_reranker_of_lists_is_refused_where_nothing_orders_them(model, tmp_path):
    path = write_jina_v3(tmp_path / "v3")
    setting = "model=" + model.replace("LISTER", str(path)).replace("SCALE", "{scale: 1, bias: 0}")
    with pytest.raises(ConfigError, match=r"v3.* scores lists.*pointwise: true"):
        rerank_job(load_config(ROOT / "conf" / "demo.yaml", [setting]), "r", Storage())


def test_a_reranker_that_cannot_score_pairs_is_not_told_to(tmp_path):
    setting = f"model={{path: {write_lister(tmp_path)}, family: list-generation}}"
    with pytest.raises(ConfigError, match=r"scores lists.*with a `top`$"):
        rerank_job(load_config(ROOT / "conf" / "demo.yaml", [setting]), "r", Storage())


@pytest.mark.parametrize(
    ("listwise", "fault"),
    [
        ("{passes: 0}", "passes must be positive"),
        ("{stride: 3, window: 2}", "a window has at least 2 and moves by no more"),
        ("{pass: 2}", "passes"),
    ],
)
def test_what_lists_cannot_be_scored_by_is_a_fault_of_the_config(listwise, fault):
    with pytest.raises(ConfigError, match=rf"model\.1\.listwise.*{fault}"):
        load_config(ROOT / "conf" / "listwise.yaml", [f"model.1.listwise={listwise}"])
