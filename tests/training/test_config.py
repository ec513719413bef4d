"""Training configs: faults are listed together, and the curriculum's settings are known from the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lakerank.errors import ConfigError
from lakerank_pictograms.curriculum.config import CurriculumConfig
from lakerank_training.config import TrainConfig, load_train_config, schema_of

CONF = Path(__file__).parents[2] / "conf"
STAGE = {"name": "pairs", "steps": 1, "groups": 2, "group_size": 3}


def test_faults_of_a_config_are_listed_together(training_config: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_train_config(training_config(stages=[], start={}), ["seed=x", "optimizer.clip=0"])
    assert len(raised.value.faults) == 4


@pytest.mark.parametrize(
    ("name", "schema"),
    [("train-embedded", CurriculumConfig), ("train-lora", TrainConfig), ("train-clicks", TrainConfig)],
)
def test_configs_in_conf_are_sound(name: str, schema: type[TrainConfig]) -> None:
    assert type(load_train_config(CONF / f"{name}.yaml")) is schema


@pytest.mark.parametrize(
    "change",
    ["stages.0.stepz=1", "stages.0.steps=0", "stages.0.ranking=lambdarank", "negatives.depht=1", "lora.rank=0"],
)
def test_records_are_checked_as_sections_are(training_config: Callable[..., Path], change: str) -> None:
    with pytest.raises(ConfigError, match=change.split("=")[0]):
        load_train_config(training_config(), [change])


def test_a_switch_is_no_number_in_a_record_either(training_config: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"lora\.rank: expected a number \(found true\)"):
        load_train_config(training_config(mode="lora", lora={"rank": True}))


def test_patience_needs_slices(training_config: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"patience needs evaluation\.slices"):
        load_train_config(training_config(), ["evaluation.patience=2", "evaluation.slices={}"])


@pytest.mark.parametrize("output", ["s3://bucket/out", "file:///tmp/out"])
def test_an_output_that_is_no_path_is_refused(training_config: Callable[..., Path], output: str) -> None:
    with pytest.raises(ConfigError, match=f"output: {output} is a URI"):
        load_train_config(training_config(), [f"output={output}"])


def test_distillation_and_negatives_need_their_tables(
    training_config: Callable[..., Path], plain_lake: dict[str, str]
) -> None:
    both = STAGE | {"hard_negatives": 1, "distillation_weight": 1}
    with pytest.raises(ConfigError) as raised:
        load_train_config(training_config(stages=[both]), ["negatives.depth=1", "negatives.skip=1"])
    assert len(raised.value.faults) == 3
    followed = training_config(lake=plain_lake | {"teacher": "teacher"}, stages=[STAGE | {"distillation_weight": 1}])
    with pytest.raises(ConfigError, match="pairs: distillation_weight needs hard_negatives"):
        load_train_config(followed)


def test_a_table_that_a_slice_does_not_name_is_the_lake_s(training_config: Callable[..., Path]) -> None:
    path = training_config(evaluation={"slices": {"learned": {}, "held out": {"queries": "other"}}})
    config = load_train_config(path, ["lake.qrels=clicks"])
    learned, held_out = (config.evaluation.slices[name] for name in ("learned", "held out"))
    assert learned.addresses == config.lake.addresses
    assert held_out.addresses == (config.lake.documents, "other", "clicks")


def test_settings_of_the_curriculum_need_its_recipe(training_config: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_train_config(training_config(), ["tap=2", "stages.0.bag=true", "start.shape.layers=3", "augment=true"])
    faults = "\n".join(raised.value.faults)
    assert all(name in faults for name in ("tap", "stages.0.bag", "start.shape", "augment"))
    assert type(load_train_config(training_config(), ["recipe=curriculum", "tap=1"])) is CurriculumConfig


def test_without_the_repository_the_curriculum_is_named_as_missing() -> None:
    with pytest.raises(ConfigError, match=r"recipe: lakerank_pictograms_that_is_not_there .* run from the repository"):
        schema_of({"recipe": "curriculum"}, {"curriculum": "lakerank_pictograms_that_is_not_there"})
