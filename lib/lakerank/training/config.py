"""The training config: what is read, what is trained, in which stages, and where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lakerank.config import StorageConfig, apply_override, describe, read_yaml
from lakerank.errors import ConfigError
from lakerank.lake.uris import redacted, scheme

Weight = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TablesConfig(_Section):
    """Three tables of a lake: files, folders or globs of Parquet."""

    documents: str
    queries: str
    qrels: str

    @property
    def addresses(self) -> tuple[str, str, str]:
        """Where the tables are: equal for two that name the same ones."""
        return self.documents, self.queries, self.qrels


class TrainingLakeConfig(TablesConfig):
    """What is trained on. `topic` and `kind` name extra columns: what a row is about, and what sort of row it is.

    `candidates`: a first stage's, to take hard negatives from. `teacher`: logits to distil (query_id, doc_id, logit;
    for instance another run's `ranked/`). `apart` maps a column to values of texts never paired with a picture.
    """

    candidates: str | None = None
    teacher: str | None = None
    storage: StorageConfig = StorageConfig()
    topic: str | None = None
    kind: str | None = None
    apart: dict[str, tuple[str, ...]] = {}


class ShapeConfig(_Section):
    """A network from scratch. Heads are `hidden_size / heads` wide: 32 is the least that M-RoPE divides well.

    `initialization`: normal with a standard deviation of 0.02, as Qwen2-VL's; or lecun, where a matrix that reads n
    values has 1/sqrt(n) (LeCun et al. 1998), without which a narrow network hardly passes on what it reads. local is
    lecun, but layers below `tap` begin as sums of the tokens near each, and layer `tap` by looking for what is alike
    (in the manner of mimetic initialization, Trockman and Kolter 2023).
    """

    vocabulary: int = Field(default=12288, ge=512)
    hidden_size: int = Field(default=192, ge=16)
    intermediate_size: int = Field(default=512, ge=16)
    layers: int = Field(default=6, ge=2)
    heads: int = Field(default=6, ge=1)
    key_value_heads: int = Field(default=3, ge=1)
    vision_depth: int = Field(default=4, ge=1)
    vision_width: int = Field(default=128, ge=16)
    vision_heads: int = Field(default=4, ge=1)
    initialization: Literal["normal", "lecun", "local"] = "normal"

    @model_validator(mode="after")
    def _divides(self) -> ShapeConfig:
        faults = [
            f"{name} {width} is not {parts} times a multiple of {multiple}"
            for name, width, parts, multiple in (
                ("hidden_size", self.hidden_size, self.heads, 8),
                ("heads", self.heads, self.key_value_heads, 1),
                ("vision_width", self.vision_width, self.vision_heads, 4),
            )
            if width % (parts * multiple)
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return self


class StartConfig(_Section):
    """Where training starts: a checkpoint (`path`), or a `shape` with fresh weights and a tokenizer of its own."""

    path: str | None = None
    revision: str | None = None
    shape: ShapeConfig | None = None

    @model_validator(mode="after")
    def _one(self) -> StartConfig:
        if (self.path is None) == (self.shape is None):
            raise ValueError("give either a path or a shape")
        return self


class LoraConfig(_Section):
    """Low-rank adaptation of the language model (Hu et al. 2021); the score head is trained whole, vision not.

    `merge`: also leave a whole checkpoint with the adapter merged into it, in float32.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    merge: bool = False


class NegativesConfig(_Section):
    """Which candidates count as irrelevant: places `skip` to `depth`, and, with `below`, those whose first-stage score
    is under that share of the best relevant candidate's (closer ones are taken for unjudged positives). For that, all
    candidates need scores above 0.
    """

    skip: int = Field(default=0, ge=0)
    depth: int = Field(default=100, ge=1)
    below: float | None = Field(default=None, gt=0, le=1)


