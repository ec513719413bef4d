"""Training configs. Defaults live here; conf/train-*.yaml show real ones.

A config ends in `run`: what is below takes records and plain values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, model_validator

from lakerank.config import ColumnsConfig, Device
from lakerank.credentials import StorageOptions, redacted
from lakerank.errors import ConfigError
from lakerank.lake import scheme
from lakerank.settings import Section, apply_override, read_yaml, validate
from lakerank_training.batches import NegativeRule, TrainingStage
from lakerank_training.model import Lora

#: The packages of recipes. That of `curriculum`, by which the bundled checkpoint learns from scratch, is of the
#: repository alone.
RECIPES = {"curriculum": "lakerank_pictograms.curriculum", "listwise": "lakerank_training.listwise"}

_TABLES = {"documents", "queries", "qrels"}

#: What may change between resumptions of a run: paths, where and in how much memory a step is computed, when
#: the run is measured, saved and stopped. Of tables and checkpoint counts what they hold; stages have a rule of theirs.
_MAY_CHANGE: dict[str, Any] = {
    "lake": _TABLES | {"candidates", "teacher", "storage"},
    "start": {"path", "revision"},
    "lora": {"merge"},
    "optimizer": {"step_tokens"},
    "evaluation": {"every": True, "patience": True, "slices": {"__all__": _TABLES}},
    **dict.fromkeys(("stages", "device", "gradient_checkpointing", "threads", "checkpoint_every", "output"), True),
}


class TablesConfig(Section):
    """Three tables of a lake: files, folders or globs of Parquet."""

    documents: str
    queries: str
    qrels: str

    @property
    def addresses(self) -> tuple[str, str, str]:
        """Equal for two that name the same tables."""
        return self.documents, self.queries, self.qrels


class TrainingLakeConfig(TablesConfig):
    """What is trained on. `topic` and `kind` name extra columns: what a row is about, and what sort of row it is.

    `candidates`: a first stage's, to take hard negatives from. `teacher`: logits to distil (query_id, doc_id, logit;
    for instance another run's `ranked/`).
    """

    candidates: str | None = None
    teacher: str | None = None
    columns: ColumnsConfig = ColumnsConfig()
    storage: StorageOptions = StorageOptions()
    topic: str | None = None
    kind: str | None = None


class StartConfig(Section):
    """The checkpoint that training starts from."""

    FROM_SCRATCH: ClassVar[str] = "random weights"

    path: str
    revision: str | None = None


class OptimizerConfig(Section):
    """AdamW: linear warm-up, then a cosine down to `floor` of the rate.

    `step_tokens`: a step of more tokens is computed in several shards of whole groups, their gradients added.
    """

    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.02, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    floor: float = Field(default=0.02, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    step_tokens: int | None = Field(default=None, ge=1)


class SliceConfig(TablesConfig):
    """Held-out tables, or a part of them: the rows of these kinds, on either side.

    A table that it does not name is the training lake's. A slice of the very tables that are trained on says what was
    learned. Any other may not hold a query of theirs, nor, unless it has `same_topics`, one about the same topic.
    """

    same_topics: bool = False
    document_kinds: tuple[str, ...] = ()
    query_kinds: tuple[str, ...] = ()


class EvaluationConfig(Section):
    """nDCG@10 of queries over `candidates` documents of different topics, by direction, every `every` steps.

    `patience`: stop after so many evaluations in a row without a better mean, and leave the best weights, not the last.
    """

    every: int = Field(default=250, ge=1)
    candidates: int = Field(default=100, ge=2)
    patience: int | None = Field(default=None, ge=1)
    slices: dict[str, SliceConfig] = Field(default={})


class TrainConfig(Section):
    """A whole training config.

    Images keep their aspect and are brought under `picture_side`² pixels; texts are cut after so many tokens.
    """

    #: Fine-tuning, unless it names another.
    recipe: Literal["curriculum", "listwise"] | None = None
    lake: TrainingLakeConfig
    start: StartConfig
    mode: Literal["full", "lora"] = "full"
    lora: Lora = Lora()
    negatives: NegativeRule = NegativeRule()
    picture_side: int = Field(default=84, ge=56, multiple_of=28)
    max_document_tokens: int = Field(default=40, ge=1, le=8192)
    max_query_tokens: int = Field(default=24, ge=1, le=512)
    stages: tuple[TrainingStage, ...] = Field(min_length=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = 0
    device: Device = "cpu"
    bf16: bool = False
    gradient_checkpointing: bool = False
    threads: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    output: str

    @model_validator(mode="before")
    @classmethod
    def _tables_of_slices(cls, values: Any) -> Any:
        """Default each slice's tables to the lake's; malformed values are reported elsewhere."""
        match values:
            case {"lake": {**lake}, "evaluation": {"slices": {**slices}, **others}}:
                tables = {name: lake[name] for name in TablesConfig.model_fields if name in lake}
                filled = {name: tables | part if isinstance(part, dict) else part for name, part in slices.items()}
                return values | {"evaluation": others | {"slices": filled}}
        return values

    def to_yaml(self) -> str:
        """The config as resolved, every value spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def lasting(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What must not change while a run is on its way, and its stages."""
        return self.model_dump(mode="json", exclude=_MAY_CHANGE), self.model_dump(mode="json")["stages"]

    def contradictions(self) -> list[str]:
        """What cannot go together, although each value alone could be."""
        patience, slices, negatives = self.evaluation.patience, self.evaluation.slices, self.negatives
        faults = {
            f"output: {redacted(self.output)} is a URI; give a path: a run writes to a folder and resumes from it":
                scheme(self.output),
            "lora.merge needs mode: lora": self.lora.merge and self.mode != "lora",
            "evaluation.patience needs evaluation.slices, to see whether anything gets better": patience and not slices,
            "evaluation.patience needs a ranking in the last stage: a run leaves only weights that it has evaluated":
                patience and self.stages[-1].ranking is None,
            f"negatives: skip {negatives.skip} leaves nothing of depth {negatives.depth}":
                negatives.skip >= negatives.depth,
        }  # fmt: skip
        for stage in self.stages:
            at, distils = f"stages: {stage.name}:", stage.distillation_weight
            faults |= {
                f"{at} hard_negatives needs lake.candidates, to take them from":
                    stage.hard_negatives and self.lake.candidates is None,
                f"{at} distillation_weight needs lake.teacher, whose logits to follow":
                    distils and self.lake.teacher is None,
                f"{at} distillation_weight needs hard_negatives, 1 or more, from lake.candidates: the teacher has "
                "scored hardly two of the documents drawn for a query at random":
                    distils and not stage.hard_negatives,
                f"{at} no loss has a weight above 0": not any(stage.loss_weights),
            }  # fmt: skip
        return [fault for fault, is_there in faults.items() if is_there]


def load_train_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML config and apply `section.key=value` overrides.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds faults; all of them are listed.
    """
    values = read_yaml(path)
    faults = [fault for override in overrides if (fault := apply_override(TrainConfig, values, override))]
    return validate(schema_of(values), values, faults, str(path), overrides)


def schema_of(values: Mapping[str, Any], recipes: Mapping[str, str] = RECIPES) -> type[TrainConfig]:
    """Of the recipe that a config names."""
    name = values.get("recipe")
    if not isinstance(name, str) or name not in recipes:
        return TrainConfig
    try:
        schema: type[TrainConfig] = getattr(import_module(f"{recipes[name]}.config"), f"{name.capitalize()}Config")
    except ModuleNotFoundError as error:
        raise ConfigError([f"recipe: {recipes[name]} is not installed; run from the repository"]) from error
    return schema
