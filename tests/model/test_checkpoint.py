"""Checkpoints: both layouts load, everything doubtful is refused, and a scorer's name covers all that it computes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lakerank.errors import CheckpointError
from lakerank.limits import Limits
from lakerank.model.api import load_reranker
from lakerank.model.checkpoint import WHOLE_BYTES, locate, quick_checksum
from lakerank.model.engine.device import supported_dtype
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.spec import CheckpointSpec, RuntimeOptions, ScorerIdentity, confirm, identify
from lakerank.model.weights import current_name
from lakerank.records import Document, Query

PAIRS = [(Query("q", text="red apple"), Document("d", text=text)) for text in ("A red apple", "table")]


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def change_tensors(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")


def change_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def to_new_names(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({current_name(name): tensor for name, tensor in tensors.items()}, checkpoint / "model.safetensors")


def to_shards(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, checkpoint / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (checkpoint / "model.safetensors").unlink()


def to_nested_config(checkpoint: Path) -> None:
    def nest(values: dict[str, Any]) -> None:
        top = {"model_type", "architectures", "vision_config", "logit_bias", "score_token_id", "torch_dtype"}
        top |= {name for name in values if name.endswith("_token_id")}
        values["text_config"] = {name: values.pop(name) for name in list(values) if name not in top}

    change_json(checkpoint / "config.json", nest)


def add_language_head(checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(400, 64)}))


@pytest.mark.parametrize("change", [to_new_names, to_shards, to_nested_config, add_language_head])
def test_every_layout_gives_the_same_bits(
    tiny_checkpoint: Path, checkpoint: Path, change: Callable[[Path], None]
) -> None:
    expected = load_reranker(str(tiny_checkpoint), device="cpu").score(PAIRS)
    change(checkpoint)
    np.testing.assert_array_equal(load_reranker(str(checkpoint), device="cpu").score(PAIRS), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("score.2.bias"), r"1 missing: score\.2\.bias"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), r"1 unexpected: model\.language_model\.extra"),
        (lambda t: t.update({"score.0.bias": torch.zeros(3)}), r"score\.0\.bias \(3,\), not \(64,\)"),
        (lambda t: t.update({"score.0.bias": torch.zeros(64, dtype=torch.float64)}), "type F64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    change_tensors(checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        load_reranker(str(checkpoint), device="cpu")


def only_pickles(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")


def missing_shard(checkpoint: Path) -> None:
    to_shards(checkpoint)
    (checkpoint / "b.safetensors").unlink()


def torn_file(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def small_vocabulary(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", lambda values: values.update(vocab_size=300))
    change_tensors(
        checkpoint,
        lambda tensors: tensors.update(
            {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:300].clone()}
        ),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (only_pickles, "only pytorch_model.bin, which could run code"),
        (missing_shard, "shards are missing: b.safetensors"),
        (torn_file, "not a whole safetensors file"),
        (small_vocabulary, "token ids up to 399 but an embedding of 300"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: change_json(folder / "config.json", lambda v: v.update(model_type="bert")), "'bert'"),
        (lambda folder: change_json(folder / "config.json", lambda v: v.pop("image_token_id")), "names no image_token"),
        (lambda folder: change_json(folder / "config.json", lambda v: v.update(use_sliding_window=True)), "sliding"),
        (lambda folder: change_json(folder / "config.json", lambda v: v.update(hidden_act="x")), "does not describe"),
    ],
)
def test_what_is_doubtful_is_refused(checkpoint: Path, change: Callable[[Path], Any], message: str) -> None:
    change(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        load_reranker(str(checkpoint), device="cpu")


def test_torn_weights_are_refused_where_a_job_is_planned(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])  # the header is whole
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors file"):
        identify(CheckpointSpec(str(checkpoint)))


def test_what_the_hubs_client_logs_is_logged_once() -> None:
    """It has a handler of its own beside the root's. In a process of its own, which asks no hub."""
    code = (
        "import logging\nfrom lakerank.errors import CheckpointError\nfrom lakerank.model.checkpoint import locate\n"
        "logging.basicConfig()\ntry:\n    locate('some/model', 'a1')\n"
        "except CheckpointError as error:\n    print(error)\n"
        "logging.getLogger('huggingface_hub.file_download').warning('Retrying')"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("some/model at a1: ")
    assert done.stderr.count("Retrying") == 1


def test_a_hub_id_needs_a_revision() -> None:
    with pytest.raises(CheckpointError, match=r"set model\.revision"):
        locate("someone/some-model")
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        locate("no/such/folder")


def test_a_placeholder_is_no_revision() -> None:
    with pytest.raises(CheckpointError, match=r"model\.revision is '<commit>'; put the checkpoint's commit"):
        locate("jinaai/jina-reranker-v3", "<commit>")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes(tiny_checkpoint: Path, dtype: str) -> None:
    exact = load_reranker(str(tiny_checkpoint), device="cpu").score(PAIRS)
    rounded = load_reranker(str(tiny_checkpoint), device="cpu", dtype=dtype)
    assert rounded.dtype == dtype
    np.testing.assert_allclose(rounded.score(PAIRS), exact, atol=0.1)


def test_auto_is_the_stored_type(checkpoint: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    change_tensors(checkpoint, halve)
    assert read_settings(checkpoint).dtype == "bfloat16"
    with pytest.raises(CheckpointError, match="dtype 'int8'"):
        read_settings(checkpoint, "int8")


def test_a_worker_knows_the_drivers_checkpoint(tiny_checkpoint: Path, checkpoint: Path) -> None:
    identity = identify(CheckpointSpec(str(tiny_checkpoint)))
    assert confirm(identity, CheckpointSpec(str(checkpoint))) == replace(identity, folder=str(checkpoint.resolve()))
    spec, named = CheckpointSpec(str(checkpoint)), replace(identity, fingerprint="the driver's")
    scorer = ScorerIdentity("the driver's", identity.logit_bias, (named,))
    assert spec.load("cpu", Limits(), RuntimeOptions(), scorer).fingerprint == "the driver's"
    change_tensors(checkpoint, lambda tensors: tensors["score.0.bias"].add_(1))  # of the same size
    with pytest.raises(CheckpointError, match="not the checkpoint that the job was planned with"):
        spec.load("cpu", Limits(), RuntimeOptions(), scorer)


def test_a_quick_checksum_samples_large_files(tmp_path: Path) -> None:
    file = tmp_path / "large"
    content = bytearray(WHOLE_BYTES + 1000)
    file.write_bytes(content)
    before = quick_checksum([file])
    for place in (0, len(content) - 1):  # the first and the last bytes are always read
        content[place] ^= 1
        file.write_bytes(content)
        assert quick_checksum([file]) != before
        content[place] ^= 1
    file.write_bytes(content + b"0")
    assert quick_checksum([file]) != before


@pytest.mark.parametrize(("stored", "expected"), [("float32", "float32"), ("float16", "float32")])
def test_types_without_units_are_computed_in_float32(stored: str, expected: str) -> None:
    assert supported_dtype(stored, torch.device("cpu")) == expected


def test_fingerprint_covers_what_is_computed(checkpoint: Path) -> None:
    def name() -> str:
        return identify(CheckpointSpec(str(checkpoint))).fingerprint

    names = [name(), identify(CheckpointSpec(str(checkpoint), dtype="bfloat16")).fingerprint]
    names.append(identify(CheckpointSpec(str(checkpoint)), Limits(max_pixels=400_000)).fingerprint)
    change_json(checkpoint / "config.json", lambda values: values.update(logit_bias=1.5))
    assert identify(CheckpointSpec(str(checkpoint))).logit_bias == 1.5
    names.append(name())
    change_tensors(checkpoint, lambda tensors: tensors["score.2.bias"].add_(1))
    names.append(name())
    change_json(checkpoint / "tokenizer.json", lambda values: values.update(version="1.0", model=values["model"]))
    names.append(name())
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    names.append(name())
    assert len(set(names)) == len(names)


def test_fingerprint_does_not_cover_the_path(tiny_checkpoint: Path, checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", lambda values: values.update(_name_or_path="elsewhere"))
    assert (
        identify(CheckpointSpec(str(checkpoint))).fingerprint
        == identify(CheckpointSpec(str(tiny_checkpoint))).fingerprint
    )
    loaded = load_reranker(str(checkpoint), device="cpu")
    assert loaded.fingerprint == identify(CheckpointSpec(str(checkpoint))).fingerprint


def test_identify_counts_without_torch(tiny_checkpoint: Path) -> None:
    expected = sum(tensor.numel() for tensor in load_file(tiny_checkpoint / "model.safetensors").values())
    script = (
        "import sys\n"
        "from lakerank.model.spec import CheckpointSpec, identify\n"
        f"identity = identify(CheckpointSpec({str(tiny_checkpoint)!r}))\n"
        "assert not {'torch', 'transformers', 'pyspark'} & sys.modules.keys()\n"
        "print(identity.parameters, identity.logit_bias)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(expected), "2.65"]
