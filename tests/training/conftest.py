"""A config that fine-tunes a tiny checkpoint on a tiny lake in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from training_lakes import table_paths, write_colour_lake, write_config, write_plain_lake


@pytest.fixture(autouse=True, scope="session")
def one_training_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, and only one thread adds up in the same order every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def colour_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_lake(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def plain_lake(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_plain_lake(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def training_values(colour_lake: Path, tiny_checkpoint: Path) -> dict[str, Any]:
    """Of a config without an output."""
    tables = table_paths(colour_lake)
    stage = {"steps": 3, "groups": 3, "group_size": 4}
    return {
        "lake": {**tables, "topic": "topic", "kind": "kind"},
        "start": {"path": str(tiny_checkpoint)},
        "picture_side": 56,
        "seed": 3,
        "threads": 1,
        "stages": [stage | {"name": "warm"}, stage | {"name": "pairs", "ranking": "ranknet"}],
        "evaluation": {"every": 100, "candidates": 12, "slices": {"seen": tables}},
        "checkpoint_every": 2,
    }


@pytest.fixture
def training_config(training_values: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """`training_config(**changes)`: a config file with top-level sections changed."""

    def make(**changes: Any) -> Path:
        return write_config(tmp_path, training_values | changes)

    return make
