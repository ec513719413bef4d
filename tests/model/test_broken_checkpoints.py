"""Broken checkpoints: each ends in a CheckpointError that names the file and the field, in seconds."""

from __future__ import annotations

import json
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, pre_tokenizers

from lakerank.errors import CheckpointError
from lakerank.model.api import load_reranker
from lakerank.model.checkpoint import read_json, resolve_dtype
from lakerank.model.inputs import RejectedInput
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.weights import load_network
from lakerank.model.preprocess.tokenizer import TextTokenizer, read_tokenizer
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import RejectReason
from lakerank_benchmark.checkpoints import random_checkpoint
from lakerank_pictograms.network import Shape

M0, QWEN3, QWEN3_VL = "jina-reranker-m0", "qwen3-reranker", "qwen3-vl-reranker"
SHAPE = Shape(0, 64, 128, 3, 4, 2, 2, 64, 2)
FACTOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, Path]:
    """A random checkpoint of each kind of decoder; not to be written to."""
    folder = tmp_path_factory.mktemp("families")
    return {
        M0: tiny_checkpoint,
        **{name: random_checkpoint(folder, name, SHAPE, "float32") for name in (QWEN3, QWEN3_VL)},
    }


def change(file: Path, values: dict[str, Any]) -> None:
    """Give a JSON file other values; a dotted name is that of a nested one."""
    stored = read_json(file) if file.is_file() else {}
    for name, value in values.items():
        *parents, last = name.split(".")
        part = stored
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = value
    file.write_text(json.dumps(stored))


