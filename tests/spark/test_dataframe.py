"""Reranking of one's own DataFrames in a session that is there, and jobs that join it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from checkpoints.listwise import write_jina_v3
from lakerank import Document, Query, load_reranker
from lakerank.cli.rerank import rerank as rerank_job
from lakerank.errors import CheckpointError, ConfigError, SchemaError
from lakerank.model.spec import CheckpointSpec, RuntimeOptions
from lakerank.spark import Scoring, rerank, score_udf
from lakerank_benchmark.checkpoints import random_checkpoint
from lakerank_pictograms.network import Shape

pytestmark = [pytest.mark.spark, pytest.mark.nightly]

TEXTS = {1: "A red apple lies on the table.", 2: "table", 3: "Der rote Apfel", 2**53 + 1: None}
QUERIES = {"q1": "red apple", "q2": "table", "q3": None}


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def documents(spark: SparkSession) -> DataFrame:
    rows = [(number, text, png() if text is None else None) for number, text in TEXTS.items()]
    rows += [(9, "twice", None), (9, "twice and not alike", None), (10, " ", None), (77, "no candidate", None)]
    return spark.createDataFrame(rows, "doc_id bigint, text string, image binary")


@pytest.fixture(scope="module")
def queries(spark: SparkSession) -> DataFrame:
    rows = [*QUERIES.items(), ("twice", "a"), ("twice", "b")]
    return spark.createDataFrame(rows, "query_id string, text string")


@pytest.fixture(scope="module")
def scoring(tiny_checkpoint: Path) -> Scoring:
    return Scoring(CheckpointSpec(str(tiny_checkpoint)), "cpu", options=RuntimeOptions(device_threads=1), partitions=3)


def test_ranked_lists_and_rejects_of_every_candidate(
    spark: SparkSession, documents: DataFrame, queries: DataFrame, scoring: Scoring, tiny_checkpoint: Path
) -> None:
    numbers, names = [*TEXTS, 9, 10, 404], [*QUERIES, "twice", "unknown"]
    pairs = [(name, number) for name in names for number in numbers]
    candidates = spark.createDataFrame([*pairs, ("q1", 1)], "query_id string, doc_id bigint")  # one is there twice
    before = spark.conf.get("spark.sql.shuffle.partitions")
    frame = rerank(spark, candidates, documents, queries, model=scoring)
    assert frame.dtypes[:2] == [("query_id", "string"), ("doc_id", "bigint")]
    rows = {(row["query_id"], row["doc_id"]): row.asDict() for row in frame.collect()}
    assert len(rows) == len(pairs)

    reranker = load_reranker(tiny_checkpoint, device="cpu", dtype="float32")
    for name in ("q1", "q2"):
        expected = reranker.rank(QUERIES[name], [text or png() for text in TEXTS.values()])
        order = [[*TEXTS][item.index] for item in expected]
        scored = sorted((row["rank"], number) for (query, number), row in rows.items() if query == name and row["rank"])
        assert scored == [*enumerate(order, start=1)]
        for item, number in zip(expected, order, strict=True):
            row = rows[name, number]
            assert (row["logit"], row["reason"], row["truncated"]) == (item.logit, None, False)
            assert row["relevance"] == pytest.approx(item.relevance)
            assert row["label"] == sum(row["relevance"] >= edge for edge in (0.25, 0.5, 0.75))

    reasons = {pair: row["reason"] for pair, row in rows.items() if row["reason"]}
    by_document = {9: "duplicate_document_id", 10: "empty_document", 404: "missing_document"}
    for number, reason in by_document.items():
        assert [reasons["q1", number], reasons["q2", number]] == [reason] * 2
    for name, reason in {"q3": "empty_query", "twice": "duplicate_query_id", "unknown": "missing_query"}.items():
        assert {reasons[name, number] for number in (1, 2, 3)} == {reason}
    assert all(rows[pair]["rank"] is rows[pair]["logit"] is rows[pair]["label"] is None for pair in reasons)
    assert spark.conf.get("spark.sql.shuffle.partitions") == before
    assert spark.range(3).count() == 3, "the session is still there"


def test_queries_in_the_candidates_depth_and_an_images_column(
    spark: SparkSession, documents: DataFrame, scoring: Scoring
) -> None:
    rows = [("q1", "red apple", str(number)) for number in TEXTS] + [("q2", "table", "1"), ("q2", "another", "1")]
    candidates = spark.createDataFrame(rows, "query_id string, query string, doc_id string")
    two = Scoring(scoring.checkpoint, "cpu", options=scoring.options, depth=2, label_thresholds=(), partitions=1)
    frame = rerank(spark, candidates, documents, model=two)
    result = {(row["query_id"], row["rank"]): row for row in frame.collect()}
    assert result.keys() == {("q1", 1), ("q1", 2), ("q2", None)}
    assert result["q2", None]["reason"] == "duplicate_query_id"
    assert result["q1", 1]["label"] == 0
    assert isinstance(result["q1", 1]["doc_id"], str)
    nothing = rerank(spark, candidates.where("false"), documents, model=two)
    assert nothing.collect() == []


def test_faults_are_told_before_anything_runs(spark: SparkSession, documents: DataFrame, tmp_path: Path) -> None:
    candidates = spark.createDataFrame([("q", "d")], "query_id string, document string")
    wrong = documents.withColumnRenamed("text", "body").withColumn("image", F.lit("a.png"))
    with pytest.raises(SchemaError) as caught:
        rerank(spark, candidates, wrong, model="embedded")
    assert str(caught.value).splitlines() == [
        "candidates: no column 'doc_id' (found: query_id, document)",
        "candidates: no column 'query' (found: query_id, document); or give queries",
        "documents: image is string; expected binary: cast it",
    ]
    good = spark.createDataFrame([("q", "a", "1")], "query_id string, query string, doc_id string")
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        rerank(spark, good, documents, model=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"scores lists.*pointwise=True"):
        rerank(spark, good, documents, model=str(write_jina_v3(tmp_path / "v3")))


def test_a_udf_scores_columns(spark: SparkSession, scoring: Scoring, tiny_checkpoint: Path) -> None:
    rows = [("red apple", "A red apple"), ("table", "table"), (None, "a"), ("table", None), ("", "a")]
    frame = spark.createDataFrame(rows, "query string, text string").coalesce(1)
    result = [row[0] for row in frame.select(score_udf(model=scoring)("query", "text")).collect()]
    reranker = load_reranker(tiny_checkpoint, device="cpu", dtype="float32")
    expected = reranker.score([(Query(text=query), Document(text=text)) for query, text in rows[:2]])
    assert result == [*expected.tolist(), None, None, None]


def test_instructions_of_queries_reach_the_prompt(spark: SparkSession, tmp_path: Path) -> None:
    """A column of documents of the same name is somebody else's."""
    checkpoint = random_checkpoint(tmp_path, "qwen3-reranker", Shape(0, 32, 64, 2, 2, 1, 3, 32, 2), "float32")
    scoring = Scoring(CheckpointSpec(str(checkpoint)), "cpu", options=RuntimeOptions(device_threads=1), partitions=1)
    asked = [("q1", "red apple", "Find fruit."), ("q2", "red apple", " "), ("q3", "red apple", "Find furniture.")]
    queries = spark.createDataFrame(asked, "query_id string, text string, instruction string")
    documents = spark.createDataFrame([("d", "A red apple", 3)], "doc_id string, text string, instruction int")
    candidates = queries.select("query_id", F.lit("d").alias("doc_id"))
    result = {
        row["query_id"]: row["logit"] for row in rerank(spark, candidates, documents, queries, model=scoring).collect()
    }
    pairs = [(Query(text=text, instruction=told), "A red apple") for _, text, told in asked]
    expected = load_reranker(checkpoint, device="cpu", dtype="float32").score(pairs).tolist()
    assert [result[query] for query, *_ in asked] == expected
    assert len(set(expected)) == 3
    column = score_udf(model=scoring)("text", F.lit("A red apple"), "instruction")
    assert [row[0] for row in queries.coalesce(1).select(column).collect()] == expected
    with pytest.raises(SchemaError, match="queries: instruction is int; expected string: cast it"):
        rerank(spark, candidates, documents, queries.withColumn("instruction", F.lit(1)), model=scoring)


def test_a_job_joins_a_session_and_leaves_it_as_it_was(
    spark: SparkSession, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    spark.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
    sizes: list[Any] = ["--set", "scoring.max_pixels=50176", "--set", f"model.path={tiny_checkpoint}"]
    sizes += ["--set", "spark.local_pairs=0"] if "local_pairs" in _settings() else []
    try:
        done = CliRunner().invoke(
            rerank_job,
            ["--config", "demo", "--run-id", "r", "--stage", "plan", "--set", f"lake.output={tmp_path}", *sizes],
        )
        assert done.exit_code == 0, done.output
        assert spark.range(3).count() == 3
        assert spark.conf.get("spark.sql.session.timeZone") == "Asia/Tokyo"
        assert spark.sparkContext.getLocalProperty("spark.jobGroup.id") is None
    finally:
        spark.conf.unset("spark.sql.session.timeZone")


def _settings() -> set[str]:
    from lakerank.config import SparkConfig

    return set(SparkConfig.model_fields)
