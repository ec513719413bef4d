"""Inputs of public bug reports, which `make cases` prints a line for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cases.cases import CHECKS, result


@pytest.mark.nightly
@pytest.mark.parametrize("name", CHECKS)
def test_what_is_right_comes_of_each_case(name: str, tmp_path: Path) -> None:
    assert result(name, tmp_path)


def test_every_folder_is_a_case() -> None:
    folders = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= CHECKS.keys()
