"""Adapters: merged as peft merges them, whichever naming they were trained with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lakerank.errors import CheckpointError
from lakerank.model.api import load_reranker
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.weights import load_network
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import Document, Query

#: peft asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PAIRS = [(Query("q", text="red apple"), Document("d", text="A red apple"))]
TARGETS = r"(?:.*\.)?language_model\.layers\.\d+\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)"


@pytest.fixture(params=["alpha_over_rank", "rank_stabilised"])
def trained(tiny_checkpoint: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, dict[str, Any]]:
    """An adapter saved by peft, and the state that peft merges it to."""
    network = load_network(tiny_checkpoint, read_settings(tiny_checkpoint))
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=TARGETS,
        modules_to_save=["score"],
        use_rslora=request.param == "rank_stabilised",
        rank_pattern={"mlp.up_proj": 2},
        alpha_pattern={"self_attn.q_proj": 5},
    )
    adapted = get_peft_model(network, config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    merged = adapted.merge_and_unload()
    return tmp_path / "adapter", {name: tensor.clone() for name, tensor in merged.state_dict().items()}


def test_merges_as_peft_does(tiny_checkpoint: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    adapter, expected = trained
    network = load_network(tiny_checkpoint, read_settings(tiny_checkpoint), adapter=str(adapter))
    plain = load_network(tiny_checkpoint, read_settings(tiny_checkpoint)).state_dict()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, plain[name])}
    assert len(changed) == 2 * 7 + 4, "seven weights a layer, and the score head"
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)


def test_old_names_merge_to_the_same(tiny_checkpoint: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    adapter, _ = trained
    expected = load_reranker(str(tiny_checkpoint), adapter=str(adapter), device="cpu").score(PAIRS)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({re.sub(r"model\.language_model\.", "model.", name): tensor for name, tensor in tensors.items()}, file)
    np.testing.assert_array_equal(
        load_reranker(str(tiny_checkpoint), adapter=str(adapter), device="cpu").score(PAIRS), expected
    )
    plain = load_reranker(str(tiny_checkpoint), device="cpu")
    assert abs(plain.score(PAIRS)[0] - expected[0]) > 1e-3
    assert identify(CheckpointSpec(str(tiny_checkpoint), adapter=str(adapter))).fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias 'all'"), ({"peft_type": "IA3"}, "peft_type 'IA3'")],
)
def test_other_kinds_are_refused(
    tiny_checkpoint: Path, trained: tuple[Path, dict[str, Any]], setting: dict[str, Any], message: str
) -> None:
    adapter, _ = trained
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    with pytest.raises(CheckpointError, match=message):
        load_reranker(str(tiny_checkpoint), adapter=str(adapter), device="cpu")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", (4, 64), "no module of this checkpoint"),
        ("base_model.model.score.4.weight", (4, 64), "has no place in this checkpoint"),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            (4, 32),
            "another checkpoint",
        ),
    ],
)
def test_tensors_without_a_place_are_refused(
    tiny_checkpoint: Path, trained: tuple[Path, dict[str, Any]], name: str, shape: tuple[int, int], message: str
) -> None:
    adapter, _ = trained
    file = adapter / "adapter_model.safetensors"
    old = {re.sub(r"model\.language_model\.", "model.", name): tensor for name, tensor in load_file(file).items()}
    save_file(old | {name: torch.zeros(shape)}, file)
    with pytest.raises(CheckpointError, match=message):
        load_reranker(str(tiny_checkpoint), adapter=str(adapter), device="cpu")


def test_a_torn_adapter_is_refused_where_a_job_is_planned(
    trained: tuple[Path, dict[str, Any]], tiny_checkpoint: Path
) -> None:
    file = trained[0] / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: not a whole safetensors file"):
        identify(CheckpointSpec(str(tiny_checkpoint), adapter=str(trained[0])))


def test_pickles_are_refused(tiny_checkpoint: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    adapter, _ = trained
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load_reranker(str(tiny_checkpoint), adapter=str(adapter), device="cpu")
