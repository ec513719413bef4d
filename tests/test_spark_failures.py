"""Pages of Spark's words become a cause and what to do; an error that is not Spark's stays as it is."""

from __future__ import annotations

import pytest

from lakerank.cli.spark_failures import told_by_spark

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
    told = told_by_spark(Exception(PAGES.format(cause=cause)))
    assert told is not None
    assert advice in told[1]
    assert "run the same command again" in told[1]
    assert "\n" not in told[1]


def test_an_unknown_cause_is_named_without_its_pages() -> None:
    assert told_by_spark(Exception(PAGES.format(cause="java.net.ConnectException: Connection refused"))) == (
        "ConnectException", "Connection refused (Spark's whole message: run again with -v)"
    )  # fmt: skip


TRACEBACK = "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n  File x\nValueError: y"


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("3 results"), Exception(PAGES.format(cause=TRACEBACK))])
def test_what_is_not_sparks_is_left_alone(error: Exception) -> None:
    assert told_by_spark(error) is None
