"""The runner of this process: rows reach their partition, tasks their device, and a failure the caller."""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.errors import OverdueError
from lakerank.logs import about, in_worker, log_context
from lakerank.runner import BATCHES, Deadline, LocalRunner, Places, RunningItems, local_devices, one_row, pack
from lakerank.spark.runtime.runner import SparkRunner

ROWS = pa.schema([("row", pa.int64())])
MANAGED, LOCAL = {"spark.task.resource.gpu.amount": "1"}, {"spark.master": "local[2]"}
DONE = pa.schema([("item", pa.int64()), ("thread", pa.string())])


@given(st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=4))
def test_every_row_reaches_its_partition_and_an_empty_one_has_no_task(items):
    runner = LocalRunner(parallelism=2)

    def read(rows: list[int]) -> Iterator[pa.RecordBatch]:
        ordered = np.sort(np.array(rows, np.int64))
        yield from pack(5, ordered % 10, pa.table({"row": ordered}))

    def write(part: int, tables: dict[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        assert set(tables[5]["row"].to_pylist()) == {part}
        yield from tables[5].to_batches()

    exchanged = runner.exchange([runner.scatter(items, read, BATCHES)], 10, {5: ROWS}, write, ROWS)
    received = runner.collect(exchanged, ROWS)["row"].to_pylist()
    assert sorted(received) == sorted(row for item in items for row in item)


@pytest.mark.parametrize(("most", "expected"), [(0, 1), (2, 2), (9, 3)])
def test_a_device_task_has_a_thread_a_core_but_no_more_than_are_worth_it(most, expected):
    together = threading.Barrier(expected)  # passed by so many threads at once, or not at all

    def work(item: int, device: str) -> Iterator[pa.RecordBatch]:
        together.wait(timeout=60)
        with about(stage="score"), in_worker(log_context(), unit=str(item)):
            assert log_context().about["unit"] == str(item), "not that of another thread"
            yield one_row(DONE, item, f"{device} {threading.current_thread().name}")

    done = LocalRunner(parallelism=3).on_device(range(6), work, DONE, Places("cpu", most))
    assert sorted(done["item"].to_pylist()) == [*range(6)]
    assert len(set(done["thread"].to_pylist())) == expected
    assert "unit" not in log_context().about


def test_each_gpu_of_a_host_has_a_thread_of_its_own(monkeypatch):
    """Models are a thread's: no two are on one GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    together, served = threading.Barrier(3), set()

    def work(item, device):
        if item < 3:
            together.wait(10)
        served.add((device, threading.get_ident()))
        yield one_row(DONE, item, device)

    done = LocalRunner(parallelism=2).on_device(range(9), work, DONE, Places("auto", 9))
    assert sorted(done["item"].to_pylist()) == [*range(9)]
    assert sorted(device for device, _ in served) == ["cuda:0", "cuda:1", "cuda:2"]
    assert len({thread for _, thread in served}) == 3


def test_a_task_that_fails_ends_the_others_with_the_item_that_they_are_at(caplog):
    started: list[int] = []

    def work(item: int, device: str) -> Iterator[pa.RecordBatch]:
        started.append(item)
        if item == 0:
            raise ValueError("the first fails")
        threading.Event().wait(0.05)
        yield one_row(DONE, item, device)

    with caplog.at_level(logging.DEBUG, "lakerank"), pytest.raises(ValueError, match="the first fails"):
        LocalRunner(parallelism=2).on_device(range(100), work, DONE, Places("cpu", 9))
    assert len(started) < 20


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [("cpu", "0,1", ["cpu"] * 3), ("auto", "", ["auto"] * 3), ("auto", "0", ["auto"]), ("cuda:1", "0,1", ["cuda:1"]),
     ("cuda", "0,1", ["cuda:0", "cuda:1"])],
)  # fmt: skip
def test_devices_are_the_gpus_or_the_cores(monkeypatch, device, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("sys.platform", "linux")
    assert local_devices(device, 3) == expected
    assert LocalRunner().gives_gpus(device) == (device.startswith("cuda") or (device == "auto" and visible != ""))


@pytest.mark.parametrize(
    ("conf", "device", "expected"),
    [({}, "auto", False), ({}, "cpu", False), ({}, "cuda", True), (MANAGED, "auto", True), (MANAGED, "cpu", False),
     (LOCAL, "auto", True), (LOCAL, "cpu", False)],
)  # fmt: skip
def test_spark_says_whether_its_tasks_have_gpus(monkeypatch, conf, device, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    class Context:
        def getConf(self):  # noqa: N802
            return self

        get, contains = conf.get, conf.__contains__

    session = types.SimpleNamespace(sparkContext=Context())
    assert SparkRunner(session).gives_gpus(device) == expected


def test_an_item_may_take_ten_times_the_slowest_before_it_and_as_long_as_is_forecast_before_any():
    now = [0.0]
    running = RunningItems(Deadline(least_s=5, first_s=100), clock=lambda: now[0])

    def overdue(at: float, *items: str) -> list[str]:
        now[0] = at
        return running.overdue(items)

    assert overdue(0, "a", "b") == overdue(100, "a", "b") == []
    assert overdue(101, "a", "b") == ["a", "b"], "the forecast"
    assert overdue(102, "b", "c") == [], "a ended after it had begun anew"
    assert running.slowest_s == 1
    assert running.limit_s == 10
    assert overdue(112, "b", "c") == ["b"]
    assert overdue(113, "c") == ["c"]
    assert overdue(113.1, "d") == []
    assert running.limit_s == pytest.approx(10)
    quick = RunningItems(Deadline(least_s=5), clock=lambda: now[0])
    quick.overdue(["e"])
    now[0] += 0.1
    quick.overdue([])
    assert quick.limit_s == 5, "and at least so long"
    assert RunningItems(Deadline(least_s=5, first_s=1e9)).limit_s == 24 * 3600, "a forecast of weeks is a day"


def test_an_item_that_never_ends_is_named():
    released = threading.Event()

    def work(item: int, device: str) -> Iterator[pa.RecordBatch]:
        if item == 3:
            released.wait()
        yield one_row(DONE, item, device)

    places = Places("cpu", 2, Deadline(least_s=0.2, every_s=0.05))
    with pytest.raises(OverdueError, match=r"unit 3: not done after 0\.2 s: ended"):
        LocalRunner(parallelism=2).on_device(range(6), work, DONE, places)
    released.set()
