"""Ends tasks that take too long: a stopped worker, or one that waits for ever, would never say so itself."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from pyspark import SparkContext

from lakerank.errors import OverdueError
from lakerank.logs import duration
from lakerank.runner import Deadline, RunningItems

logger = logging.getLogger(__name__)

#: Tasks of a stage that are looked at, in order of their ids: more do not run at once.
_MOST_TASKS = 100_000


@contextmanager
def ended_when_overdue(context: SparkContext, deadline: Deadline, name: Callable[[int], str]) -> Iterator[None]:
    """Within the block: kill an overdue task's worker, so that Spark runs the task again; the second time end all.

    The driver watches, and Spark kills the worker from outside: neither needs the worker's help, wherever it is.

    Args:
        name: what a message calls the task of an index.

    Raises:
        OverdueError: a task was overdue twice; it is named.
    """
    running, ended = RunningItems(deadline), Counter[tuple[int, int]]()
    group, faults, stop = context.getLocalProperty("spark.jobGroup.id"), list[str](), Event()

    def look() -> None:
        tasks = _running_tasks(context, group)
        for task in running.overdue(tasks):
            stage, index = tasks[task]
            ended[stage, index] += 1
            words = f"{name(index)}: not done after {duration(running.limit_s)}"
            if ended[stage, index] > 1:
                faults.append(words)
                context._jsc.sc().cancelStage(stage)
            else:
                logger.warning("%s: its worker is killed, and it is tried once more", words)
                context._jsc.sc().killTaskAttempt(task, True, words)

    def watch() -> None:
        try:
            while not stop.wait(deadline.every_s):
                look()
        except Exception as error:  # a session that is being stopped; without a watch the job is as it was
            logger.debug("tasks are not watched: %s", error)

    watcher = Thread(target=watch, name="overdue", daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        if faults:
            raise OverdueError(faults[0], tries=2) from error
        raise
    finally:
        stop.set()
        watcher.join(timeout=10)


def _running_tasks(context: SparkContext, group: str | None) -> dict[int, tuple[int, int]]:
    """Stage and index of each task that runs for a job group, or for none, by its id."""
    tracker, spark = context.statusTracker(), context._jsc.sc()
    jvm: Any = context._jvm
    api = jvm.org.apache.spark.status.api.v1
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
    stages = {stage for job in jobs if job is not None for stage in job.stageIds}
    statuses = jvm.java.util.ArrayList()
    statuses.add(api.TaskStatus.RUNNING)
    tasks: dict[int, tuple[int, int]] = {}
    for stage in stages.intersection(tracker.getActiveStageIds()):
        if (info := tracker.getStageInfo(stage)) is not None:
            listed = spark.statusStore().taskList(
                stage, info.currentAttemptId, 0, _MOST_TASKS, api.TaskSorting.ID, statuses
            )
            found = [listed.apply(number) for number in range(listed.size())]
            tasks |= {task.taskId(): (stage, task.index()) for task in found}
    return tasks
