"""What a config with `recipe: listwise` may say beyond one of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from pydantic import Field

from lakerank.settings import Section
from lakerank_training.batches import NegativeRule, TrainingStage
from lakerank_training.config import TrainConfig


class ListShapeConfig(Section):
    """A Qwen3 from scratch, of width 256; its tokenizer and its tokens' vectors are those of the bundled checkpoint.

    All layers but the first two start as rounds of feedback, see `initialise`: `feedback` times the mean of documents
    alike to the query is added to it. Embeddings and the first `frozen_layers` stay as they start; 0: all is trained.
    """

    intermediate_size: int = Field(default=256, ge=16)
    layers: int = Field(default=4, ge=3)
    feedback: float = Field(default=4.0, ge=0)
    frozen_layers: int = Field(default=2, ge=0)


class ListStartConfig(Section):
    """Always from scratch."""

    FROM_SCRATCH: ClassVar[str] = "the bundled checkpoint's vectors and weights that `initialise.py` writes down"

    path: None = None
    revision: None = None
    shape: ListShapeConfig = ListShapeConfig()


@dataclass(frozen=True)
class ListStage(TrainingStage):
    """A step draws `groups` queries and `documents` candidates of each, which are its list, in random order.

    `ranking_weight` is of the loss over lists, `pointwise_weight` of that over `singles` of each list's documents, each
    in a prompt by itself: so that the network can be asked for pairs.
    """

    group_size: Literal[1] = 1
    documents: Annotated[int, Ge(2)] = 16
    singles: Annotated[int, Ge(2)] = 6
    pointwise_weight: Annotated[float, Ge(0)] = 1.0


class ListwiseConfig(TrainConfig):
    """A whole config. `temperature` divides cosines in the loss."""

    recipe: Literal["listwise"]
    start: ListStartConfig = ListStartConfig()  # type: ignore[assignment]
    stages: tuple[ListStage, ...] = Field(min_length=1)
    temperature: float = Field(default=0.1, gt=0)

    def contradictions(self) -> list[str]:
        """With those of lists."""
        faults = super().contradictions()
        if self.lake.candidates is None:
            faults.append("recipe: listwise needs lake.candidates, the lists to train on")
        if self.mode != "full":
            faults.append("recipe: listwise needs mode: full: it starts from scratch")
        if self.gradient_checkpointing or self.negatives != NegativeRule():
            faults.append("recipe: listwise has neither gradient_checkpointing nor negatives: lists are the candidates")
        for stage in self.stages:
            if stage.singles > stage.documents:
                faults.append(f"stages: {stage.name}: singles {stage.singles} of documents {stage.documents}")
            if stage != _lists_alone(stage):
                faults.append(
                    f"stages: {stage.name}: a list is a query's own candidates, and its loss listnet: leave out "
                    "ranking, hard_negatives, distillation_weight, document_weights and query_weights"
                )
        return faults


def _lists_alone(stage: ListStage) -> ListStage:
    """The stage with the defaults of all settings that lists have no use for."""
    names = ("name", "steps", "groups", "learning_rate", "ranking_weight", "pointwise_weight", "documents", "singles")
    return ListStage(**{name: getattr(stage, name) for name in names})
