"""What a training run is, so that the state of one is never taken for the state of another."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lakerank.model.checkpoint import file_hash, weight_files
from lakerank.training.config import StageConfig, TrainConfig
from lakerank.training.evaluation import Slice
from lakerank.training.tables import Items, TrainingLake

_TABLES = {"documents", "queries", "qrels"}

#: What may change while a run is on its way: where things lie, where and in how much memory a step is computed, when
#: the run is measured, saved and stopped. Of tables and checkpoint counts what they hold; stages have a rule of theirs.
_MAY_CHANGE: dict[str, Any] = {
    "lake": _TABLES | {"candidates", "teacher", "storage"},
    "start": {"path", "revision"},
    "lora": {"merge"},
    "optimizer": {"step_tokens"},
    "evaluation": {"every": True, "patience": True, "slices": {"__all__": _TABLES}},
    **dict.fromkeys(("stages", "device", "gradient_checkpointing", "threads", "checkpoint_every", "output"), True),
}


@dataclass(frozen=True)
class Identity:
    """The settings of a run and the fingerprints of its data, by name; and its stages: how many steps of what."""

    settings: Mapping[str, object]
    stages: Sequence[tuple[int, Mapping[str, object]]]

    def at(self, step: int) -> dict[str, object]:
        """What a run is after so many steps: stages as far as they are done, as what is to come may still change."""
        named = dict(self.settings)
        for index, (steps, stage) in enumerate(self.stages):
            if done := min(step, steps):
                named |= _flat({**stage, "steps": done}, f"stages.{index}.")
            step -= done
        return named


def identify_run(config: TrainConfig, lake: TrainingLake, slices: Mapping[str, Slice], source: Path | None) -> Identity:
    """Name a run by its config and by what it reads. `source`: the folder of the checkpoint that it starts from."""
    topic = [config.lake.topic] if config.lake.topic else []
    settings = _flat(config.model_dump(mode="json", exclude=_MAY_CHANGE))
    settings |= _flat(_content(lake, [*topic, *config.lake.apart]), "lake.")
    for name, part in slices.items():
        columns = [*topic, *part.document_only, *part.query_only]
        settings |= _flat(_content(part.material.lake, columns), f"evaluation.slices.{name}.")
    if source is not None:
        files = [*weight_files(source), source / "config.json", source / "tokenizer.json"]
        settings["start.path"] = _digest(file_hash(file) for file in files)
    return Identity(settings, [(stage.steps, _stage(stage, lake)) for stage in config.stages])


def differences(saved: Mapping[str, object], own: Mapping[str, object]) -> list[str]:
    """What is not the same in two runs, in words."""
    names = sorted(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))
    return [f"{name} (was {saved.get(name)}, is {own.get(name)})" for name in names]


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings as one level of dotted names."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _stage(stage: StageConfig, lake: TrainingLake) -> dict[str, object]:
    """A stage's settings, and a fingerprint of the columns by which it chooses rows."""
    chosen_by = [side.columns[name] for side in (lake.documents, lake.queries) for name in stage.only]
    return {**stage.model_dump(mode="json"), "chosen_by": _digest(chosen_by) if chosen_by else None}


def _content(lake: TrainingLake, columns: Sequence[str]) -> dict[str, str | None]:
    """A fingerprint of each table's rows as they are learned from, wherever and in whatever files they lie."""
    return {
        "documents": _digest(_rows(lake.documents, columns, lake.pixels)),
        "queries": _digest(_rows(lake.queries, columns, lake.pixels)),
        "qrels": _digest(sorted(own.items()) for own in lake.grades),
        "candidates": _digest(list(own.items()) for own in lake.candidates) if lake.candidates else None,
        "teacher": _digest(list(own.items()) for own in lake.teacher) if lake.teacher else None,
    }


def _rows(items: Items, columns: Sequence[str], pixels: Sequence[npt.NDArray[np.uint8]]) -> Iterable[object]:
    @functools.cache
    def picture(place: int) -> bytes | None:
        shown = pixels[place] if place >= 0 else None
        return None if shown is None else hashlib.blake2b(repr(shown.shape).encode() + shown.tobytes()).digest()

    shown = map(picture, items.pictures.tolist())
    return zip(items.ids, items.texts, shown, items.kinds, *(items.columns[name] for name in columns), strict=True)


def _digest(parts: Iterable[object]) -> str:
    """Hash of texts, numbers and bytes, and of rows of them, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
