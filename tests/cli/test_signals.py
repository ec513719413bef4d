"""SIGINT and SIGTERM: one line, the last line of JSON, the status by convention, no child left, within seconds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]

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


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--config", "demo", "--run-id", "r", "--set", "lake.output=http://127.0.0.1:{port}/out"],
        [
            "export",
            "--config",
            "demo",
            "--format",
            "trec-run",
            "--run-id",
            "r",
            "--to",
            "exported",
            "--set",
            "lake.output=http://127.0.0.1:{port}/out",
        ],
        ["ingest", "--config", "demo"],
        ["candidates", "--config", "demo", "--output", "pairs"],
        ["rerank", "--config", "demo", "--run-id", "r"],
        ["train", "--config", str(ROOT / "conf" / "train-clicks.yaml")],
    ],
    ids=lambda command: command[0],
)
def test_every_job_has_last_words(command: list[str], number: signal.Signals, tmp_path: Path) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # a store that takes requests and never answers
    port = silent.getsockname()[1]
    job = subprocess.Popen(
        [sys.executable, "-m", "lakerank", *(word.format(port=port) for word in command)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    caught = 1 << (signal.SIGTERM - 1)  # once the job's own handler is there, its work has begun
    while not int(Path(f"/proc/{job.pid}/status").read_text().split("SigCgt:")[1].split()[0], 16) & caught:
        assert job.poll() is None, job.communicate()
        time.sleep(0.001)
    job.send_signal(number)
    out, error = job.communicate(timeout=60)
    assert job.returncode == 128 + number, (out, error)
    assert json.loads(out.splitlines()[-1])["signal"] == number.name
    assert f"interrupted: by {number.name} after " in error.splitlines()[-1]
    with pytest.raises(ProcessLookupError):
        os.killpg(job.pid, 0)
    silent.close()
