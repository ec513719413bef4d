"""bin/setup and bin/java-home: ready at once, or exactly what is missing. pip and venv are played by a small script."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Does what bin/setup asks of a Python, and keeps a diary beside the repository.
PYTHON = r"""#!/bin/bash
case "$*" in
    *"-m venv"*)
        venv=${@: -1}; rm -rf "$venv"; mkdir -p "$venv/bin"; cp "$PYTHON" "$venv/bin/python"
        echo "VIRTUAL_ENV='$PWD/$venv'" > "$venv/bin/activate"; echo "${venv#.}" >> ../diary ;;
    *"pip install"*)
        echo "pip $*" | grep -oE '\[.*|apache-airflow .*' >> ../diary; echo "$PIP_SAYS"; exit ${PIP_STATUS:-0} ;;
    "-V") echo "Python 3.99" ;;
esac
"""


class House:
    """A folder with bin/setup in it, and what its Python has been asked to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "pyproject.toml", "constraints.txt", "constraints-airflow.txt"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        self.python = folder.parent / "python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)

    def setup(self, extra: str = "demo", **env: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHON": str(self.python)} | env
        return subprocess.run([self.folder / "bin/setup", extra], env=environment, capture_output=True, text=True)

    def diary(self) -> list[str]:
        """What was done since the diary was last read."""
        path = self.folder.parent / "diary"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def house(tmp_path: Path) -> House:
    folder = tmp_path / "a house"
    folder.mkdir()
    return House(folder)


def test_first_call_prepares_everything_and_the_second_nothing(house: House) -> None:
    assert house.setup().returncode == 0
    assert house.diary() == ["venv", "[demo]"]
    assert (house.folder / ".venv/java/bin/java").exists()
    again = house.setup()
    assert (again.returncode, again.stderr, house.diary()) == (0, "", [])


def test_everything_for_development_is_enough_for_the_demo_but_not_the_other_way_round(house: House) -> None:
    house.setup("demo")
    house.setup("dev")
    house.setup("demo")
    assert house.diary() == ["venv", "[demo]", "[dev]"]


def test_airflow_has_an_environment_and_pins_of_its_own(house: House) -> None:
    assert house.setup("airflow").returncode == 0
    assert house.diary() == ["venv-airflow", "apache-airflow apache-airflow-providers-apache-spark"]
    for name in ("pyproject.toml", "constraints.txt"):
        with (house.folder / name).open("a") as file:
            file.write("# changed\n")
    assert house.setup("airflow").stderr == ""
    with (house.folder / "constraints-airflow.txt").open("a") as file:
        file.write("# changed\n")
    house.setup("airflow")
    assert house.diary() == ["apache-airflow apache-airflow-providers-apache-spark"]
    assert not (house.folder / ".venv").exists()


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_pins_are_installed_into_the_same_venv(house: House, name: str) -> None:
    house.setup()
    house.diary()
    with (house.folder / name).open("a") as file:
        file.write("# changed\n")
    house.setup()
    assert house.diary() == ["[demo]"]


def test_failed_install_says_why_and_the_next_starts_afresh(house: House) -> None:
    failed = house.setup(PIP_STATUS="1", PIP_SAYS="No matching distribution found for torch")
    assert failed.returncode == 1
    assert "No matching distribution found for torch" in failed.stderr
    assert house.diary() == ["venv", "[demo]"]
    assert house.setup().returncode == 0
    assert house.diary() == ["venv", "[demo]"]


def test_moved_folder_gets_a_new_venv(house: House) -> None:
    house.setup()
    house.diary()
    house.folder = house.folder.rename(house.folder.parent / "another house")
    house.setup()
    assert house.diary() == ["venv", "[demo]"]


def test_a_link_to_another_environment_is_refused_and_what_it_points_to_is_left_alone(house: House) -> None:
    house.setup()
    house.diary()
    other = house.folder.parent / "another"
    (house.folder / ".venv").rename(other)
    (house.folder / ".venv").symlink_to(other)
    (other / "bin/activate").write_text("VIRTUAL_ENV='elsewhere'")
    before = sorted(path.name for path in other.rglob("*"))
    refused = house.setup("dev")
    assert refused.returncode == 1
    assert f".venv is a link to {other}" in refused.stderr
    assert "rm .venv" in refused.stderr
    assert sorted(path.name for path in other.rglob("*")) == before
    assert house.diary() == []


def test_java_that_has_gone_is_looked_for_again(house: House) -> None:
    house.setup()
    house.diary()
    java = house.folder / ".venv/java"
    java.unlink()
    java.symlink_to(house.folder / "gone")
    assert house.setup().returncode == 0
    assert (java / "bin/java").exists()
    assert house.diary() == []


def test_java_home_passes_over_what_is_no_java(house: House, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    old = tmp_path / "bin" / "java"
    old.write_text("#!/bin/sh\nprintf '    java.home = /old\\n    java.specification.version = 11\\n'\n")
    old.chmod(0o755)
    environment = os.environ | {"JAVA_HOME": str(tmp_path)}
    found = subprocess.run(
        [house.folder / "bin/java-home"], env=environment, capture_output=True, text=True, check=True
    )
    home = Path(found.stdout.strip())
    assert home != Path("/old")
    assert (home / "bin/java").exists()
