"""Why a job in Spark failed, why a Python worker died, and which file of a table killed it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pyarrow as pa

from lakerank.errors import StorageError
from lakerank.lake.formats import resolve
from lakerank.lake.storage import Storage
from lakerank.lake.trial import deadly_file, deadly_message

#: How Spark begins to tell of a dead worker; what faulthandler wrote follows.
DEATH = "Python worker exited unexpectedly"

_FATAL = re.compile(r"Fatal Python error: (.+)")
_FRAME = re.compile(r'File "(.+)", line (\d+) in (\w+)')


def worker_death(text: str) -> str:
    """What killed a worker, by the text of Spark's error, and what to do about it.

    A signal of its own code leaves a stack. One that leaves none was killed from outside: most often for memory.
    """
    fatal = _FATAL.search(text)
    if fatal is None:
        return (
            f"{DEATH}: it was killed from outside, most often for lack of memory: give executors more "
            "(spark.executor.memoryOverhead), or lower scoring.max_length; on a cluster spark.task.maxFailures lets "
            "Spark try again"
        )
    frame = _FRAME.search(text, fatal.end())
    where = f" in {frame[1]}:{frame[2]} ({frame[3]})" if frame else ""
    return (
        f"{DEATH}: native code crashed ({fatal[1].strip()}){where}, which more memory does not mend: most often a "
        "damaged file, or a library that does not fit this machine; -v shows the whole stack"
    )


def check_tables_are_read(error: Exception, storage: Storage, tables: Mapping[str, tuple[str, pa.Schema]]) -> None:
    """After a job failed because native code of a worker crashed: read the job's tables in a process of its own.

    Raises:
        StorageError: a file kills its reader; it is named.
    """
    if DEATH not in str(error) or _FATAL.search(str(error)) is None:
        return
    for setting, (address, schema) in tables.items():
        files = [file.uri for file in resolve(storage, address).files]
        if found := deadly_file(storage, files, [*schema.names, *storage.columns.get(address, {}).values()]):
            raise StorageError(f"lake.{setting}: {deadly_message(*found)}") from error


#: A worker's LakerankError, which Spark wraps in tracebacks of its own.
_WORKER_ERROR = re.compile(r"^lakerank\.(?:[a-z_]+\.)+([A-Z]\w*): (.*)$", re.MULTILINE)
_CAUSE = re.compile(r"^(?:Caused by: |: )?(?:[\w$]+\.)+([A-Z]\w*(?:Exception|Error)): (.+)$", re.MULTILINE)
_STAGE = re.compile(r"Job aborted due to stage failure: (.+)")

#: What to do about a cause that a Spark error message contains.
_ADVICE = {
    "No space left on device": "the disk under Spark's local folders is full (spark.local.dir or SPARK_LOCAL_DIRS): "
    "free space there or name other folders",
    "OutOfMemoryError": "Java ran out of memory: raise spark.driver.memory or spark.executor.memory",
    "ExecutorLostFailure": "executors were lost: the cluster manager's log has the reason, most often memory "
    "(spark.executor.memoryOverhead)",
}


def spark_failure(error: Exception) -> tuple[str, str] | None:
    """Name and a short message of a failure in Spark, whose own text fills pages; None for any other error."""
    text = str(error)
    if errors := _WORKER_ERROR.findall(text):
        name, message = errors[-1]
        return name, message
    stage, causes = _STAGE.search(text), _CAUSE.findall(text)
    if stage is None and not causes:
        return None
    if DEATH in text:
        return "SparkFailure", f"{worker_death(text)}; then run the same command again, finished units are kept"
    for sign, advice in _ADVICE.items():
        if sign in text:
            return "SparkFailure", f"{sign}: {advice}; then run the same command again, finished units are kept"
    if "Traceback (most recent call last)" in text:  # a fault of Python code, which needs all of it
        return None
    name, message = causes[-1] if causes else ("SparkFailure", stage[1] if stage else "")
    return name, f"{message.strip()[:300]} (Spark's whole message: run again with -v)"
