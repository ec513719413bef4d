"""What a config asks for, held against the lake and the network before the first step."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping

from lakerank.errors import ConfigError
from lakerank.training.config import TrainConfig, needs_tap
from lakerank.training.evaluation import DIRECTIONS, Slice, draw_grid
from lakerank.training.objective import Material
from lakerank.training.step import make_samplers
from lakerank.training.tables import TrainingLake

log = logging.getLogger(__name__)


def check(config: TrainConfig, material: Material, slices: Mapping[str, Slice], layers: int) -> None:
    """Refuse what would stop in the middle, or flatter itself.

    Raises:
        ConfigError: with every fault there is.
    """
    faults = []
    if needs_tap(config) and config.tap >= layers:
        faults.append(f"tap: {config.tap} is no layer of {layers}, counted from 0")
    shape, topics = config.start.shape, material.lake.topics
    if shape is not None and any(stage.recall for stage in config.stages) and shape.intermediate_size < topics:
        faults.append(
            f"start.shape: intermediate_size {shape.intermediate_size} has no room to recall the lake's {topics} topics"
        )
    for stage, sampler in zip(config.stages, make_samplers(config, material.lake), strict=True):
        wanted, found = stage.groups * stage.group_size, len(sampler.topics)
        if wanted > found:
            what = "topics" if material.lake.has_topics else "queries"
            faults.append(f"stages: {stage.name}: a step wants {wanted} different {what}, the lake gives {found}")
    scores = (score for found in material.lake.candidates for score in found.values())
    if config.negatives.below is not None and any(score <= 0 for score in scores):
        faults.append(
            f"negatives.below: in {config.lake.candidates} some candidate has no first_stage_score above 0, of which a "
            "share could be taken; give every candidate one, or set negatives.below=null and use negatives.skip"
        )
    for name, part in slices.items():
        faults += _slice_faults(config, name, part, material.lake)
    if faults:
        raise ConfigError(faults)


def _slice_faults(config: TrainConfig, name: str, part: Slice, trained: TrainingLake) -> list[str]:
    faults = []
    grids = (draw_grid(part, direction, config.evaluation.candidates, config.seed) for direction in DIRECTIONS)
    if all(grid is None for grid in grids):
        faults.append(f"evaluation.slices: {name}: fewer than ten topics in every direction; nothing can be measured")
    own = config.evaluation.slices[name]
    if own.addresses == config.lake.addresses:
        log.info("slice %s: queries that are trained on; its figures say what was learned", name)
    elif shared := set(part.material.lake.queries.ids) & set(trained.queries.ids):
        faults.append(
            f"evaluation.slices: {name}: {len(shared)} of its queries are trained on ({min(shared)!r} first); "
            "split the lake by what rows are about"
        )
    elif not own.same_topics and (topics := _asked(config, part.material.lake) & _asked(config, trained)):
        faults.append(
            f"evaluation.slices: {name}: {len(topics)} of the topics that its queries are about are trained on "
            f"({min(topics)!r} first); split queries by topic, or say same_topics: true if that is to be measured"
        )
    return faults


def _asked(config: TrainConfig, lake: TrainingLake) -> set[str]:
    """Names of the topics that queries are about. Documents about others may be the same: only queries are learned."""
    if config.lake.topic is None:
        return set()
    asked = set(lake.queries.topics.tolist())
    names = zip(lake.documents.columns[config.lake.topic], lake.documents.topics.tolist(), strict=True)
    return {name for name, topic in names if name and topic in asked}


def said_before(lake: TrainingLake, trained: TrainingLake) -> frozenset[int]:
    """Rows of queries whose text and picture are those of a query that is trained on, under whatever id."""
    known = set(_contents(trained))
    return frozenset(row for row, content in enumerate(_contents(lake)) if content in known)


def _contents(lake: TrainingLake) -> Iterator[tuple[str | None, bytes]]:
    asked = {int(picture) for picture in lake.queries.pictures if picture >= 0}
    digests = {picture: hashlib.blake2b(lake.pixels[picture].tobytes()).digest() for picture in asked}
    for text, picture in zip(lake.queries.texts, lake.queries.pictures, strict=True):
        yield text, digests.get(int(picture), b"")
