"""The registry: what each family has, and that a scorer's name covers what the family computes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest

from checkpoints.encoders import write_bge, write_jina
from lakerank.errors import CheckpointError
from lakerank.fingerprint import fingerprint
from lakerank.limits import Limits
from lakerank.model.checkpoint import file_hash
from lakerank.model.facts import CheckpointFacts
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.registry import FAMILIES, WIDE, ModelFamily, family_named, family_of
from lakerank.model.spec import CheckpointSpec, RuntimeOptions, identify

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bge")
    write_bge(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_familys_package_has_what_the_registry_imports(family: ModelFamily) -> None:
    assert callable(import_module(f"{family.package}.config").read_info)
    assert callable(import_module(f"{family.package}.load").load)


def test_no_two_families_make_the_same_name_for_a_scorer() -> None:
    assert len({family.name for family in FAMILIES}) == len({family.protocol for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES[1:]:
        assert str(family.protocol).startswith(f"{family.name}/")


def test_an_unknown_checkpoint_is_told_what_was_found_and_what_there_is() -> None:
    facts = CheckpointFacts({"model_type": "deberta-v2", "architectures": ["DebertaV2ForSequenceClassification"]})
    with pytest.raises(CheckpointError, match=r"'deberta-v2'.*DebertaV2ForSequenceClassification") as caught:
        family_of(facts, "here")
    with pytest.raises(CheckpointError, match=r"model\.family 'deberta' is none of") as named:
        family_named("deberta")
    table = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for family in (*FAMILIES, WIDE):
        assert family.name in str(caught.value)
        assert family.name in str(named.value)
        assert f"\n| `{family.name}` |" in table, "where both send people"
    assert len(str(named.value)) < 500 > len(str(caught.value)) - len(facts.described())


def test_the_config_may_say_the_family(bge: Path, tmp_path: Path) -> None:
    shutil.copytree(bge, tmp_path, dirs_exist_ok=True)
    config = json.loads((bge / "config.json").read_text()) | {"architectures": ["Renamed"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no known reranker"):
        identify(CheckpointSpec(str(tmp_path)))
    assert identify(CheckpointSpec(str(tmp_path), family="bge-reranker")).family == "bge-reranker"
    with pytest.raises(CheckpointError, match=r"model_type 'xlm-roberta' in config\.json, not 'qwen2_vl'"):
        identify(CheckpointSpec(str(bge), family="jina-reranker-m0"))


def test_scores_in_a_lake_keep_the_name_of_their_scorer(tiny_checkpoint: Path) -> None:
    """jina-reranker-m0's fingerprint holds exactly what it held when there was no other family."""
    settings = read_settings(tiny_checkpoint, "float32")
    provenance = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")
    parts = {
        "protocol": 4,
        "weights": [file_hash(tiny_checkpoint / "model.safetensors")],
        "config": {key: value for key, value in settings.config.items() if key not in provenance},
        "tokenizer": file_hash(tiny_checkpoint / "tokenizer.json"),
        "adapter": None,
        "dtype": "float32",
        "logit_bias": settings.logit_bias,
        "score_token_id": settings.score_token_id,
        "patches": asdict(settings.patches),
        "limits": {name: value for name, value in asdict(Limits()).items() if name not in ("frames", "resize")},
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
