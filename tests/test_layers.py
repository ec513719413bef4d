"""The contracts in pyproject.toml speak of every room, so that a new one cannot slip past them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

#: The rooms that may import the libraries of each "only … imports …" contract.
OWNERS = {("pyspark",): {"spark"}, ("torch", "transformers", "peft"): {"model", "training"}}


def _rooms() -> set[str]:
    package = ROOT / "lib" / "lakerank"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    return folders | {path.stem for path in package.glob("*.py") if path.stem != "__init__"}


@pytest.mark.parametrize("libraries", OWNERS, ids=" ".join)
def test_heavy_libraries_are_forbidden_to_every_room_but_their_owners(libraries: tuple[str, ...]) -> None:
    (contract,) = [c for c in CONTRACTS if c["type"] == "forbidden" and tuple(c["forbidden_modules"]) == libraries]
    forbidden_to = {module.removeprefix("lakerank.") for module in contract["source_modules"]}
    assert forbidden_to == _rooms() - OWNERS[libraries]
