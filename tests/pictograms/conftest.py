"""A config of the curriculum that trains a network from scratch on a tiny lake in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from training_lakes import table_paths, write_colour_lake, write_config


@pytest.fixture
def one_training_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, and only one thread adds up in the same order every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def colour_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_lake(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def curriculum_config(colour_lake: Path, tmp_path: Path, one_training_thread: None) -> Callable[..., Path]:
    """`curriculum_config(**changes)`: a config file with top-level sections changed."""

    def make(**changes: Any) -> Path:
        tables = table_paths(colour_lake)
        shape = {"vocabulary": 512, "hidden_size": 64, "intermediate_size": 64, "layers": 3, "heads": 2}
        shape |= {"key_value_heads": 1, "vision_depth": 1, "vision_width": 32, "vision_heads": 2}
        values: dict[str, Any] = {
            "recipe": "curriculum",
            "lake": {**tables, "topic": "topic", "kind": "kind", "apart": {"language": ["hi"]}},
            "start": {"shape": shape},
            "tap": 2,
            "picture_side": 56,
            "seed": 3,
            "threads": 1,
            "stages": [
                {"name": "towers", "steps": 3, "groups": 3, "group_size": 4, "ranking": None}
                | {"contrastive_weight": 1.0, "proxy_weight": 1.0},
                {"name": "pairs", "steps": 3, "groups": 3, "group_size": 4, "mined": [0.5, 1.0]}
                | {"contrastive_weight": 0.3, "proxy_weight": 0.5},
            ],
            "evaluation": {"every": 100, "candidates": 12, "slices": {"seen": tables}},
            "checkpoint_every": 2,
        }
        return write_config(tmp_path, values | changes)

    return make
