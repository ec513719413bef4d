"""End to end: the job and the published loop in `predict_batch_udf` score a lake alike, and the shares add up."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from pyspark.sql import SparkSession

from lakerank.cli.resolve import rerank_job
from lakerank.config import resolve_config
from lakerank.lake.storage import Storage
from lakerank.records import Document, DocumentGroup, Query
from lakerank_benchmark.spark_job import PublishedFactory, compared, time_job, time_published, write_lake

pytestmark = [pytest.mark.spark, pytest.mark.nightly]


def test_both_ends_score_one_lake_alike(spark: SparkSession, tiny_checkpoint: Path, tmp_path: Path) -> None:
    queries = tuple(Query(f"q{n}", text) for n, text in enumerate(("red apple", "roter Apfel", "стол")))
    groups = [DocumentGroup(Document(f"d{n}", "A red apple " * n), queries[: 1 + n % 3]) for n in range(1, 5)]
    files = write_lake(Storage(), str(tmp_path / "lake"), groups)
    values = {
        "lake": {**files, "output": str(tmp_path / "out")},
        "model": {"path": str(tiny_checkpoint), "dtype": "float32", "device": "cpu"},
    }
    ours = time_job(spark, Storage(), rerank_job(resolve_config(values), "r", Storage()), tmp_path / "profile")
    factory = PublishedFactory(str(tiny_checkpoint), "float32", "cpu")
    published = time_published(spark, files, factory, str(tmp_path / "scores"))
    assert ours.pairs == published.pairs == sum(len(group.queries) for group in groups)
    assert sum(ours.shares.values()) == pytest.approx(1.0)
    assert {"load", "fetch", "model"} < ours.shares.keys()
    assert scores(tmp_path / "out" / "ranked") == pytest.approx(scores(tmp_path / "scores"), abs=1e-4)
    report = json.loads(json.dumps(compared(ours, published)))
    assert 0 < report["outside"] < 1


def scores(folder: Path) -> dict[tuple[str, str], float]:
    rows = ds.dataset(folder, format="parquet").to_table(columns=["query_id", "doc_id", "logit"]).to_pylist()
    return {(row["query_id"], row["doc_id"]): row["logit"] for row in rows}
