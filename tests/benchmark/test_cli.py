"""`jobs/benchmark.py`: its choices are those of the code, and its last line and files are there to be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lakerank.cost import Calibration
from lakerank_benchmark import cli as command
from lakerank_benchmark import contenders, encoder_shapes, shapes, workloads

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "benchmark.py"), *arguments], capture_output=True, text=True, check=False
    )


def test_what_can_be_chosen_is_what_there_is() -> None:
    choices = {option.name: getattr(option.type, "choices", None) for option in command.benchmark.params}
    assert tuple(choices["workloads"]) == workloads.NAMES
    assert tuple(choices["contenders"]) == contenders.NAMES
    encoders = {shape for kinds in encoder_shapes.KINDS.values() for shape in kinds}
    assert set(choices["shape"]) == {"bundled", *shapes.SHAPES, *encoders}


@pytest.mark.nightly
def test_a_benchmark_of_next_to_nothing(tmp_path: Path) -> None:
    done = run(
        "--shape", "tiny", "--workload", "pictograms", "--k", "2", "--budget-s", "0.1", "--repeats", "1",
        "--threads", "1", "--no-memory", "--output", str(tmp_path), "--calibration", str(tmp_path / "cpu.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert {(one["workload"], one["k"]) for one in last["figures"]} == {("pictograms", 2)}
    assert {one["contender"] for one in last["figures"]} >= {"lakerank", "lakerank fast", "published loop"}
    assert "pictograms  2  lakerank fast" in done.stdout
    assert json.loads((tmp_path / "benchmark.json").read_text())["parameters"] == last["parameters"]
    assert (tmp_path / "benchmark.png").stat().st_size > 0
    assert Calibration.from_json((tmp_path / "cpu.json").read_text()).parameters == last["parameters"]


@pytest.mark.parametrize("arguments", [("--k", "0"), ("--k", "a"), ("--workload", "books"), ("--no-model",)])
def test_wrong_arguments_are_told(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(command.benchmark, arguments).exit_code == 2
