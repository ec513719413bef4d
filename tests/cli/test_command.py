"""The console command: a subcommand for every job, imported on use, and bundled configs by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lakerank import __version__
from lakerank.cli import COMMANDS, FOR_PEOPLE, JOBS, main
from lakerank.cli.rerank import rerank

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "pyspark", "pandas", "pyarrow", "numpy", "pydantic", "yaml")


def test_every_job_is_a_subcommand_but_the_benchmark_which_is_not_installed() -> None:
    assert sorted(JOBS) == sorted({path.stem for path in (ROOT / "jobs").glob("*.py")} - {"benchmark"})


@pytest.mark.parametrize("name", FOR_PEOPLE)
def test_what_is_for_people_is_a_subcommand_too(name: str) -> None:
    assert CliRunner().invoke(main, [name, "--help"]).output.startswith(f"Usage: main {name} ")


@pytest.mark.parametrize("name", JOBS)
def test_a_subcommand_has_the_options_of_its_job(name: str) -> None:
    def help_of(*command: str) -> str:
        return subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True, check=True).stdout

    ours, job = help_of("-m", "lakerank", name), help_of(str(ROOT / "jobs" / f"{name}.py"))
    assert ours.startswith(f"Usage: lakerank {name} ")
    assert ours.partition("\n")[2] == job.partition("\n")[2]


def test_help_lists_the_subcommands_and_imports_none() -> None:
    code = (
        "import json, sys; from lakerank.cli import main; main(['--help'], standalone_mode=False); "
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed.splitlines()[-1]) == []
    for name, purpose in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, purpose] for line in printed.splitlines())


def test_version_and_unknown_subcommands() -> None:
    assert __version__ in CliRunner().invoke(main, ["--version"]).output
    unknown = CliRunner().invoke(main, ["benchmark"])
    assert unknown.exit_code == 2
    assert "No such command 'benchmark'" in unknown.output
    assert re.search(r"Did you mean .*'search'", CliRunner().invoke(main, ["serch"]).output)


def _message(*config: str) -> str:
    done = CliRunner().invoke(rerank, ["--run-id", "r", "--set", "ranking.depth=0", *config])
    assert done.exit_code == 2
    message: str = json.loads(done.stdout.splitlines()[-1])["message"]
    return message


def test_a_bundled_config_is_found_by_name_where_there_is_no_such_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert _message("--config", "demo") == "--set ranking.depth: must be greater than or equal to 1 (found 0)"
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text("spark: {nonsense: 1}")
    assert "demo: spark.nonsense: no such setting" in _message("--config", "demo")
    assert _message("--config", "nothing").startswith("nothing: cannot be read")