class StageConfig(_Section):
    """Some steps of one kind. Each step draws `groups` groups of `group_size` topics, a document and a query each, and
    `hard_negatives` documents more for every query, from its candidates.

    A stage with `ranking: null` trains the layers below `tap` and where that one looks: query and document meet in
    the losses only. One that is `upper_only` trains what comes after, layers from there on and the head; one that is
    `layers_only` all layers and the head, so that rare words are not forgotten and pictures not learned by heart. One
    that is a `bag` trains what comes before the first layer, embeddings and the vision encoder: the mean of a row's
    tokens names its topic (fastText, Joulin et al. 2017) and, with `contrastive_weight`, finds the other side's rows
    of that topic, which costs little; the layers then start from tokens that mean something. One that is to `recall`
    first makes the MLP before layer `tap` a memory of the topics: it knows them by the proxies that earlier stages
    have learned. `only` keeps rows whose column holds one of the values, or nothing. A share of the groups, going
    over the stage from `mined[0]` to `mined[1]`, holds topics that are easily confused. A stage with a
    `learning_rate` starts the schedule anew at that peak (a warm restart, Loshchilov and Hutter 2017).
    """

    name: str
    steps: int = Field(ge=1)
    groups: int = Field(ge=1)
    group_size: int = Field(ge=2)
    hard_negatives: int = Field(default=0, ge=0)
    learning_rate: float | None = Field(default=None, gt=0)
    upper_only: bool = False
    layers_only: bool = False
    bag: bool = False
    recall: bool = False
    mined: tuple[float, float] = (0.0, 0.0)
    ranking: Literal["listnet", "ranknet"] | None = "listnet"
    ranking_weight: Weight = 1.0
    pointwise_weight: Weight = 0.5
    distillation_weight: Weight = 0.0
    contrastive_weight: Weight = 0.0
    proxy_weight: Weight = 0.0
    only: dict[str, tuple[str, ...]] = {}
    document_weights: dict[str, Weight] = {}
    query_weights: dict[str, Weight] = {}


class OptimizerConfig(_Section):
    """AdamW (Loshchilov and Hutter 2019): linear warm-up, then a cosine down to `floor` of the rate.

    `name: muon` changes the matrices of hidden layers by Muon (Jordan et al. 2024), scaled so that the same rates fit
    (Liu et al. 2025), and everything else by AdamW.

    `step_tokens`: a step of more tokens is computed in several shards of whole groups, their gradients added.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.02, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    floor: float = Field(default=0.02, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    step_tokens: int | None = Field(default=None, ge=1)


class SliceConfig(TablesConfig):
    """Held-out tables, or a part of them: the rows whose columns hold these values (on either side), or nothing.

    A table that it does not name is the training lake's. A slice of the very tables that are trained on says what was
    learned. Any other may not hold a query of theirs, nor, unless it has `same_topics`, one about the same topic.
    """

    same_topics: bool = False
    document_only: dict[str, tuple[str, ...]] = {}
    query_only: dict[str, tuple[str, ...]] = {}


class EvaluationConfig(_Section):
    """nDCG@10 of queries over `candidates` documents of different topics, by direction, every `every` steps.

    `patience`: stop after so many evaluations in a row without a better mean, and leave the best weights, not the last.
    """

    every: int = Field(default=250, ge=1)
    candidates: int = Field(default=100, ge=2)
    patience: int | None = Field(default=None, ge=1)
    slices: dict[str, SliceConfig] = {}


class TrainConfig(_Section):
    """A whole training config.

    Pictures keep their aspect and are brought under `picture_side`² pixels; texts are cut after so many tokens.
    """

    lake: TrainingLakeConfig
    start: StartConfig
    mode: Literal["full", "lora"] = "full"
    lora: LoraConfig = LoraConfig()
    negatives: NegativesConfig = NegativesConfig()
    tap: int = Field(default=4, ge=1)
    picture_side: int = Field(default=84, ge=56, multiple_of=28)
    augment: bool = True
    max_document_tokens: int = Field(default=40, ge=1, le=8192)
    max_query_tokens: int = Field(default=24, ge=1, le=512)
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = 0
    device: str = "cpu"
    bf16: bool = False
    gradient_checkpointing: bool = False
    threads: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    output: str

    @model_validator(mode="before")
    @classmethod
    def _tables_of_slices(cls, values: Any) -> Any:
        """Give each slice the lake's tables where it names none of its own; what is malformed is reported elsewhere."""
        match values:
            case {"lake": {**lake}, "evaluation": {"slices": {**slices}, **others}, **rest}:
                tables = {name: lake[name] for name in TablesConfig.model_fields if name in lake}
                filled = {name: tables | part if isinstance(part, dict) else part for name, part in slices.items()}
                return {**rest, "lake": lake, "evaluation": {**others, "slices": filled}}
        return values


