"""The check that is run on a GPU, here on a processor and a tiny shape, without the packages that its machine lacks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu.kernels import elementwise
from gpu.record import Check

CHECK = Path(__file__).with_name("check.py")
PHASES = ["machine", "products", "elementwise", "attention", "engine", "bundled", "host", "memory"]
BITS = {"again", "backwards", "alone", "query by query", "in small batches"}

#: Runs a script with packages that cannot be imported, even where they are installed.
BLOCKED = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pydantic", "tenacity", "pyspark", "triton"):
            raise ModuleNotFoundError(f"{name} is not on this machine")

sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def check(folder: Path, *options: str) -> dict[str, Any]:
    """What a run on the processor leaves."""
    command = [sys.executable, "-c", BLOCKED, str(CHECK), "--device", "cpu", "--shape", "tiny", "--out", str(folder)]
    subprocess.run([*command, *options], check=True, capture_output=True, text=True, timeout=300)
    assert [file.name for file in folder.iterdir()] == ["gpu_check.json"]
    found: dict[str, Any] = json.loads((folder / "gpu_check.json").read_text(encoding="utf-8"))
    return found


def every_key(found: Any) -> list[str]:
    if not isinstance(found, dict):
        return []
    return [*found, *(key for value in found.values() for key in every_key(value))]


def test_every_phase_runs_without_pydantic_tenacity_pyspark_and_triton(tmp_path: Path) -> None:
    found = check(tmp_path, "--seconds", "240")
    assert [*found] == PHASES
    assert "failed" not in every_key(found), {name: of.get("failed") for name, of in found.items()}
    assert found["machine"]["TFLOP/s of products"] > 0
    assert all(
        line["bits at another place"] in (True, False) for name, line in found["products"].items() if ":" in name
    )
    assert found["elementwise"].keys() == {"left out", "seconds"}
    assert found["attention"]["prefix"]["error"] < 0.01 > found["attention"]["prefix"]["error with key bias 50"]
    for mode in ("reproducible", "fast"):
        paces = [line for name, line in found["engine"][mode].items() if "k = " in name]
        assert len(paces) == 6
        assert all(line["pairs/s"] > 0 < line["share of the ceiling"] for line in paces)
        assert found["engine"][mode]["bits"].keys() == BITS
    assert all(all(kinds.values()) for kinds in found["engine"]["reproducible"]["bits"].values())
    assert found["engine"]["reproducible"]["kernels"][0]["ms"] > 0
    assert found["bundled"]["float32, reproducible"]["largest"] < 1e-4
    assert found["host"]["150 dots an inch, torch, 1 threads"] > 0


@pytest.mark.nightly
def test_kernels_in_use_are_named() -> None:
    """Interpreted, as `conftest.py` says; one of them is missing."""
    kernels = import_module("lakerank.model.engine.elementwise.kernels")
    found: dict[str, Any] = {}
    given = type("Kernels", (), {"norm": kernels.norm, "rotate": kernels.rotate})
    elementwise(Check(torch.device("cpu"), "tiny", time.monotonic() + 60, {}), found, given)
    kinds = {name: (line["in use"], line["same bits alone"]) for name, line in found.items()}
    fused, plain = ("Triton's", True), ("torch's own", True)
    assert kinds == {"sum and norm": fused, "rotation in float32": fused, "QuickGELU": plain, "SiLU of gates": plain}


@pytest.mark.nightly
def test_a_phase_without_time_fails_and_the_next_one_is_tried(tmp_path: Path) -> None:
    found = check(tmp_path, "--seconds", "0", "--phases", "host,engine")
    assert [*found] == ["engine", "host"]
    assert all("TimeoutError: not done after" in phase["failed"] for phase in found.values())


@pytest.mark.nightly
def test_a_phase_that_is_not_known_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(CHECK), "--out", str(tmp_path), "--phases", "engine,enigne"]
    refused = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert "--phases: enigne: choose of machine, products" in refused.stderr
    assert not [*tmp_path.iterdir()]
