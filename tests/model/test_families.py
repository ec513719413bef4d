"""The registry: every published config.json finds its family, and a scorer's name covers what the family computes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from checkpoints.encoders import write_bge, write_jina
from lakerank.errors import CheckpointError
from lakerank.fingerprint import fingerprint
from lakerank.limits import Limits
from lakerank.model.checkpoint import file_hash
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.registry import FAMILIES, ModelFamily, family_of
from lakerank.model.spec import CheckpointSpec, RuntimeOptions, identify

#: What tells published checkpoints apart: of each config.json, as it is on the hub, the keys that say what it is.
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "jina-reranker-m0": [
        {
            "model_type": "qwen2_vl",
            "architectures": ["JinaVLForRanking"],
            "auto_map": {"AutoModel": "modeling.JinaVLForRanking"},
        }
    ],
    "monoqwen2-vl": [{"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]}],
    "qwen3-vl-reranker": [{"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}],
    "qwen3-reranker": [{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}],
    "bge-reranker": [{"model_type": "xlm-roberta", "architectures": ["XLMRobertaForSequenceClassification"]}],
    "bert-reranker": [
        {
            "model_type": "bert",
            "architectures": ["BertForSequenceClassification"],
            "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
        }
    ],
    "kalm-reranker": [{"model_type": "t5gemma2", "architectures": ["T5Gemma2ForConditionalGeneration"]}],
    "modernbert-reranker": [
        {"model_type": "modernbert", "architectures": ["ModernBertForSequenceClassification"]},
        {"model_type": "modernbert", "architectures": ["ModernBertModel"]},
    ],
    "jina-reranker-v2": [
        {
            "architectures": ["XLMRobertaForSequenceClassification"],
            "auto_map": {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig"},
            "use_flash_attn": True,
        }
    ],
}


@pytest.fixture(scope="module")
def bge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bge")
    write_bge(folder)
    return folder


def test_every_family_is_known_by_a_published_config() -> None:
    assert {family.name for family in FAMILIES} == PUBLISHED.keys()


@pytest.mark.parametrize(
    ("name", "config"), [(name, values) for name, configs in PUBLISHED.items() for values in configs]
)
def test_a_published_config_is_of_one_family(name: str, config: dict[str, Any]) -> None:
    assert [family.name for family in FAMILIES if family.recognises(config)] == [name]
    assert family_of(config, None, "here").name == name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_familys_package_has_what_the_registry_imports(family: ModelFamily) -> None:
    assert callable(import_module(f"{family.package}.config").read_info)
    assert callable(import_module(f"{family.package}.load").load)


def test_no_two_families_make_the_same_name_for_a_scorer() -> None:
    assert len({family.name for family in FAMILIES}) == len({family.protocol for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES[1:]:
        assert str(family.protocol).startswith(f"{family.name}/")


def test_an_unknown_architecture_is_told_what_there_is() -> None:
    config = {"model_type": "deberta-v2", "architectures": ["DebertaV2ForSequenceClassification"]}
    with pytest.raises(CheckpointError, match=r"'deberta-v2'.*DebertaV2ForSequenceClassification.*say which") as caught:
        family_of(config, None, "here")
    with pytest.raises(CheckpointError, match=r"model\.family 'deberta' is none of") as named:
        family_of(config, "deberta", "here")
    for family in FAMILIES:
        assert family.name in str(caught.value)
        assert family.name in str(named.value)


def test_the_config_may_say_the_family(bge: Path) -> None:
    config = json.loads((bge / "config.json").read_text()) | {"architectures": ["Renamed"]}
    assert family_of(config, "bge-reranker", "here").name == "bge-reranker"
    with pytest.raises(CheckpointError, match=r"model_type 'xlm-roberta' in config\.json, not 'qwen2_vl'"):
        identify(CheckpointSpec(str(bge), family="jina-reranker-m0"))


def test_scores_in_a_lake_keep_the_name_of_their_scorer(tiny_checkpoint: Path) -> None:
    """jina-reranker-m0's fingerprint holds exactly what it held when there was no other family."""
    settings = read_settings(tiny_checkpoint, "float32")
    provenance = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")
    parts = {
        "protocol": 3,
        "weights": [file_hash(tiny_checkpoint / "model.safetensors")],
        "config": {key: value for key, value in settings.config.items() if key not in provenance},
        "tokenizer": file_hash(tiny_checkpoint / "tokenizer.json"),
        "adapter": None,
        "dtype": "float32",
        "logit_bias": settings.logit_bias,
        "score_token_id": settings.score_token_id,
        "patches": asdict(settings.patches),
        "limits": {name: value for name, value in asdict(Limits()).items() if name != "frames"},
    }
    assert identify(CheckpointSpec(str(tiny_checkpoint), dtype="float32")).fingerprint == fingerprint(parts)


def test_a_length_is_brought_down_to_what_the_model_has(bge: Path, tmp_path: Path) -> None:
    write_jina(tmp_path)  # 130 positions, two of them before the first token
    assert identify(CheckpointSpec(str(bge)), Limits(max_length=1024)).limits.max_length == 256
    assert identify(CheckpointSpec(str(tmp_path))).limits == Limits(max_length=128, max_query_length=64)
    assert identify(CheckpointSpec(str(bge), max_length=100)).limits == Limits(max_length=100, max_query_length=75), (
        "FlagEmbedding's share"
    )
    with pytest.raises(CheckpointError, match=r"model\.max_length 257, but bge-reranker has 256 positions"):
        identify(CheckpointSpec(str(bge), max_length=257))


def test_a_published_length_may_be_raised_for_one_model(tmp_path: Path) -> None:
    write_bge(tmp_path, positions=1100)
    assert identify(CheckpointSpec(str(tmp_path))).limits.max_length == 512
    assert identify(CheckpointSpec(str(tmp_path), max_length=1024)).limits.max_length == 1024


def test_limits_that_no_score_depends_on_are_not_in_its_name(bge: Path, tiny_checkpoint: Path) -> None:
    few = Limits(max_pixels=100_000)
    assert identify(CheckpointSpec(str(bge)), few).fingerprint == identify(CheckpointSpec(str(bge))).fingerprint
    assert (
        identify(CheckpointSpec(str(bge), max_length=64)).fingerprint != identify(CheckpointSpec(str(bge))).fingerprint
    )
    assert (
        identify(CheckpointSpec(str(tiny_checkpoint)), few).fingerprint
        != identify(CheckpointSpec(str(tiny_checkpoint))).fingerprint
    )


def test_an_adapter_that_nobody_merges_is_refused(bge: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"bge-reranker takes no adapter"):
        identify(CheckpointSpec(str(bge), adapter=str(tmp_path)))


def test_an_adapter_from_a_hub_needs_its_revision(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"some/adapter: set model\.adapter_revision"):
        identify(CheckpointSpec(str(tiny_checkpoint), adapter="some/adapter"))


def test_a_worker_loads_by_the_drivers_identity(bge: Path) -> None:
    spec = CheckpointSpec(str(bge), max_length=80)
    scorer = spec.identify(Limits())
    assert spec.load("cpu", Limits(), RuntimeOptions(), scorer).fingerprint == scorer.fingerprint


def test_planning_with_any_family_needs_no_torch(bge: Path) -> None:
    code = (
        "import sys\n"
        "from lakerank.model.spec import CheckpointSpec\n"
        "from lakerank.limits import Limits\n"
        f"scorer = CheckpointSpec({str(bge)!r}).identify(Limits())\n"
        "print(scorer.readings[0].document_major, 'torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3
