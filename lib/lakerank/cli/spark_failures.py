"""What Spark says when a job dies under it, cut down to the cause and what to do; its own words run over pages."""

from __future__ import annotations

import re

_CAUSE = re.compile(r"^(?:Caused by: |: )?(?:[\w$]+\.)+([A-Z]\w*(?:Exception|Error)): (.+)$", re.MULTILINE)
_STAGE = re.compile(r"Job aborted due to stage failure: (.+)")

#: What a cause looks like, and what to do about it.
_ADVICE = (
    (
        "No space left on device",
        "the disk under Spark's local folders is full (spark.local.dir or SPARK_LOCAL_DIRS names them): free space "
        "there or name others",
    ),
    (
        "Python worker exited unexpectedly",
        "a Python worker was killed, most often for want of memory: give executors more "
        "(spark.executor.memoryOverhead), or lower scoring.max_length; on a cluster spark.task.maxFailures lets Spark "
        "try again",
    ),
    (
        "OutOfMemoryError",
        "Java ran out of memory: raise spark.driver.memory or spark.executor.memory",
    ),
    (
        "ExecutorLostFailure",
        "executors were lost: the cluster manager's log says why, most often memory (spark.executor.memoryOverhead)",
    ),
)  # fmt: skip


def told_by_spark(error: Exception) -> tuple[str, str] | None:
    """Name and message of a failure that Spark reports at length; None when the error is not Spark's."""
    text = str(error)
    stage = _STAGE.search(text)
    causes = _CAUSE.findall(text)
    if stage is None and not causes:
        return None
    for sign, advice in _ADVICE:
        if sign in text:
            return "SparkFailure", f"{sign}: {advice}; then run the same command again, finished units are kept"
    if "Traceback (most recent call last)" in text:  # a fault of Python code: all of it is wanted
        return None
    name, message = causes[-1] if causes else ("SparkFailure", stage[1] if stage else "")
    return name, f"{message.strip()[:300]} (Spark's whole message: run again with -v)"
