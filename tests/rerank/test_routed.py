"""One reranker for texts and another for images, from `conf/routed.yaml` through Spark into one ranked list."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from checkpoints.encoders import write_bge
from lakerank.cli.resolve import limits, model_spec, rerank_job
from lakerank.config import load_config
from lakerank.cost import CostProfile
from lakerank.limits import Limits
from lakerank.model.spec import CheckpointSpec, RuntimeOptions
from lakerank.ranking import relevance
from lakerank.records import Document, Query
from lakerank.rerank.run import run
from oracles.pairs import pair_logits

ROUTED = Path(__file__).parents[2] / "conf" / "routed.yaml"
WORDS = ("the red apple", "a green bird", "water and the river", "train to the bridge", "school history")


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


DOCUMENTS = [Document(f"t{i}", text=f"{words} sings on the table") for i, words in enumerate(WORDS)]
DOCUMENTS += [Document(f"i{i}", image=picture(i)) for i in range(3)] + [Document("both", "red apple", picture(9))]
QUERIES = [Query(f"q{i}", text=words) for i, words in enumerate(WORDS)] + [Query("q-image", image=picture(20))]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As many as a task has: a cross-encoder's last bits go by the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    write_bge(folder)
    return folder


def written(lake) -> list[str]:
    """The lake's tables, and the settings that say where they are."""
    lake.write("documents", [{"doc_id": d.doc_id, "text": d.text, "image": d.image} for d in DOCUMENTS])
    lake.write("queries", [{"query_id": q.query_id, "text": q.text, "image": q.image} for q in QUERIES])
    lake.write("candidates", [{"query_id": q.query_id, "doc_id": d.doc_id} for q in QUERIES for d in DOCUMENTS])
    settings = [f"lake.{name}={lake.folder}/{name}.parquet" for name in ("documents", "queries", "candidates")]
    return [*settings, "lake.qrels=null", f"lake.output={lake.folder}/out"]


def test_each_pair_is_ranked_by_its_own_rerankers_calibrated_score(runner, storage, lake, encoder, tiny_checkpoint):
    models = {
        "model.text.path": encoder,
        "model.text.max_length": 128,
        "model.image.path": tiny_checkpoint,
        "model.text.calibration": "{scale: 0.5, bias: 0.25}",
        "model.image.calibration": "{scale: 2.0, bias: -1.5}",
    }
    config = load_config(ROUTED, [*written(lake), *(f"{name}={value}" for name, value in models.items())])
    job = rerank_job(config, "r1", storage)
    text, image = job.stages[0].limits.readings
    assert (text.document_major, text.accepts_images) == (False, False)
    assert image == CostProfile()
    summary = run(runner, storage, job)
    ranked = lake.ranked("r1")
    assert summary["published"] is True
    assert summary["scored"] == len(ranked) == len(QUERIES) * len(DOCUMENTS)
    assert summary["rejected"] == 0

    both = model_spec(config.rerankers[0]).load("cpu", limits(config.scoring), RuntimeOptions())
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    names = [(query.query_id, document.doc_id) for query, document in pairs]
    expected = dict(zip(names, pair_logits(both, pairs).tolist(), strict=True))
    assert {(row["query_id"], row["doc_id"]): row["logit"] for row in ranked} == expected
    logits = np.array([row["logit"] for row in ranked], dtype=np.float32)
    assert [row["relevance"] for row in ranked] == relevance(logits, 0.0).tolist()
    keys = [(row["query_id"], -row["logit"], row["doc_id"]) for row in ranked]
    assert keys == sorted(keys)

    again = run(runner, storage, rerank_job(config, "r2", storage))
    assert (again["reused"], again["scored"]) == (len(pairs), 0)
    (scores,) = (lake.folder / "out" / "scores").iterdir()
    assert scores.name == f"scorer={both.fingerprint}"


def test_a_reranker_of_texts_alone_rejects_the_other_pairs(runner, storage, lake, encoder):
    demo = load_config(ROUTED.with_name("demo.yaml"), [*written(lake), f"model.path={encoder}"])
    summary = run(runner, storage, rerank_job(demo, "r1", storage))
    texts = [(q, d) for q in QUERIES for d in DOCUMENTS if q.image is None and d.image is None]
    assert summary["rejected_by_reason"] == {"modality_unsupported": len(QUERIES) * len(DOCUMENTS) - len(texts)}
    assert {(row["query_id"], row["doc_id"]) for row in lake.ranked("r1")} == {
        (query.query_id, document.doc_id) for query, document in texts
    }
    alone = CheckpointSpec(str(encoder), dtype="float32").load("cpu", Limits(), RuntimeOptions())
    first = lake.ranked("r1")[0]
    pair = next(pair for pair in texts if (pair[0].query_id, pair[1].doc_id) == (first["query_id"], first["doc_id"]))
    assert pair_logits(alone, [pair]).tolist() == [first["logit"]]
    computed, planned = summary["tokens_computed"], summary["forecast_tokens"]
    assert summary["forecast_tokens"] == summary["forecast_tokens_pairwise"]
    assert 0.3 < computed / planned < 3
    units = (lake.folder / "out" / "scores" / f"scorer={alone.fingerprint}").iterdir()
    assert sum(pq.read_metadata(unit).num_rows for unit in units) == len(QUERIES) * len(DOCUMENTS)
