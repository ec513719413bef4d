"""A step in shards, in several processes, or with states computed again, is the step that one process takes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lakerank_training.config import load_train_config
from lakerank_training.run import run_training

ROOT = Path(__file__).parents[2]
#: No loss of this stage goes over groups: a batch's losses are the means of its shards'.
PAIRS = [{"name": "pairs", "steps": 3, "groups": 4, "group_size": 3}]
#: From scratch: no gradient is so near 0 that rounding decides where Adam goes.
SHAPE = {"vocabulary": 512, "hidden_size": 64, "intermediate_size": 64, "layers": 3, "heads": 2, "key_value_heads": 1}
SHAPE |= {"vision_depth": 1, "vision_width": 32, "vision_heads": 2}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
STEADY = ["optimizer.warmup_steps=0", "evaluation.every=9", "checkpoint_every=9"]


def metrics(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if "loss" in line for name in ("loss", "norm")]


def weights(output: Path) -> dict[str, torch.Tensor]:
    (state,) = (output / "state").glob("*.safetensors")
    return {name: value for name, value in load_file(state).items() if name.startswith("parameter/")}


@pytest.fixture
def config(training_config: Callable[..., Path]) -> Path:
    scratch = {"recipe": "curriculum", "start": {"shape": SHAPE}, "augment": False}
    return training_config(**scratch, stages=PAIRS, evaluation={"every": 9})


def run(path: Path, output: Path, *overrides: str) -> Path:
    run_training(load_train_config(path, [*STEADY, f"output={output}", *overrides]))
    return output


@pytest.mark.parametrize("change", ["optimizer.step_tokens=1", "gradient_checkpointing=true"])
def test_work_done_in_another_way_is_the_same_work(config: Path, tmp_path: Path, change: str) -> None:
    plain, other = run(config, tmp_path / "plain"), run(config, tmp_path / "other", change)
    np.testing.assert_allclose(metrics(other), metrics(plain), rtol=1e-4)
    after = weights(plain)
    for name, value in weights(other).items():
        torch.testing.assert_close(value, after[name], atol=1e-4, rtol=1e-3, msg=name)


def command(*arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "lib")}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "launcher", ["torchrun", pytest.param("spark", marks=[pytest.mark.spark, pytest.mark.nightly])]
)
def test_two_processes_train_as_one(config: Path, tmp_path: Path, launcher: str) -> None:
    one, two = run(config, tmp_path / "one"), tmp_path / "two"
    settings = [part for override in [*STEADY, f"output={two}"] for part in ("--set", override)]
    job = [str(ROOT / "jobs" / "train.py"), "--config", str(config), *settings]
    if launcher == "torchrun":
        command(*TORCHRUN, *job)
    else:
        command(sys.executable, *job, "--processes", "2")
    np.testing.assert_allclose(metrics(two), metrics(one), rtol=1e-5)
    assert len(metrics(two)) == 6  # one process writes
    after = weights(one)
    for name, value in weights(two).items():
        torch.testing.assert_close(value, after[name], atol=1e-5, rtol=1e-4, msg=name)


def test_processes_whose_figures_differ_stop_together(
    training_config: Callable[..., Path], colour_lake: Path, tmp_path: Path
) -> None:
    """Two machines differ in a last digit, these two in more: the first one's figures, which never change, count."""
    tables = {name: str(colour_lake / f"{name}.parquet") for name in ("documents", "queries", "qrels")}
    evaluation = {"every": 1, "candidates": 12, "patience": 6, "slices": {"seen": tables}}
    still = {"warmup_steps": 0, "weight_decay": 0}
    path = training_config(stages=[PAIRS[0] | {"steps": 12}], evaluation=evaluation, optimizer=still)
    command(*TORCHRUN, str(ROOT / "tests" / "training" / "unlike_figures.py"), str(path))
    state = json.loads((tmp_path / "out" / "state" / "state.json").read_text())
    assert (state["step"], state["stale"]) == (7, 6)
