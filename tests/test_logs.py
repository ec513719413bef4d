"""Log lines as JSON: what they are about, and that each is one line whatever it says."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from lakerank.logs import PACKAGES, JsonLines, LogContext, about, duration, in_worker, log_context, rate, scaled

ROOT = Path(__file__).parent.parent


def line(message: str, **more: object) -> dict[str, object]:
    record = logging.LogRecord("lakerank.rerank.plan.builder", logging.INFO, __file__, 1, message, None, None)
    record.__dict__.update(more)
    written = JsonLines().format(record)
    assert "\n" not in written
    return json.loads(written)


def test_a_line_says_when_who_and_what_it_is_about():
    with about(run="r1", stage="plan"), about(stage="score", unit="ab"):
        result = line("two\nlines")
    assert datetime.fromisoformat(str(result.pop("time"))).utcoffset() is not None
    expected = {"level": "INFO", "logger": "lakerank.rerank.plan.builder", "message": "two\nlines"}
    assert result == {**expected, "run": "r1", "stage": "score", "unit": "ab"}


def test_what_a_line_is_about_ends_with_its_block():
    with pytest.raises(ValueError, match="out"), about(run="r1"):
        raise ValueError("out")
    assert "run" not in line("after")
    assert log_context() == LogContext()


def test_a_worker_goes_on_with_what_the_driver_was_about():
    with about(run="r1", stage="score"):
        context = log_context()
    with in_worker(context, unit="ab"):
        assert dict(log_context().about) == {"run": "r1", "stage": "score", "unit": "ab"}
    assert not log_context().about


def test_a_traceback_is_part_of_its_line():
    try:
        raise ValueError("no")
    except ValueError:
        assert "ValueError: no" in line("failed", exc_info=sys.exc_info())["traceback"]


def test_a_job_that_fails_says_so_in_json_too(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "jobs" / "rerank.py"),
        "--config",
        str(tmp_path / "no.yaml"),
        "--run-id",
        "r1",
    ]
    done = subprocess.run([*command, "--log-format", "json"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (messages,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (messages["level"], messages["logger"], messages["run"]) == ("ERROR", "lakerank.cli.job", "r1")
    assert messages["message"].startswith("ConfigError: ")
    assert json.loads(done.stdout)["error"] == "ConfigError"


def test_the_log_has_the_progress_of_every_package_beside_lakerank():
    sources = (ROOT / "lib").rglob("*.py")
    logging_packages = {
        path.relative_to(ROOT / "lib").parts[0] for path in sources if "getLogger(__name__)" in path.read_text()
    }
    code = "import logging; from lakerank import logs; logs.start_logging('text')\n"
    code += f"for name in {sorted(logging_packages)}: logging.getLogger(name + '.run').info(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {line.split()[-1] for line in done.stderr.splitlines()} == logging_packages == set(PACKAGES)


def test_figures_are_in_units_that_fit() -> None:
    assert [scaled(value, "B") for value in (0, 999, 1000, 999_600, 3.14e9)] == [
        "0 B", "999 B", "1 kB", "1 MB", "3.14 GB",
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (0.031, 4.2, 40, 119, 121, 7200, 12345)] == [
        "0.031 s", "4.2 s", "40 s", "119 s", "2 min", "2.0 h", "3.4 h",
    ]  # fmt: skip
    assert [rate(pairs, 10, "pairs") for pairs in (0, 1, 12, 1234)] == [
        "0 pairs/min", "6 pairs/min", "1.2 pairs/s", "123 pairs/s",
    ]  # fmt: skip