def refused(folder: Path, message: str, **options: Any) -> None:
    """Identifying, or else loading, ends in a CheckpointError within seconds."""
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=message):
        load_reranker(str(folder), device="cpu", **options)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        (M0, {"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, but the weights have 2 layers"),
        (M0, {"vision_config.depth": 10**6}, "depth is 1000000, but the weights have 1 layers"),
        (M0, {"num_attention_heads": 0}, "num_attention_heads is 0"),
        (M0, {"vision_config.num_heads": "2"}, r"vision_config\.num_heads is '2'"),
        (M0, {"vision_config.patch_size": [14, 14]}, r"vision_config\.patch_size is \[14, 14\]"),
        (M0, {"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        (M0, {"hidden_size": 2**30}, "do not fit config.json"),
        (M0, {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        (M0, {"initializer_range": float("inf")}, "initializer_range is inf"),
        (M0, {"vision_config.unread": [1.0, float("nan")]}, r"unread is \[1\.0, nan\]"),
        (M0, {"score_token_id": -1}, "score_token_id is -1"),
        (M0, {"logit_bias": "much"}, "logit_bias is 'much'"),
        (M0, {"vision_config": 3}, "vision_config is no object"),
        (M0, {"num_key_value_heads": 3}, "num_key_value_heads|of another shape"),
        (M0, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        (M0, {"rope_scaling.mrope_section": [1, 3, 3]}, "mrope_section"),
        (M0, {"rope_scaling.type": "dynamic", "rope_scaling.factor": 2.0}, "rope_type 'dynamic'"),
        (M0, {"rope_scaling.rope_theta": 5e5}, r"rope_theta is 1000000.0, but the network is built with 500000.0"),
        (M0, {"layer_types": ["full_attention", "sliding_attention"]}, "windows of attention"),
        (QWEN3, {"rope_scaling": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 9.0}, "built with 7.0"),
        (QWEN3, {"rope_parameters": {"rope_theta": 7.0}, "rope_scaling": {"type": "default"}}, "rope_theta"),
        (QWEN3, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (QWEN3, {"text_config": {"hidden_size": 64}}, "does not describe"),
        (QWEN3_VL, {"rope_theta": 12.0}, r"config\.json: rope_theta is 12\.0, but the network is built with"),
        (QWEN3_VL, {"rms_norm_eps": 0.5}, r"rms_norm_eps is 0\.5, but the network is built with"),
        (QWEN3_VL, {"hidden_act": "relu"}, "hidden_act is 'relu', but the network is built with 'silu'"),
        (QWEN3_VL, {"use_sliding_window": True}, "use_sliding_window"),
        (QWEN3_VL, {"vision_end_token_id": 10**6}, "token ids up to 1000000, but an embedding of"),
    ],
)
def test_config_json_is_what_the_network_is_built_with(
    families: dict[str, Path], tmp_path: Path, family: str, values: dict[str, Any], message: str
) -> None:
    shutil.copytree(families[family], tmp_path, dirs_exist_ok=True)
    change(tmp_path / "config.json", values)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": 16}, "patch_size is 16, not 14"),
        ({"merge_size": 4}, "merge_size is 4, not 2"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"resample": 2}, "resample is 2, not 3"),
        ({"rescale_factor": 1}, "rescale_factor is 1, not 1/255"),
        ({"image_mean": [0.5]}, r"image_mean is \[0\.5\], not three numbers"),
        ({"image_std": "none"}, "image_std is 'none'"),
    ],
)
def test_images_are_cut_as_preprocessor_config_says(
    tiny_checkpoint: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    change(tmp_path / "preprocessor_config.json", values)
    refused(tmp_path, rf"preprocessor_config\.json: {message}")


def header(**tensors: Any) -> bytes:
    """A safetensors file of this header, with 16 bytes of data."""
    content = json.dumps(tensors).encode()
    return struct.pack("<Q", len(content)) + content + bytes(16)


#: The library cuts the prefix's length off the second half of the merge, within a character, and cannot say so.
ABORTING_TOKENIZER = json.dumps(
    {"model": {"type": "BPE", "continuing_subword_prefix": "x", "vocab": {"a": 0, "é": 1}, "merges": [["a", "é"]]}}
).encode()

ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", struct.pack("<Q", 2**62) + b"{}", "not a whole safetensors file .*header too large"),
        ("model.safetensors", b"abc", "not a whole safetensors file"),
        ("model.safetensors", header(a=ENTRY, b=ENTRY), "invalid offset for tensor `[ab]`"),
        ("model.safetensors", header(a=ENTRY | {"shape": [400]}), "not a whole safetensors file .*invalid shape"),
        ("model.safetensors", header(a=ENTRY | {"shape": [-1, -4]}), "not a whole safetensors file .*integer `-1`"),
        ("model.safetensors", header(a=ENTRY | {"shape": "4"}), "not a whole safetensors file"),
        ("model.safetensors", header(a=ENTRY | {"data_offsets": [0]}), "not a whole safetensors file"),
        ("model.safetensors.index.json", b'{"weight_map": ["a"]}', "weight_map does not name a file"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}', "weight_map does not name a file"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../model.safetensors"}}', "shards are missing: "),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "/etc/hostname"}}', "shards are missing: /etc"),
        ("config.json", b"[" * 10**6, "cannot be read as JSON"),
        ("config.json", b"\xff\xfe", "cannot be read as JSON"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "makes no token of a text"),
        ("tokenizer.json", b"{}", r"tokenizer\.json: cannot be loaded"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "tokenizer.json"),
        ("tokenizer.json", ABORTING_TOKENIZER, r"tokenizer\.json: damaged: it ends its reader \(SIGABRT in"),
    ],
)
def test_files_are_checked_where_a_job_is_planned(
    tiny_checkpoint: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    if "index" in name:
        (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        identify(CheckpointSpec(str(folder), dtype="float32"))
    assert str(folder) in str(error.value)


def test_a_type_is_refused_whatever_it_is_computed_in(tmp_path: Path) -> None:
    """Quantised weights, read as they are, are other weights."""
    (tmp_path / "model.safetensors").write_bytes(header(a=ENTRY | {"dtype": "F8_E4M3", "shape": [16]}))
    with pytest.raises(CheckpointError, match="a is of type F8_E4M3"):
        resolve_dtype(tmp_path, "float32")


def test_a_tensor_is_stored_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    again = name.replace("model.", "model.language_model.", 1)
    save_file({**tensors, again: tensors[name] * 2}, tmp_path / "model.safetensors")
    refused(tmp_path, "is stored under two names")
    (tmp_path / "model.safetensors").unlink()
    for shard, members in (("a.safetensors", tensors), ("b.safetensors", {name: tensors[name] * 2})):
        save_file(members, tmp_path / shard)
    index = {"weight_map": {**dict.fromkeys(tensors, "a.safetensors"), "x": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path, rf"b\.safetensors: {name} is in another file, too")


@pytest.mark.parametrize(
    ("config", "shapes", "message"),
    [
        (
            {"r": 2, "rank_pattern": {"(.*)(.*)(.*)(.*)(.*)(.*)(.*)\\3\\4\\5\\6\\7\\8\\9[A-Z]": 2}},
            {},
            r"rank_pattern: .*(time|long)",
        ),
        ({"r": 2, "rank_pattern": {"(": 2}}, {}, r"rank_pattern: missing \)"),
        ({"r": 2, "alpha_pattern": [1]}, {}, "alpha_pattern"),
        ({"r": 0}, {}, "r is 0 for"),
        ({"r": "two"}, {}, "r is 'two' for"),
        ({"r": 2, "lora_alpha": float("nan")}, {}, "lora_alpha is nan"),
        ({"r": 4}, {}, "rank 4"),
        ({"r": 2}, {"A": (2, 64, 1)}, "rank 2"),
        ({"r": 2, "modules_to_save": ["score"]}, {}, "no tensor of score"),
        ({"r": 2, "modules_to_save": 3}, {}, "cannot be loaded"),
    ],
)
def test_adapters(
    tiny_checkpoint: Path, tmp_path: Path, config: dict[str, Any], shapes: dict[str, Any], message: str
) -> None:
    shapes = {"A": (2, 64), "B": (64, 2)} | shapes
    save_file(
        {f"{FACTOR}{side}.weight": torch.ones(shape) for side, shape in shapes.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4} | config))
    refused(tiny_checkpoint, message, adapter=str(tmp_path))


def test_a_librarys_network_is_looked_at(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformers that passed the eps over, or computed other frequencies, would be noticed."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl

    settings = read_settings(tiny_checkpoint)
    rotary, norm = modeling_qwen2_vl.Qwen2VLRotaryEmbedding, modeling_qwen2_vl.Qwen2VLRMSNorm

    def other_frequencies(config: Any) -> Any:
        frequencies, scaling = original(config)
        return frequencies * 1.5, scaling

    original = rotary.compute_default_rope_parameters
    with monkeypatch.context() as library:
        library.setattr(rotary, "compute_default_rope_parameters", staticmethod(other_frequencies))
        with pytest.raises(CheckpointError, match="rotary frequencies are of another"):
            load_network(tiny_checkpoint, settings)
    monkeypatch.setattr(modeling_qwen2_vl, "Qwen2VLRMSNorm", lambda size, eps=None: norm(size, eps=1e-3))
    with pytest.raises(CheckpointError, match=r"rms_norm_eps 1e-06, but \S+ has 0\.001"):
        load_network(tiny_checkpoint, settings)


def test_a_pattern_that_takes_too_long_rejects_the_text(tiny_checkpoint: Path) -> None:
    tokenizer = read_tokenizer(tiny_checkpoint / "tokenizer.json")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a+)+$"), "isolated")
    with pytest.raises(RejectedInput) as error:
        TextTokenizer(tokenizer).encode("a" * 40 + "!")
    assert error.value.reason is RejectReason.TEXT_UNDECODABLE


ENDLESS = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}query document"


@pytest.mark.parametrize(
    ("files", "outcome"),
    [
        ({"modules.json": ["Transformer", "Pooling"]}, "modules.json lists Transformer, Pooling"),
        ({"config.json": {"auto_map": {"AutoModel": "modeling.Other"}}}, "its auto_map names code"),
        ({"config.json": {"classifier_from_token": ["0", "1"]}}, r"classifier_from_token is \['0', '1'\]"),
        ({"chat_template.jinja": "{{ messages[0].content }} {{ messages[1].content }}"}, "no chat template knows"),
        pytest.param({"chat_template.jinja": ENDLESS}, "the chat template reads", marks=pytest.mark.nightly),  # slow
        ({"1_LogitScore/config.json": {"true_token_id": 258, "false_token_id": None}}, "token-logit"),
        ({"config.json": {"classifier_from_token": ["no", "yes"]}}, QWEN3),
    ],
)
def test_a_language_model_with_another_score_is_not_taken_for_a_reranker(
    families: dict[str, Path], tmp_path: Path, files: dict[str, Any], outcome: str
) -> None:
    shutil.copytree(families[QWEN3], tmp_path, dirs_exist_ok=True)
    (tmp_path / "config_sentence_transformers.json").unlink()  # or the library's own family takes it
    for name, content in files.items():
        if name == "modules.json":
            (tmp_path / name).write_text(json.dumps([{"type": f"st.modules.{kind}"} for kind in content]))
        elif isinstance(content, str):
            (tmp_path / name).write_text(content)
        else:
            change(tmp_path / name, content)
    if " " in outcome:
        with pytest.raises(CheckpointError, match=rf"{outcome}.*model\.family.*qwen3-reranker"):
            identify(CheckpointSpec(str(tmp_path)))
    else:
        assert identify(CheckpointSpec(str(tmp_path))).family == outcome
    assert identify(CheckpointSpec(str(tmp_path), family=QWEN3)).family == QWEN3
