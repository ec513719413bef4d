"""Where a step stands: its stage, the share of mined groups, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lakerank.training.config import OptimizerConfig, StageConfig


@dataclass(frozen=True)
class Place:
    """A step's stage, and how far through that stage it is, in [0, 1)."""

    index: int
    stage: StageConfig
    progress: float

    @property
    def begins(self) -> bool:
        """Whether this is the stage's first step."""
        return self.progress == 0

    @property
    def mined(self) -> float:
        """Share of groups that are made of easily confused topics."""
        first, last = self.stage.mined
        return first + (last - first) * self.progress


def total_steps(stages: Sequence[StageConfig]) -> int:
    """Steps of all stages."""
    return sum(stage.steps for stage in stages)


def place(stages: Sequence[StageConfig], step: int) -> Place:
    """Where step `step`, counted from 0, stands.

    Raises:
        IndexError: there are no so many steps.
    """
    before = 0
    for index, stage in enumerate(stages):
        if step < before + stage.steps:
            return Place(index, stage, (step - before) / stage.steps)
        before += stage.steps
    raise IndexError(f"step {step} of {before}")


def learning_rate(settings: OptimizerConfig, stages: Sequence[StageConfig], step: int) -> float:
    """Linear warm-up, then a cosine down to `floor` of the peak, over the stages up to the next that starts anew."""
    first, last, peak = 0, 0, settings.learning_rate
    for stage in stages:
        if stage.learning_rate is not None:
            if step < last:
                break
            first, peak = last, stage.learning_rate
        last += stage.steps
    done, steps = step - first, last - first
    if done < settings.warmup_steps:
        return peak * (done + 1) / settings.warmup_steps
    progress = (done - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return peak * (settings.floor + (1 - settings.floor) * (1 + math.cos(math.pi * progress)) / 2)
