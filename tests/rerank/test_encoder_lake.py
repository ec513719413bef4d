"""Some of the bundled lake's lists through the configs of cross-encoders, their paths alone replaced."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from checkpoints.encoders import write_bert, write_bge, write_ettin, write_jina, write_modern
from lakerank import load_reranker
from lakerank.cli.resolve import rerank_job
from lakerank.config import load_config
from lakerank.records import Document, Query
from lakerank.rerank.run import run

ROOT = Path(__file__).parents[2]
LAKE = ROOT / "lib" / "lakerank" / "ingest" / "demo_lake"


@pytest.fixture(scope="module")
def texts() -> dict[str, dict[str, str | None]]:
    """The text of each query and of each document, None where it is an image."""
    keys = {"queries": "query_id", "documents": "doc_id"}
    rows = {table: pq.read_table(LAKE / f"{table}.parquet", columns=[key, "text"]) for table, key in keys.items()}
    return {table: dict(zip(*table_rows.to_pydict().values(), strict=True)) for table, table_rows in rows.items()}


@pytest.fixture(scope="module")
def lists(tmp_path_factory, texts) -> Path:
    """Candidates of some queries: texts that ask for texts, texts that ask for images, and images."""
    table = pq.read_table(LAKE / "candidates.parquet", columns=["query_id", "doc_id"])
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for query, doc in sorted(zip(*table.to_pydict().values(), strict=True)):
        of_kind = kinds.setdefault((texts["queries"][query] is None, texts["documents"][doc] is None), [])
        if query not in of_kind:
            of_kind.append(query)
    chosen = [query for of_kind in kinds.values() for query in of_kind[:3]]
    file = tmp_path_factory.mktemp("lists") / "candidates.parquet"
    pq.write_table(pq.read_table(LAKE / "candidates.parquet", filters=[("query_id", "in", chosen)]), file)
    return file


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rerank-bge-v2-m3", write_bge),
        ("rerank-jina-v2", write_jina),
        ("rerank-gte-modernbert", write_modern),
        pytest.param("rerank-minilm-en", write_bert, marks=pytest.mark.nightly),
        pytest.param("rerank-ms-marco-minilm", write_bert, marks=pytest.mark.nightly),
        pytest.param("rerank-ettin", write_ettin, marks=pytest.mark.nightly),
    ],
)
def test_the_bundled_lake(runner, storage, tmp_path, texts, lists, name, write) -> None:
    file = ROOT / "conf" / f"{name}.yaml"
    demo = load_config(ROOT / "conf" / "demo.yaml")
    assert load_config(file).model_copy(update={"model": demo.model}) == demo, "differs in more than its model"
    write(tmp_path / "model")
    tables = [f"lake.{table}={LAKE / f'{table}.parquet'}" for table in ("documents", "queries", "qrels")]
    model = [f"model.path={tmp_path / 'model'}", "model.revision=null", "model.device=cpu", "model.dtype=float32"]
    paths = [f"lake.candidates={lists}", f"lake.output={tmp_path / 'out'}"]
    summary = run(runner, storage, rerank_job(load_config(file, [*tables, *model, *paths]), "r", storage))
    assert summary["published"] is True

    pairs = {tuple(row.values()) for row in pq.read_table(lists, columns=["query_id", "doc_id"]).to_pylist()}
    read = {(query, doc) for query, doc in pairs if texts["queries"][query] and texts["documents"][doc]}
    ranked = pq.read_table(tmp_path / "out" / "ranked" / "run_id=r").to_pylist()
    rejected = pq.read_table(tmp_path / "out" / "rejected" / "run_id=r").to_pylist()
    assert {(row["query_id"], row["doc_id"]) for row in ranked} == read
    assert Counter(row["reason"] for row in rejected) == {"modality_unsupported": len(pairs - read)}
    assert min(len(read), len(rejected)) > 50
    reranker = load_reranker(str(tmp_path / "model"), device="cpu", dtype="float32", device_threads=1)
    keys = [(row["query_id"], row["doc_id"]) for row in ranked]
    asked = [(Query(query, texts["queries"][query]), Document(doc, texts["documents"][doc])) for query, doc in keys]
    assert reranker.score(asked).tolist() == [row["logit"] for row in ranked], "the same bits without Spark"
    for row in ranked:
        assert row["relevance"] == pytest.approx(1 / (1 + math.exp(-row["logit"])), rel=1e-5)
