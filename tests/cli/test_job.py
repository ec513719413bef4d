"""What the command lines share: the last line, also as a file, and short messages for Spark's failures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from lakerank.cli.job import NO_JAVA, Job, check_java, needs_no_spark
from lakerank.config import SparkConfig
from lakerank.errors import DependencyError, LakerankError
from lakerank.spark.runtime.crash import spark_failure


def _run(work: Any, *arguments: str) -> Any:
    @click.command(cls=Job, config=None)
    def command() -> Any:
        return work()

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


@click.command(cls=Job)
@click.option("--run-id", required=True)
@click.option("--depth", type=int)
def command(given: Any, **options: Any) -> dict[str, Any]:
    return {"config": given.source}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option '--run-id'"),
        (["--run-id", "r", "--dept", "3"], "Did you mean one of: '--depth'"),
        (["--run-id", "r", "--depth", "x"], "'x' is not a valid integer"),
        (["--run-id", "r", "extra"], "unexpected extra argument"),
    ],
)
def test_wrong_arguments_give_a_last_line_and_a_summary_file_too(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    address = tmp_path / "summary.json"
    given = ["--config", "demo", *arguments, f"--summary={address}"]
    done = CliRunner().invoke(command, given)
    assert done.exit_code == 2
    assert done.stderr.startswith("Usage: command")
    last = json.loads(address.read_text())
    assert json.loads(done.stdout) == last
    assert words in last["message"]


def test_the_config_at_hand_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    without = CliRunner().invoke(command, ["--run-id", "r"])
    assert without.exit_code == 2
    assert f"no lakerank.yaml in {tmp_path}" in json.loads(without.stdout)["message"]
    assert "lakerank init FOLDER --queries FILE" in without.stderr
    Path("lakerank.yaml").write_text("{}")
    Path("other.yaml").write_text("{}")
    for given, expected in (([], "lakerank.yaml"), (["--config", "other.yaml"], "other.yaml")):
        done = CliRunner().invoke(command, ["--run-id", "r", *given])
        assert json.loads(done.stdout) == {"config": expected}


def test_without_java_the_message_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(DependencyError, match=f"JAVA_HOME={tmp_path} has no bin/java"):
        check_java()
    monkeypatch.delenv("JAVA_HOME")
    with pytest.raises(DependencyError, match="none was found"):
        check_java()
    (tmp_path / "java").touch(mode=0o755)
    check_java()
    advice = NO_JAVA.partition("Install one, ")[2]
    assert advice in (Path(__file__).parents[2] / "bin" / "java-home").read_text()


PAGES = """An error occurred while calling o437.collectToPython.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 3.0 failed 1 times, most recent \
failure: Lost task 0.0 in stage 3.0 (TID 5) (localhost executor driver): {cause}
\tat org.apache.spark.shuffle.sort.BypassMergeSortShuffleWriter.write(BypassMergeSortShuffleWriter.java:192)
Caused by: {cause}
\t... 13 more
"""


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        ("java.io.IOException: No space left on device", "spark.local.dir"),
        ("org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)", "spark.task.maxFailures"),
        ("java.lang.OutOfMemoryError: Java heap space", "spark.driver.memory"),
    ],
)
def test_a_known_cause_comes_with_what_to_do(cause: str, advice: str) -> None:
    failure = spark_failure(Exception(PAGES.format(cause=cause)))
    assert failure is not None
    assert advice in failure[1]
    assert "run the same command again" in failure[1]
    assert "\n" not in failure[1]


def test_an_unknown_cause_is_named_without_its_pages() -> None:
    assert spark_failure(Exception(PAGES.format(cause="java.net.ConnectException: Connection refused"))) == (
        "ConnectException", "Connection refused (Spark's whole message: run again with -v)"
    )  # fmt: skip


TRACEBACK = "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n  File x\nValueError: y"


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("3 results"), Exception(PAGES.format(cause=TRACEBACK))])
def test_what_is_not_sparks_is_left_alone(error: Exception) -> None:
    assert spark_failure(error) is None


@pytest.mark.parametrize(
    ("settings", "environment", "expected"),
    [
        ({}, {}, True),
        ({"local_pairs": 0}, {}, False),
        ({"conf": {"spark.master": "local[3]"}}, {}, True),
        ({"conf": {"spark.master": "yarn"}}, {}, False),
        ({"conf": {"spark.master": "local-cluster[2,1,1024]"}}, {}, False),
        ({}, {"PYSPARK_GATEWAY_PORT": "4711"}, False),
        ({}, {"SPARK_REMOTE": "sc://host"}, False),
    ],
)
def test_spark_is_not_started_for_ten_pairs_unless_somebody_chose_it(monkeypatch, settings, environment, expected):
    monkeypatch.delitem(sys.modules, "pyspark", raising=False)  # another test's session
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert needs_no_spark(SparkConfig(**settings), lambda: True) is expected
    assert not needs_no_spark(SparkConfig(**settings), lambda: False)
