"""SIGINT and SIGTERM: one line, the last line of JSON, the status by convention, no child left, within seconds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

#: A job in a process of its own, with a child; it gets a signal once `ready` is there. {body} is what it does then.
JOB = """\
import pathlib, subprocess, sys, time
import click
from lakerank.cli import signals
from lakerank.cli.job import Job, when_interrupted
from lakerank.logs import about

signals.GRACE_S = {grace}

def work():
    child = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $! > new; mv new grandchild; wait"])
    while not pathlib.Path("grandchild").exists():
        time.sleep(0.01)
    with about(stage="score"):
        pathlib.Path("child").write_text(str(child.pid))
        {body}
    return {{"done": True}}

@click.command(cls=Job, config=None)
@click.option("--run-id")
def job(run_id):
    when_interrupted(lambda: {{"finished_units": 3}})
    return work()

job()
"""
WAITING = """
        pathlib.Path("ready").touch()
        time.sleep(1000)
"""
STUBBORN = """
        while True:
            try:
                pathlib.Path("ready").touch()
                time.sleep(1000)
            except BaseException:
                pathlib.Path("ready").rename("stubborn")
"""


def _ended(
    folder: Path, body: str, signals: list[tuple[str, signal.Signals]], grace: float = 60
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a job that gets signals, each once a file is there."""
    script = JOB.format(body=body, grace=grace)
    command = [sys.executable, "-c", script, "--run-id", "r", "--summary", "summary.json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        for name, number in signals:
            while not (folder / name).exists():
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(number)
        out, error = process.communicate(timeout=60)
    return process.returncode, out, error


@pytest.mark.parametrize(
    ("body", "numbers", "grace"),
    [
        (WAITING, [("ready", signal.SIGTERM)], 60),
        (WAITING, [("ready", signal.SIGINT)], 60),
        (STUBBORN, [("ready", signal.SIGTERM)], 0.2),
        (STUBBORN, [("ready", signal.SIGTERM), ("stubborn", signal.SIGTERM)], 60),
    ],
    ids=["SIGTERM", "SIGINT", "a job that does not end", "a second signal"],
)
def test_an_interrupted_job_says_what_was_done(
    body: str, numbers: list[tuple[str, signal.Signals]], grace: float, tmp_path: Path
) -> None:
    status, out, error = _ended(tmp_path, body, numbers, grace)
    name = numbers[0][1].name
    assert status == 128 + numbers[0][1]
    (line,) = error.splitlines()
    assert line.startswith(f"interrupted: by {name} after ")
    (last,) = out.splitlines()
    assert (tmp_path / "summary.json").read_text() == f"{last}\n"
    summary = json.loads(last)
    assert summary.pop("seconds") > 0
    assert summary.pop("message") in line
    assert summary == {
        "error": "interrupted", "interrupted": True, "signal": name, "stage": "score", "run_id": "r",
        "finished_units": 3,
    }  # fmt: skip
    for process in ("child", "grandchild"):
        with suppress(psutil.NoSuchProcess):
            assert psutil.Process(int((tmp_path / process).read_text())).status() == psutil.STATUS_ZOMBIE
