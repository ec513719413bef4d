"""Some of the bundled lake's lists through the configs of generative rerankers, their paths alone replaced."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lakerank.cli.resolve import rerank_job
from lakerank.config import load_config
from lakerank.rerank.run import run
from lakerank_benchmark.checkpoints import random_checkpoint
from lakerank_pictograms.network import Shape

ROOT = Path(__file__).parents[2]
LAKE = ROOT / "lib" / "lakerank" / "ingest" / "demo_lake"
SHAPE = Shape(0, 32, 64, 2, 2, 1, 3, 32, 2)

#: Config, family, and whether a pair is read, by what is in its query and its document.
CASES = [
    ("rerank-monoqwen2-vl", "monoqwen2-vl", lambda query, document: query == "text" and document == "image"),
    ("rerank-qwen3-vl", "qwen3-vl-reranker", lambda query, document: True),
    ("rerank-qwen3", "qwen3-reranker", lambda query, document: query == document == "text"),
    ("rerank-mxbai-v2", "mxbai-rerank-v2", lambda query, document: query == document == "text"),
    ("rerank-zerank-2", "zerank-2", lambda query, document: query == document == "text"),
]


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> Path:
    """Candidates of a dozen queries: three that have candidates of each kind."""
    file = tmp_path_factory.mktemp("lists") / "candidates.parquet"
    queries, documents = kinds_of("queries"), kinds_of("documents")
    result: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in pq.read_table(LAKE / "candidates.parquet").to_pylist():
        result[queries[row["query_id"]], documents[row["doc_id"]]].add(row["query_id"])
    chosen = {query for having in result.values() for query in sorted(having)[:3]}
    pq.write_table(pq.read_table(LAKE / "candidates.parquet", filters=[("query_id", "in", chosen)]), file)
    return file


def kinds_of(table: str) -> dict[str, str]:
    rows = pq.read_table(LAKE / f"{table}.parquet").to_pylist()
    return {row[f"{'query' if table == 'queries' else 'doc'}_id"]: "image" if row["image"] else "text" for row in rows}


@pytest.mark.parametrize(("name", "family", "reads"), CASES, ids=[case[0] for case in CASES])
def test_the_bundled_lake(runner, storage, tmp_path, lists, name, family, reads) -> None:
    file = ROOT / "conf" / f"{name}.yaml"
    demo = load_config(ROOT / "conf" / "demo.yaml")
    assert load_config(file).model_copy(update={"model": demo.model}) == demo, "differs in more than its model"
    checkpoint = random_checkpoint(tmp_path, family, SHAPE, "float32")
    tables = [f"lake.{table}={LAKE / f'{table}.parquet'}" for table in ("documents", "queries", "qrels")]
    paths = [f"model.path={checkpoint}", "model.adapter=null", "model.revision=null", "model.device=cpu"]
    paths += [f"lake.candidates={lists}", f"lake.output={tmp_path / 'out'}"]
    summary = run(runner, storage, rerank_job(load_config(file, [*tables, *paths]), "r", storage))
    assert summary["published"] is True

    queries, documents = kinds_of("queries"), kinds_of("documents")
    pairs = {tuple(row.values()) for row in pq.read_table(lists, columns=["query_id", "doc_id"]).to_pylist()}
    read = {(query, document) for query, document in pairs if reads(queries[query], documents[document])}
    ranked = pq.read_table(tmp_path / "out" / "ranked" / "run_id=r").to_pylist()
    assert {(row["query_id"], row["doc_id"]) for row in ranked} == read
    assert len(read) > 20
    for row in ranked:
        assert row["relevance"] == pytest.approx(1 / (1 + math.exp(-row["logit"])), rel=1e-5)
    rejected = tmp_path / "out" / "rejected" / "run_id=r"
    refused = pq.read_table(rejected)["reason"].to_pylist() if rejected.is_dir() else []
    assert refused == ["modality_unsupported"] * len(pairs - read)
