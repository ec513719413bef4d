"""Held-out figures are evaluation's, and what is trained on is not measured as held out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lakerank import Document, Query, load_reranker
from lakerank.errors import ConfigError
from lakerank.limits import Limits
from lakerank_evaluation.metrics.measures import NAMES, PRIMARY, list_figures
from lakerank_training.config import load_train_config
from lakerank_training.run import read_inputs, run_training
from lakerank_training.validate import DIRECTIONS, draw_grid, mean_ndcg
from training_lakes import table_paths


def test_queries_split_by_topic_are_held_out_over_the_same_documents(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path
) -> None:
    queries = pq.read_table(colour_lake / "queries.parquet")
    topics = sorted(set(queries["topic"].to_pylist()))

    def write(name: str, about: list[str], only: str = ".") -> str:
        kept = pc.and_(pc.is_in(queries["topic"], pa.array(about)), pc.match_substring(queries["query_id"], only))
        path = str(tmp_path / f"{name}.parquet")
        pq.write_table(queries.filter(kept), path)
        return path

    lake = {name: str(colour_lake / f"{name}.parquet") for name in ("documents", "qrels")} | {"topic": "topic"}
    stages = [{"name": "pairs", "steps": 1, "groups": 1, "group_size": 2}]

    def figures(trained: str, held_out: str) -> set[str]:
        evaluation = {"candidates": 12, "slices": {"held out": {"queries": held_out}}}
        tables = lake | {"queries": trained}
        return set(
            run_training(load_train_config(training_config(lake=tables, stages=stages, evaluation=evaluation))).figures
        )

    assert "held out text→text" in figures(write("few", topics[:2]), write("many", topics[2:]))
    with pytest.raises(ConfigError, match="12 of the topics that its queries are about are trained on"):
        figures(write("english", topics, ".en"), write("german", topics, ".de"))


def test_what_is_trained_on_is_not_measured_as_held_out(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renamed = table_paths(tmp_path)
    for name in renamed:  # the same rows, every query under a new id; half of them ask something new
        table = pq.read_table(colour_lake / f"{name}.parquet")
        if "query_id" in table.column_names:
            ids = pc.binary_join_element_wise("new", table["query_id"], "-")
            table = table.set_column(table.column_names.index("query_id"), "query_id", ids)
        if name == "queries":
            texts = [text and (text + " please" if "square" in text else text) for text in table["text"].to_pylist()]
            table = table.set_column(table.column_names.index("text"), "text", pa.array(texts))
        pq.write_table(table, renamed[name])
    held_out = {"slices": {"held out": renamed}, "candidates": 12}
    with pytest.raises(ConfigError, match="12 of the topics that its queries are about are trained on"):
        run_training(load_train_config(training_config(evaluation=held_out)))
    held_out["slices"] = {"held out": renamed | {"same_topics": True}}
    figures = run_training(load_train_config(training_config(evaluation=held_out))).figures
    assert "48 queries repeat the content of a query that is trained on: left out" in caplog.text
    assert set(figures) == {"held out text→image", "held out text→text"}  # pictures ask nothing new


def test_ndcg_of_a_grid_is_evaluation_s(training_config: Callable[..., Path]) -> None:
    """Over lists of known documents by falling score, as a run and its qrels would give them."""
    config = load_train_config(training_config())
    part = read_inputs(config).slices["seen"]
    for direction in DIRECTIONS:
        grid = draw_grid(part, direction, 12, 0)
        assert grid is not None
        random = np.random.default_rng(1)
        relevant = random.random(grid.relevant.shape) < 0.3
        relevant[:, 0] = False  # no relevant document: does not count
        grid = replace(grid, relevant=relevant, known=grid.known & (random.random(relevant.shape) < 0.9))
        scores = random.permutation(relevant.size).reshape(relevant.shape).astype(np.float32)
        lists, judgements = [], []
        for query in np.flatnonzero((relevant & grid.known).any(0)):
            known = np.flatnonzero(grid.known[:, query])
            lists.append([str(document) for document in known[np.argsort(-scores[known, query])]])
            judgements.append({str(document): 1 for document in known if relevant[document, query]})
        figures = list_figures(lists, judgements)[:, NAMES.index(PRIMARY)]
        assert mean_ndcg(scores, grid) == pytest.approx(figures.mean(), abs=1e-9)


def test_held_out_figures_are_those_of_the_saved_checkpoint(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path
) -> None:
    """Of the lists that scoring's engine makes of the same documents and queries."""
    config = load_train_config(training_config(mode="lora"))
    figures = run_training(config).figures
    adapter, base = str(tmp_path / "out" / "adapter"), str(config.start.path)
    reranker = load_reranker(base, adapter=adapter, device="cpu", dtype="float32", limits=Limits(max_pixels=56**2))
    part = read_inputs(config).slices["seen"]
    rows = pq.read_table(colour_lake / "documents.parquet").to_pylist()
    grid = draw_grid(part, "text→image", 12, config.seed)
    assert grid is not None
    pairs = [(q, d) for q in range(12) for d in range(12)]
    texts = [rows[row]["text"] for row in grid.queries]
    images = [rows[row]["image"] for row in grid.documents]
    asked = [(Query(f"q{q}", texts[q]), Document(f"d{d}", image=images[d])) for q, d in pairs]
    logits = reranker.score(asked).reshape(12, 12)
    lists = [[f"d{d}" for d in np.argsort(-logits[q], kind="stable")] for q in range(12)]
    judgements = [{f"d{d}": 1 for d in range(12) if grid.relevant[d, q]} for q in range(12)]
    expected = list_figures(lists, judgements)[:, NAMES.index(PRIMARY)].mean()
    assert figures["seen text→image"] == pytest.approx(expected, abs=1e-4)
