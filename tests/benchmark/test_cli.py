"""`jobs/benchmark.py`: its choices are those of the code, and its last line and files are there to be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lakerank.cost import Calibration
from lakerank.model.registry import M0
from lakerank_benchmark import cli as command
from lakerank_benchmark.checkpoints import ENCODER_SHAPES, SHAPES
from lakerank_benchmark.request import GENERATIVE

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "benchmark.py"), *arguments], capture_output=True, text=True, check=False
    )


def test_what_can_be_chosen_is_what_there_is() -> None:
    choices = {option.name: getattr(option.type, "choices", None) for option in command.benchmark.params}
    encoders = {shape for shapes in ENCODER_SHAPES.values() for shape in shapes}
    assert set(choices["shape"]) == {"bundled", *SHAPES, *encoders}
    assert set(choices["family"]) == {M0, *GENERATIVE, *ENCODER_SHAPES}


@pytest.mark.nightly
def test_a_benchmark_of_next_to_nothing(tmp_path: Path) -> None:
    job = run(
        "--shape", "tiny", "--workload", "pictograms", "--k", "2", "--budget-s", "0.1", "--repeats", "1",
        "--threads", "1", "--no-memory", "--output", str(tmp_path), "--calibration", str(tmp_path / "cpu.json"),
    )  # fmt: skip
    assert job.returncode == 0, job.stderr
    last = json.loads(job.stdout.splitlines()[-1])
    assert {(figure["workload"], figure["k"]) for figure in last["figures"]} == {("pictograms", 2)}
    assert {figure["contender"] for figure in last["figures"]} >= {"lakerank", "lakerank fast", "published loop"}
    assert "pictograms  2  lakerank fast" in job.stdout
    assert json.loads((tmp_path / "benchmark.json").read_text())["parameters"] == last["parameters"]
    assert (tmp_path / "benchmark.png").stat().st_size > 0
    assert Calibration.from_json((tmp_path / "cpu.json").read_text()).parameters == last["parameters"]


@pytest.mark.parametrize("arguments", [("--k", "0"), ("--k", "a"), ("--workload", "books"), ("--no-model",)])
def test_wrong_arguments_are_refused(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(command.benchmark, arguments).exit_code == 2
