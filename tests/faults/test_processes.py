"""Workers and executors that die, duplicate tasks and drivers, corrupt files: one run, the same bytes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from lakerank.lake.scores import finished_units, read_unit, scores_folder, write_unit

pytestmark = [pytest.mark.spark, pytest.mark.nightly]
SCORER = "f00d"

CLUSTER = {"spark.master": "local-cluster[2,1,1024]", "spark.executor.memory": "700m"}


@pytest.mark.full
def test_a_killed_python_worker_costs_its_unit_alone(deployment, undisturbed):
    marker = str(deployment.scratch / "killed")
    driver = deployment.start({"spark.master": "local[2,4]"}, kill_worker=("d11", marker))
    assert driver.wait() == 0, driver.words
    assert Path(marker).exists()
    assert deployment.scored()[0] == driver.summary["pairs"] == 240
    deployment.check_published(undisturbed)


@pytest.mark.full
def test_a_killed_python_worker_without_retries_stops_the_job_with_a_message(deployment, undisturbed):
    driver = deployment.start(kill_worker=("d11", str(deployment.scratch / "killed")))
    assert driver.wait() == 1
    assert "Python worker" in driver.summary["message"], driver.summary
    assert "run the same command again" in driver.summary["message"]
    assert len(driver.summary["message"]) < 600, "a message, not a traceback"
    deployment.recover(undisturbed)


@pytest.mark.parametrize("conf", [{}, pytest.param(CLUSTER, marks=pytest.mark.full)], ids=["local", "cluster"])
def test_a_stopped_python_worker_is_killed_and_its_unit_scored_again(deployment, undisturbed, conf):
    marker = str(deployment.scratch / "stopped")
    driver = deployment.start(conf, stop_worker=("d11", [marker]), deadline_s=8)
    assert driver.wait() == 0, driver.words
    assert Path(marker).exists()
    assert "its worker is killed, and it is tried once more" in driver.words
    assert deployment.scored()[0] == driver.summary["pairs"] == 240
    deployment.check_published(undisturbed)


@pytest.mark.full
def test_a_unit_whose_worker_stops_twice_is_named_and_the_job_ends(deployment, undisturbed):
    markers = [str(deployment.scratch / f"stopped-{number}") for number in range(3)]
    driver = deployment.start(stop_worker=("d11", markers), deadline_s=8)
    assert driver.wait() == 1
    assert not Path(markers[2]).exists()
    assert driver.summary["error"] == "OverdueError", driver.summary
    unit = driver.summary["message"].split(":")[0].removeprefix("unit ")
    assert unit not in finished_units(deployment.storage, deployment.output, SCORER)
    deployment.recover(undisturbed)
    assert unit in finished_units(deployment.storage, deployment.output, SCORER)


@pytest.mark.full
def test_a_lost_executor_is_replaced(deployment, undisturbed, eventually):
    driver = deployment.start(CLUSTER, pause_s=0.1)
    eventually(lambda: finished_units(deployment.storage, deployment.output, SCORER), driver)
    lost = next(process for process in _descendants(driver) if "CoarseGrainedExecutorBackend" in _command(process))
    os.kill(lost, signal.SIGKILL)
    assert driver.wait() == 0, driver.words
    assert deployment.scored()[0] == 240
    deployment.check_published(undisturbed)


def _descendants(driver) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    result = [driver.process.pid]
    for process in result:
        result += [child for child, parent in parents.items() if parent == process]
    return result


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def test_two_drivers_of_one_run_publish_it_once_and_the_second_says_so(deployment, undisturbed):
    drivers = [deployment.start(pause_s=0.02), deployment.start(pause_s=0.02)]
    assert [driver.wait() for driver in drivers] == [0, 0], "\n".join(driver.words for driver in drivers)
    assert [driver.summary["published"] for driver in drivers] == [True, True]
    deployment.check_published(undisturbed)
    assert deployment.scored()[0] == 240
    others = ("published by another driver meanwhile", "is published already")
    assert sum(any(word in driver.words for word in others) for driver in drivers) == 1


@pytest.mark.full
@pytest.mark.parametrize("length", [0, 7, 400])
def test_a_unit_truncated_by_hand_is_scored_again_and_no_other(deployment, undisturbed, length):
    driver = deployment.start(stages=["plan", "score"])
    assert driver.wait() == 0, driver.words
    unit = min(finished_units(deployment.storage, deployment.output, SCORER))
    address = Path(scores_folder(deployment.output, SCORER), f"{unit}.parquet")
    whole = address.read_bytes()
    address.write_bytes(whole[:length])
    deployment.recover(undisturbed)
    assert address.read_bytes() == whole


@pytest.mark.full
def test_a_unit_written_twice_is_written_once(deployment, undisturbed):
    driver = deployment.start(stages=["plan", "score"])
    assert driver.wait() == 0, driver.words
    _, versions = deployment.scored()
    for unit in finished_units(deployment.storage, deployment.output, SCORER):
        rows = read_unit(deployment.storage, deployment.output, SCORER, unit)
        assert not write_unit(deployment.storage, deployment.output, SCORER, unit, rows)
    assert deployment.scored()[1] == versions
    deployment.recover(undisturbed)


@pytest.mark.full
def test_a_full_disk_under_sparks_local_folder_is_named(deployment, undisturbed, small_disk):
    driver = deployment.start({"spark.local.dir": str(small_disk)})
    assert driver.wait() == 1
    assert "No space left on device" in driver.summary["message"], driver.summary
    assert "spark.local.dir" in driver.summary["message"]
    assert not deployment.storage.exists(deployment.paths().current)
    deployment.recover(undisturbed)


@pytest.mark.full
def test_a_full_disk_under_the_output_is_named(deployment, undisturbed, small_disk):
    driver = deployment.start(output=str(small_disk / "out"))
    assert driver.wait() == 1
    assert "No space left on device" in driver.summary["message"], driver.summary
    assert str(small_disk) in driver.summary["message"]
    assert not (small_disk / "out" / "current.json").exists()
    deployment.recover(undisturbed)
