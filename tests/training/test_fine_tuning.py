"""The pages on training work as written: their commands run, with fewer steps."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.nightly
ROOT = Path(__file__).parents[2]


def test_the_page_on_click_logs_works_as_written(tmp_path: Path) -> None:
    for name in ("conf", "jobs", "lib"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    config = tmp_path / "conf" / "train-clicks.yaml"
    fewer = config.read_text().replace("steps: 60", "steps: 4").replace("every: 20", "every: 2")
    config.write_text(fewer)
    page = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed = ""
    for language, block in re.findall(r"^```(python|bash)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        command = [sys.executable, "-c", block] if language == "python" else ["bash", "-euc", block]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr[-3000:]}"
        printed = done.stdout
    summary = json.loads(printed.splitlines()[-1])
    assert summary["run_id"] == "after"
    assert summary["queries"] > 50
    card = (tmp_path / "out" / "clicks" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "held out text→image" in card


def test_the_first_command_of_the_page_on_training_works_as_written(tmp_path: Path) -> None:
    """With a checkpoint that is here, and judgements of some of the queries."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    python jobs/train\.py (.+)$", page, re.MULTILINE)
    for name in ("conf", "jobs", "lib"):
        (tmp_path / name).symlink_to(ROOT / name)
    judged = pq.read_table(ROOT / "lib/lakerank/ingest/demo_lake/qrels.parquet")
    pq.write_table(judged.slice(0, judged.num_rows // 2), tmp_path / "clicks.parquet")
    stage = "stages=[{name: adapt, steps: 1, groups: 1, group_size: 2}]"
    less = ["--set", stage, "--set", "evaluation.candidates=10"]
    arguments = shlex.split(command.replace("/models/m0", "embedded"))
    done = subprocess.run(
        [sys.executable, "jobs/train.py", *arguments, *less], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "adapted" / "adapter" / "adapter_model.safetensors").is_file()
