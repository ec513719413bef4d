"""docs/fine-tuning.md works as written: its blocks run in order, with fewer steps."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

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
