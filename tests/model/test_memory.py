"""The longest text and a large image are scored within the memory that they are given."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLConfig

from lakerank.model.api import load_reranker
from lakerank.model.engine.budget import BUSY_TOKENS_CPU, decoder_bytes, device_budget, free_bytes
from lakerank.model.jina_m0.config import read_settings

#: Scores a file in a process of its own; prints what its peak memory grew by, and the document's tokens.
SCRIPT = """
import json, pathlib, resource, sys
from lakerank.limits import Limits
from lakerank.model.api import load_reranker
from lakerank.records import Document, DocumentGroup, Query
def peak():  # VmHWM starts anew with the program; ru_maxrss would start from the parent's
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024
reranker = load_reranker(sys.argv[1], device="cpu", dtype="float32", limits=Limits(max_length=33280), device_threads=1)
query = Query("q", text="red apple")
def score(document):
    return [result.document_tokens for result in reranker.score_groups([DocumentGroup(document, (query,))])]
file = pathlib.Path(sys.argv[2])
text = file.suffix == ".txt"
document = Document("d", text=file.read_text()) if text else Document("d", image=file.read_bytes())
score(Document("warm", text="A red apple"))
before = peak()
print(json.dumps({"tokens": score(document), "mebibytes": peak() - before}))
"""


def grown(checkpoint: Path, file: Path) -> tuple[int, float]:
    """Tokens of the document, and mebibytes that scoring it added to the process's peak."""
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(checkpoint), str(file)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    return result["tokens"][0], result["mebibytes"]


def test_a_text_of_32_thousand_tokens(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text(" ".join(str(number) for number in range(9000)))
    tokens, mebibytes = grown(tiny_checkpoint, file)
    assert tokens > 32_000
    config = Qwen2VLConfig.from_dict(dict(read_settings(tiny_checkpoint).config))
    expected = tokens * decoder_bytes(config, torch.float32) / 2**20
    assert mebibytes < 2 * expected + 50, "attention over so long a text must not be held as a matrix, which is 4 GiB"


def test_an_image_of_4096_squared(tiny_checkpoint: Path, tmp_path: Path) -> None:
    decoded = 4096 * 4096 * 3 / 2**20
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((4096, 4096), Image.Resampling.BILINEAR)
    image.save(tmp_path / "large.png", compress_level=1)
    image.save(tmp_path / "large.jpeg")
    tokens, mebibytes = grown(tiny_checkpoint, tmp_path / "large.png")
    assert tokens > 700
    assert mebibytes < 2.5 * decoded + 100
    _, reduced = grown(tiny_checkpoint, tmp_path / "large.jpeg")
    assert reduced < mebibytes, "a JPEG this large is decoded at half its size"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells what is mapped")
def test_a_checkpoint_is_not_in_memory_beside_what_is_packed_of_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    reranker = load_reranker(str(folder), device="cpu", dtype="float32")
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert reranker.reranker.fingerprint


def test_the_budget_follows_the_memory(tiny_checkpoint: Path) -> None:
    config = Qwen2VLConfig.from_dict(dict(read_settings(tiny_checkpoint).config))
    device = torch.device("cpu")
    assert free_bytes(device) > 0
    assert device_budget(device, decoder_bytes(config, torch.float32)).tokens == BUSY_TOKENS_CPU
    assert decoder_bytes(config, torch.float32) == 2 * decoder_bytes(config, torch.bfloat16)
