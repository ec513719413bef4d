"""Some of the text lake's lists through sentence-transformers, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from checkpoints.sentence_transformers import write_ettin
from lakerank.cli.resolve import rerank_job
from lakerank.config import load_config
from lakerank.rerank.run import run
from lakerank.runner import LocalRunner

ROOT = Path(__file__).parents[2]
LAKE = ROOT / "lib" / "lakerank_questions" / "lake"


def texts(table: str, key: str, most: int) -> dict[str, str]:
    rows = pq.read_table(LAKE / f"{table}.parquet", columns=[key, "text"]).slice(0, most).to_pylist()
    return {row[key]: row["text"] for row in rows}


@pytest.mark.parametrize("reproducible", [True, False])
def test_the_text_lake(storage, lake, tmp_path, reproducible) -> None:
    from sentence_transformers import CrossEncoder

    write_ettin(tmp_path / "model")
    queries, documents = texts("queries", "query_id", 3), texts("documents", "doc_id", 8)
    pairs = [{"query_id": query, "doc_id": document} for query in queries for document in documents]
    settings = [
        *(f"lake.{table}={LAKE / f'{table}.parquet'}" for table in ("documents", "queries")),
        f"lake.candidates={lake.folder}/candidates.parquet", "lake.qrels=null", f"lake.output={tmp_path / 'out'}",
        f"model.path={tmp_path / 'model'}", "model.family=sentence-transformers", "model.device=cpu",
        f"scoring.reproducible={json.dumps(reproducible)}",
    ]  # fmt: skip
    config = load_config(ROOT / "conf" / "demo-text.yaml", settings)
    for run_id, part, reused in (("first", pairs[:13], 0), ("second", pairs, 13)):
        lake.write("candidates", part)
        planned = run(LocalRunner(), storage, rerank_job(config, run_id, storage), ["plan"])
        summary = run(LocalRunner(), storage, rerank_job(config, run_id, storage))
        assert (summary["published"], summary["scored"], summary["reused"]) == (True, len(part) - reused, reused)
        manifest = json.loads((tmp_path / "out" / "runs" / run_id / "manifest.json").read_text())
        said = [any("depend on the pairs" in text for text in of.get("warnings", ())) for of in (planned, manifest)]
        assert said == [not reproducible] * 2
    ranked = pq.read_table(tmp_path / "out" / "ranked" / "run_id=second", partitioning=None).to_pylist()
    asked = [(queries[row["query_id"]], documents[row["doc_id"]]) for row in ranked]
    model = CrossEncoder(str(tmp_path / "model"), device="cpu", local_files_only=True)
    logits = model.predict(asked, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose([row["logit"] for row in ranked], logits, atol=1e-5)
    np.testing.assert_allclose([row["relevance"] for row in ranked], model.predict(asked), atol=1e-5)
    assert any(row["truncated"] for row in ranked)
