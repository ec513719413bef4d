"""A few inputs of each target of `make fuzz`: results, rejects or errors, and nothing else."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from fuzz import targets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the targets keep their checkpoints."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("target", "inputs"), [("images", 200), ("checkpoint", 12), ("requests", 60), ("ids", 2), ("parquet", 2)]
)
def test_every_outcome_is_a_result_a_reject_or_an_error(target: str, inputs: int, folder: Path) -> None:
    for seed in range(inputs):
        outcome = targets.outcome(getattr(targets, target), Random(f"{target}:{seed}"), folder)
        assert outcome in ("results", "rejects", "errors")


def test_a_seed_makes_its_input_again() -> None:
    values = [targets.changed(Random(7), {"a": [1, {"b": "c"}], "d": 2.5}) for _ in range(2)]
    assert values[0] == values[1]
    assert targets.damaged(Random(7), b"abcdef" * 20) == targets.damaged(Random(7), b"abcdef" * 20) != b"abcdef" * 20


def test_a_traceback_is_no_outcome(tmp_path: Path) -> None:
    def fault(random: Random, folder: Path) -> str:
        raise KeyError("x")

    with pytest.raises(KeyError):
        targets.outcome(fault, Random(0), tmp_path)
