"""`lakerank ingest --layout` on the command line: with the readers of benchmarks, and where no wheel brought them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lakerank.cli.ingest import DATASETS
from lakerank_datasets.command import OPTIONS


def lakerank(*words: str, is_wheel: bool = False) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, in which `is_wheel` hides the package that wheels are without."""
    hide = f"sys.modules[{DATASETS!r}] = None; " if is_wheel else ""
    code = f"import sys; {hide}from lakerank.cli import main; main({list(words)!r}, prog_name='lakerank')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("more", [["--layout", "beir"], ["--layout=auto", "--run", "run.txt", "--plain-ids"]])
def test_a_wheel_says_where_benchmarks_are_read(publish, tmp_path, more) -> None:
    words = ["ingest", str(publish("beir")), *more, "--output", str(tmp_path / "lake")]
    done = lakerank(*words, is_wheel=True)
    assert done.returncode == 2, done.stderr
    message = json.loads(done.stdout.splitlines()[-1])["message"]
    assert "\n" not in message
    assert all(part in message for part in ("--layout", "clone", "jobs/ingest.py", "docs/benchmarks.md"))
    assert not (tmp_path / "lake").exists()


def test_a_wheel_ingests_files(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("A red apple.")
    done = lakerank("ingest", str(tmp_path / "a.txt"), "--output", str(tmp_path / "lake"), is_wheel=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == 1


def test_a_clone_has_the_options_in_its_help_and_a_wheel_has_not() -> None:
    names = [option.opts[0] for option in OPTIONS]
    clone, wheel = (lakerank("ingest", "--help", is_wheel=is_wheel).stdout for is_wheel in (False, True))
    assert [name for name in names if f"  {name} " not in clone] == []
    assert [name for name in names if f"  {name} " in wheel] == []
    assert "--encoding" in wheel


@pytest.mark.parametrize("words", [["--split", "test"], ["--plain-ids"], ["--layout", "beir", "--kind", "pdf"]])
def test_options_of_a_benchmark_and_of_a_table_do_not_mix(publish, tmp_path, words) -> None:
    done = lakerank("ingest", str(publish("beir")), *words, "--output", str(tmp_path / "lake"))
    assert done.returncode == 2
    assert "--layout" in json.loads(done.stdout.splitlines()[-1])["message"]
