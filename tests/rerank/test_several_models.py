"""conf/cascade.yaml and conf/ensemble.yaml on a few queries of the bundled lake: reranked, evaluated, cleaned."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click import Command
from click.testing import CliRunner

from lakerank import Document, Query, load_reranker
from lakerank.cli.evaluate import evaluate
from lakerank.cli.resolve import rerank_job
from lakerank.cli.runs import clean
from lakerank.config import load_config
from lakerank.errors import ConfigError
from lakerank.lake.storage import Storage
from lakerank.rerank.run import run
from lakerank.runner import Runner

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
