"""`jobs/score.py`: which rerankers answer a request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from checkpoints.encoders import write_bge
from lakerank.cli.score import score
from lakerank.limits import Limits
from lakerank.model.spec import CheckpointSpec, RuntimeOptions
from lakerank.records import Document, Query

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
    logits = 2 * raw.score([(Query(text="apples"), Document(str(at), text)) for at, text in enumerate(TEXTS)]) - 0.5
    result = {entry["index"]: entry["relevance_score"] for entry in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert [result[0], result[1]] == pytest.approx((1 / (1 + 2.718281828459045**-logits)).tolist(), abs=1e-6)


@pytest.mark.parametrize("config", ["cascade.yaml", "ensemble.yaml"])
def test_several_rerankers_answer_no_request(request_file: Path, config: str) -> None:
    done = answer(request_file, config)
    assert done.exit_code == 2
    assert "model: a request is answered by one reranker" in done.output
