"""`lakerank distill`: a student of a run's scores ranks as its teacher does, and stands before it in a cascade."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from checkpoints.encoders import WORDS, write_bert
from lakerank import Document, Query, load_reranker
from lakerank.cli import main
from lakerank.config import load_config
from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json
from lakerank_training.distill import prune

QUERIES = {f"q{number}": word for number, word in enumerate(WORDS[:12])}
DOCUMENTS = {f"d{number}": " ".join(WORDS[number : number + 4]) for number in range(12)}
PAIRS = [(Query(q, text=QUERIES[q]), Document(d, text=DOCUMENTS[d])) for q, d in product(QUERIES, DOCUMENTS)]


def call(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(main, [str(word) for word in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


@pytest.fixture(params=["decoder", pytest.param("encoder", marks=pytest.mark.nightly)])
def teacher(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "decoder":
        return Path(request.getfixturevalue("tiny_checkpoint"))
    folder = tmp_path / "bert"
    folder.mkdir()
    write_bert(folder, num_hidden_layers=3)
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Overrides that name a lake of words, each query with all documents."""
    tables = {
        "queries": {"query_id": list(QUERIES), "text": list(QUERIES.values()), "instruction": ["Judge."] + [None] * 11},
        "documents": {"doc_id": list(DOCUMENTS), "text": list(DOCUMENTS.values())},
        "candidates": {"query_id": [q.query_id for q, _ in PAIRS], "doc_id": [d.doc_id for _, d in PAIRS]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    values = {name: tmp_path / f"{name}.parquet" for name in tables} | {"qrels": "null", "output": tmp_path / "lake"}
    return [word for name, value in values.items() for word in ("--set", f"lake.{name}={value}")]


def spread(checkpoint: Path) -> np.ndarray:
    """Logits (Q, D) less the mean of each query."""
    logits = np.array(load_reranker(str(checkpoint), device="cpu", dtype="float32").score(PAIRS))
    logits = logits.reshape(len(QUERIES), len(DOCUMENTS))
    return logits - logits.mean(axis=1, keepdims=True)


def test_a_student_learns_the_teachers_order_and_stands_before_it(
    teacher: Path, settings: list[str], tmp_path: Path
) -> None:
    model = [
        "--set",
        f"model.path={teacher}",
        "--set",
        "model.dtype=float32",
        "--set",
        "model.ignore_instructions=true",
    ]
    call("rerank", "--config", "demo", *settings, *model, "--run-id", "r")
    student = tmp_path / "student"
    options = ["--layers", 1, "--steps", 60, "--learning-rate", 3e-3, "--share", 0.6]
    summary = call("distill", "--config", "demo", *settings, "--run-id", "r", "--output", student, *options)
    assert summary["pairs"] == summary["queries"] * len(DOCUMENTS)
    assert 0 < summary["queries"] < len(QUERIES), "a share of them"
    assert read_json(student / "checkpoint" / "config.json")["num_hidden_layers"] == 1
    target = spread(teacher)
    before, after = (np.square(spread(student / name) - target).mean() for name in ("start", "checkpoint"))
    assert after < 0.6 * before, (before, after)

    config = load_config(student / "cascade.yaml")
    assert [model.path for model in config.rerankers] == [str(student / "checkpoint"), str(teacher)]
    assert config.rerankers[1].keep.recall == 0.98
    run = call("rerank", "--config", student / "cascade.yaml", "--run-id", "cascade")
    assert run["published"]


def test_a_students_layers_are_its_teachers_evenly_spaced(tmp_path: Path) -> None:
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
    network = write_bert(tmp_path / "teacher", num_hidden_layers=5)
    prune(tmp_path / "teacher", tmp_path / "student", 3)
    from safetensors.torch import load_file

    tensors, of_teacher = load_file(tmp_path / "student" / "model.safetensors"), dict(network.named_parameters())
    for place, layer in enumerate((0, 2, 4)):
        name = "bert.encoder.layer.{}.output.dense.weight"
        assert tensors[name.format(place)].equal(of_teacher[name.format(layer)].data)
    with pytest.raises(CheckpointError, match="a student of 5 layers, but the teacher has 5"):
        prune(tmp_path / "teacher", tmp_path / "student", 5)