def load_train_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML config and apply `section.key=value` overrides.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds faults; all of them are listed.
    """
    values = read_yaml(path)
    faults = [fault for override in overrides if (fault := apply_override(values, override))]
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        faults += [f"{path}: {describe(fault)}" for fault in error.errors()]
    else:
        faults += [f"{path}: {fault}" for fault in contradictions(config)]
    if faults:
        raise ConfigError(faults)
    return config


def contradictions(config: TrainConfig) -> list[str]:
    """What cannot go together, although each value alone could be."""
    faults = []
    if scheme(config.output):
        faults.append(
            f"output: {redacted(config.output)} is a URI; give a path: a run writes to a folder and goes on from it"
        )
    if config.mode == "lora" and config.start.path is None:
        faults.append("mode: lora needs start.path: an adapter is nothing without the checkpoint it was made for")
    if config.lora.merge and config.mode != "lora":
        faults.append("lora.merge needs mode: lora")
    if config.evaluation.patience and not config.evaluation.slices:
        faults.append("evaluation.patience needs evaluation.slices, to see whether anything gets better")
    if config.evaluation.patience and config.stages[-1].ranking is None:
        faults.append(
            "evaluation.patience needs a ranking in the last stage: a run leaves only weights that it has judged"
        )
    if config.negatives.skip >= config.negatives.depth:
        faults.append(f"negatives: skip {config.negatives.skip} leaves nothing of depth {config.negatives.depth}")
    proxies = any(stage.proxy_weight for stage in config.stages)
    if proxies and config.lake.topic is None:
        faults.append("stages: proxy_weight needs lake.topic, the column that says what a row is about")
    shape = config.start.shape
    if shape is not None and (needs_tap(config) or shape.initialization == "local") and config.tap >= shape.layers:
        faults.append(f"tap: {config.tap} is no layer of {shape.layers}, counted from 0")
    for index, stage in enumerate(config.stages):
        if stage.recall and config.start.shape is None:
            faults.append(f"stages: {stage.name}: recall needs start.shape: it would overwrite what a checkpoint knows")
        if stage.recall and not any(earlier.proxy_weight for earlier in config.stages[:index]):
            faults.append(f"stages: {stage.name}: recall needs a proxy_weight in an earlier stage, to know topics by")
        if max(stage.mined) > 0 and not proxies:
            faults.append(f"stages: {stage.name}: mined needs a proxy_weight in some stage, to know what is near")
        if stage.hard_negatives and config.lake.candidates is None:
            faults.append(f"stages: {stage.name}: hard_negatives needs lake.candidates, to take them from")
        if stage.distillation_weight and config.lake.teacher is None:
            faults.append(f"stages: {stage.name}: distillation_weight needs lake.teacher, whose logits to follow")
        if stage.distillation_weight and not stage.hard_negatives:
            faults.append(
                f"stages: {stage.name}: distillation_weight needs hard_negatives, 1 or more, from lake.candidates: "
                "of the documents that chance puts beside a query, the teacher has seen hardly two"
            )
        weights = [stage.contrastive_weight, stage.proxy_weight]
        if stage.ranking is not None:
            weights += [stage.ranking_weight, stage.pointwise_weight, stage.distillation_weight]
        if stage.bag and (stage.ranking is not None or not stage.proxy_weight or stage.recall):
            faults.append(f"stages: {stage.name}: a bag has proxy_weight and ranking: null, and nothing to recall with")
        if stage.upper_only and any(weights[:2]):
            faults.append(
                f"stages: {stage.name}: upper_only trains nothing that contrastive_weight and proxy_weight teach"
            )
        if not any(weights):
            faults.append(f"stages: {stage.name}: no loss has a weight above 0")
    return faults


def needs_tap(config: TrainConfig) -> bool:
    """Whether some stage, or measuring after it, asks for the states that enter layer `tap`."""
    return any(
        stage.recall or stage.ranking is None or stage.contrastive_weight or stage.proxy_weight or stage.upper_only
        for stage in config.stages
        if not stage.bag or config.evaluation.slices  # a stage without a ranking is measured by similarity
    )


def to_yaml(config: TrainConfig) -> str:
    """The config as resolved, every value spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
