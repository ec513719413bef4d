"""Which GPU a Spark task uses, by task contexts as executors make them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyspark import TaskContext
from pyspark.resource import ResourceInformation

from lakerank.spark.runtime.session import device_for_task


@pytest.fixture
def context() -> Iterator[TaskContext]:
    """The context of a task in this process."""
    before, TaskContext._taskContext = TaskContext._taskContext, None
    task = TaskContext._getOrCreate()
    task._partitionId, task._resources = 0, {}
    yield task
    TaskContext._taskContext = before


@pytest.mark.parametrize("address", ["0", "3"])
def test_a_task_has_the_gpu_that_spark_gives_it(context: TaskContext, address: str) -> None:
    """Of two executors on a host, each with GPUs of its own, whatever their tasks' numbers."""
    context._resources = {"gpu": ResourceInformation("gpu", [address])}
    context._partitionId = 7
    assert device_for_task("auto") == device_for_task("cuda") == f"cuda:{address}"
    assert device_for_task("cpu") == "cpu"


def test_tasks_of_one_machine_share_out_its_gpus(context: TaskContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    devices = []
    for number in range(3):
        context._partitionId = number
        devices.append(device_for_task("auto"))
    assert devices == ["cuda:0", "cuda:1", "cuda:2"]
    assert device_for_task("cuda:1") == "cuda:1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert device_for_task("auto") == "auto"
