"""Held-out slices: which tables they are of, and what may stand on both sides."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lakerank.errors import ConfigError
from lakerank.training.config import load_train_config
from lakerank.training.run import run_training


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


def test_a_table_that_a_slice_does_not_name_is_the_lake_s(training_config: Callable[..., Path]) -> None:
    path = training_config(evaluation={"slices": {"learned": {}, "held out": {"queries": "other"}}})
    config = load_train_config(path, ["lake.qrels=clicks"])
    learned, held_out = (config.evaluation.slices[name] for name in ("learned", "held out"))
    assert learned.addresses == config.lake.addresses
    assert held_out.addresses == (config.lake.documents, "other", "clicks")
