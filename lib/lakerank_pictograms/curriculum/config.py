"""What conf/train-embedded.yaml may say beyond a config of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from lakerank.settings import Section
from lakerank_training.batches import TrainingStage, Weight
from lakerank_training.config import OptimizerConfig, StartConfig, TrainConfig, TrainingLakeConfig


class ShapeConfig(Section):
    """A network from scratch. Heads are `hidden_size / heads` wide: 32 is the least that M-RoPE divides well.

    `initialization`: normal with a standard deviation of 0.02, as Qwen2-VL's; or lecun, where a matrix that reads n
    values has 1/sqrt(n) (LeCun et al. 1998), without which signals vanish in a narrow network. local is
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


class CurriculumLakeConfig(TrainingLakeConfig):
    """`apart` maps a column to values of texts that are never paired with an image."""

    apart: dict[str, tuple[str, ...]] = Field(default={})


class CurriculumStartConfig(StartConfig):
    """A checkpoint (`path`), or a `shape`: a network initialised from scratch, with a tokenizer of its own."""

    path: str | None = None  # type: ignore[assignment]
    shape: ShapeConfig | None = None

    @model_validator(mode="after")
    def _complete(self) -> CurriculumStartConfig:
        if (self.path is None) == (self.shape is None):
            raise ValueError("give either a path or a shape")
        return self


@dataclass(frozen=True)
class CurriculumStage(TrainingStage):
    """A stage that trains a part of the network, or by other losses than those of ranking.

    With `ranking: null` it trains the layers below `tap` and where that one looks: query and document meet in the
    losses only. `upper_only` trains what comes after: layers from there on and the head; `layers_only` all layers and
    the head, so that rare words are not forgotten and images not learned by heart. A `bag` trains what comes before
    the first layer, embeddings and the vision encoder: the mean of a row's tokens names its topic (fastText, Joulin et
    al. 2017) and, with `contrastive_weight`, finds the other side's rows of that topic, which costs little; the layers
    then start from tokens that mean something. `recall` first makes the MLP before layer `tap` a memory of the topics:
    it knows them by the proxies that earlier stages have learned. A share of the groups, going over the stage from
    `mined[0]` to `mined[1]`, holds topics that are easily confused.
    """

    upper_only: bool = False
    layers_only: bool = False
    bag: bool = False
    recall: bool = False
    mined: tuple[float, float] = (0.0, 0.0)
    contrastive_weight: Weight = 0.0
    proxy_weight: Weight = 0.0

    @property
    def loss_weights(self) -> list[float]:
        """With those of the contrastive and the proxy loss."""
        return [*TrainingStage.loss_weights.fget(self), self.contrastive_weight, self.proxy_weight]  # type: ignore[attr-defined]

    def mined_share(self, progress: float) -> float:
        """Share of groups of easily confused topics, `progress` through the stage."""
        first, last = self.mined
        return first + (last - first) * progress


class CurriculumOptimizerConfig(OptimizerConfig):
    """`name: muon` changes the matrices of hidden layers by Muon (Jordan et al. 2024), scaled so that the same rates
    fit (Liu et al. 2025), and everything else by AdamW.
    """

    name: Literal["adamw", "muon"] = "adamw"


class CurriculumConfig(TrainConfig):
    """A whole config. `tap`: the layer whose attention says where a query finds a document.

    `augment`: change the images of a step at random.
    """

    lake: CurriculumLakeConfig
    start: CurriculumStartConfig
    augment: bool = True
    tap: int = Field(default=4, ge=1)
    stages: tuple[CurriculumStage, ...] = Field(min_length=1)
    optimizer: CurriculumOptimizerConfig = CurriculumOptimizerConfig()

    @property
    def needs_tap(self) -> bool:
        """Whether some stage, or measuring after it, asks for the states that enter layer `tap`."""
        return any(
            stage.recall or stage.ranking is None or stage.contrastive_weight or stage.proxy_weight or stage.upper_only
            for stage in self.stages
            if not stage.bag or self.evaluation.slices  # a stage without a ranking is measured by similarity
        )

    def contradictions(self) -> list[str]:
        """With those of the curriculum's own settings."""
        faults = super().contradictions()
        if self.mode == "lora" and self.start.path is None:
            faults.append("mode: lora needs start.path: an adapter needs its base checkpoint")
        proxies = any(stage.proxy_weight for stage in self.stages)
        if proxies and self.lake.topic is None:
            faults.append("stages: proxy_weight needs lake.topic, the column that says what a row is about")
        shape = self.start.shape
        if shape is not None and (self.needs_tap or shape.initialization == "local") and self.tap >= shape.layers:
            faults.append(f"tap: {self.tap} is no layer of {shape.layers}, counted from 0")
        for index, stage in enumerate(self.stages):
            known = any(earlier.proxy_weight for earlier in self.stages[:index])
            faults += [f"stages: {stage.name}: {fault}" for fault in self._curriculum_faults(stage, known, proxies)]
        return faults

    def _curriculum_faults(self, stage: CurriculumStage, topics_known: bool, proxies: bool) -> list[str]:
        faults = []
        if stage.recall and self.start.shape is None:
            faults.append("recall needs start.shape: it would overwrite what a checkpoint knows")
        if stage.recall and not topics_known:
            faults.append("recall needs a proxy_weight in an earlier stage, to know topics by")
        if max(stage.mined) > 0 and not proxies:
            faults.append("mined needs a proxy_weight in some stage, to know what is near")
        if stage.bag and (stage.ranking is not None or not stage.proxy_weight or stage.recall):
            faults.append("a bag has proxy_weight and ranking: null, and nothing to recall with")
        if stage.upper_only and (stage.contrastive_weight or stage.proxy_weight):
            faults.append("upper_only trains nothing that contrastive_weight and proxy_weight teach")
        return faults
