"""What every command line shares: the last line, also as a file, whatever became of the job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from lakerank.cli.job import run_job, verbose_option
from lakerank.errors import LakerankError


def _run(work: Any, *arguments: str) -> Any:
    @click.command()
    @verbose_option
    def command(verbose: bool) -> None:
        run_job(work, verbose)

    return CliRunner().invoke(command, arguments)


def _failing() -> dict[str, Any]:
    raise LakerankError("the store is away")


@pytest.mark.parametrize(
    ("work", "status"),
    [
        (lambda: {"pairs": 3}, 0),
        (_failing, 1),
        (lambda: {"published": False, "failed_audits": ["reject rate"]}, 3),
    ],
)
def test_summary_file_holds_the_last_line_whatever_the_exit_status(work: Any, status: int, tmp_path: Path) -> None:
    address = tmp_path / "not there yet" / "summary.json"
    done = _run(work, "--summary", str(address))
    assert done.exit_code == status
    assert address.read_text() == done.stdout.splitlines()[-1] + "\n"
    assert json.loads(address.read_text())


def test_summary_that_cannot_be_written_changes_neither_status_nor_last_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = _run(lambda: {"pairs": 3}, "--summary", str(tmp_path / "file" / "summary.json"))
    assert done.exit_code == 0
    assert json.loads(done.stdout.splitlines()[-1]) == {"pairs": 3}
    assert "--summary" in done.stderr
