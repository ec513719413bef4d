"""`jobs/score.py`: which rerankers answer a request."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from checkpoints.encoders import write_bge
from lakerank import load_reranker
from lakerank.cli.score import score
from lakerank.limits import Limits
from lakerank.model.spec import CheckpointSpec, RuntimeOptions
from lakerank.records import Document, Query
from lakerank_benchmark.checkpoints import random_checkpoint
from lakerank_pictograms.network import Shape
from oracles.pairs import pair_logits

CONF = Path(__file__).parents[2] / "conf"
TEXTS = ["the red apple lies on a table", "water and the river"]


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"query": "apples", "documents": TEXTS}))
    return file


def answer(request_file: Path, config: str, *settings: str) -> Result:
    options = [word for setting in settings for word in ("--set", setting)]
    return CliRunner().invoke(score, [str(request_file), "--config", str(CONF / config), *options])


def test_a_request_of_texts_is_answered_by_the_reranker_of_texts(
    request_file: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    write_bge(tmp_path / "bge")
    models = [f"model.text.path={tmp_path}/bge", "model.text.max_length=128", f"model.image.path={tiny_checkpoint}"]
    models += ["model.text.calibration={scale: 2.0, bias: -0.5}"]
    done = answer(request_file, "routed.yaml", *models)
    assert done.exit_code == 0, done.output
    raw = CheckpointSpec(f"{tmp_path}/bge").load("cpu", Limits(max_length=1024), RuntimeOptions())
    logits = (
        2 * pair_logits(raw, [(Query(text="apples"), Document(str(at), text)) for at, text in enumerate(TEXTS)]) - 0.5
    )
    result = {entry["index"]: entry["relevance_score"] for entry in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert [result[0], result[1]] == pytest.approx((1 / (1 + 2.718281828459045**-logits)).tolist(), abs=1e-6)


@pytest.fixture
def make_png() -> Callable[[], str]:
    def make() -> str:
        stream = io.BytesIO()
        Image.new("RGB", (60, 60), "red").save(stream, "PNG")
        return base64.b64encode(stream.getvalue()).decode()

    return make


def test_an_instruction_reaches_the_prompt_or_is_refused(tmp_path: Path, request_file: Path) -> None:
    checkpoint = random_checkpoint(tmp_path, "qwen3-reranker", Shape(0, 32, 64, 2, 2, 1, 3, 32, 2), "float32")
    model, told = load_reranker(checkpoint, device="cpu", dtype="float32"), "Find fruit."
    request = json.loads(request_file.read_text())
    for more, settings in (({"instruct": told}, []), ({}, [f"model.instruction={told}"]), ({}, [])):
        (tmp_path / "told.json").write_text(json.dumps(request | more))
        settings += [f"model.path={checkpoint}", "model.revision=null", "model.dtype=float32"]
        done = answer(tmp_path / "told.json", "rerank-qwen3.yaml", *settings)
        best = model.rank({"text": request["query"], "instruction": told if more or len(settings) > 3 else None}, TEXTS)
        results = json.loads(done.stdout.splitlines()[-1])["results"]
        assert [entry["relevance_score"] for entry in results] == [item.relevance for item in best], done.output
    (tmp_path / "told.json").write_text(json.dumps(request | {"instruction": told}))
    refused = answer(tmp_path / "told.json", "demo.yaml")
    assert refused.exit_code == 2
    assert "instruction: 'embedded' takes none; leave it out" in refused.stderr


@pytest.mark.parametrize("config", ["cascade.yaml", "ensemble.yaml"])
def test_several_rerankers_answer_no_request(request_file: Path, config: str) -> None:
    done = answer(request_file, config)
    assert done.exit_code == 2
    assert "model: a request is answered by one reranker" in done.output


def test_a_wrong_request_is_told_before_the_model_is_loaded(request_file: Path, tmp_path: Path) -> None:
    """The checkpoint would fail to load: its fault would be told instead."""
    (tmp_path / "no-model").mkdir()
    for change, fault in {"top_k": 1, "model": "jina-reranker-m0", "documents": []}.items():
        wrong = json.loads(request_file.read_text()) | {change: fault}
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        done = answer(tmp_path / "wrong.json", "demo.yaml", f"model.path={tmp_path}/no-model")
        assert (done.exit_code, json.loads(done.stdout.splitlines()[-1])["error"]) == (2, "ConfigError"), change
        assert change in done.stderr


def test_images_on_both_sides_are_scored_by_the_model_named(
    tmp_path: Path, tiny_checkpoint: Path, make_png: Callable[[], str]
) -> None:
    image = make_png()
    request = {"model": str(tiny_checkpoint), "query": {"image": image}, "documents": [{"image": image}, {"text": "a"}]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    done = answer(tmp_path / "request.json", "demo.yaml", f"model.path={tiny_checkpoint}")
    response = json.loads(done.stdout.splitlines()[-1])
    assert (response["model"], len(response["results"])) == (str(tiny_checkpoint), 2)


def test_a_document_that_cannot_be_scored_is_an_error_in_json(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "request.json").write_text(json.dumps({"query": "q", "documents": ["a", " "]}))
    done = answer(tmp_path / "request.json", "demo.yaml", f"model.path={tiny_checkpoint}")
    last = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, last["error"]) == (1, "PairRejected")
    assert "document '1': empty_document" in last["message"]
