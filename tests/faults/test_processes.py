"""Workers and executors that die, tasks and drivers that come twice, files that are torn: one run, the same bytes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from lakerank.lake.scores import finished_units, read_unit, scores_folder, write_unit

pytestmark = [pytest.mark.spark, pytest.mark.nightly]
SCORER = "f00d"


@pytest.mark.full
def test_a_killed_python_worker_costs_its_unit_alone(house, undisturbed):
    marker = str(house.scratch / "killed")
    driver = house.start({"spark.master": "local[2,4]"}, kill_worker=("d11", marker))
    assert driver.wait() == 0, driver.words
    assert Path(marker).exists()
    assert house.scored()[0] == driver.summary["pairs"] == 240
    house.check_published(undisturbed)


@pytest.mark.full
def test_a_killed_python_worker_without_retries_stops_the_job_with_a_message(house, undisturbed):
    driver = house.start(kill_worker=("d11", str(house.scratch / "killed")))
    assert driver.wait() == 1
    assert "Python worker" in driver.summary["message"], driver.summary
    assert "run the same command again" in driver.summary["message"]
    assert len(driver.summary["message"]) < 600, "a message, not a traceback"
    house.recover(undisturbed)


@pytest.mark.full
def test_a_lost_executor_is_replaced(house, undisturbed, eventually):
    cluster = {"spark.master": "local-cluster[2,1,1024]", "spark.executor.memory": "700m"}
    driver = house.start(cluster, pause_s=0.1)
    eventually(lambda: finished_units(house.storage, house.output, SCORER), driver)
    lost = next(process for process in _descendants(driver) if "CoarseGrainedExecutorBackend" in _command(process))
    os.kill(lost, signal.SIGKILL)
    assert driver.wait() == 0, driver.words
    assert house.scored()[0] == 240
    house.check_published(undisturbed)


def _descendants(driver) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [driver.process.pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def test_two_drivers_of_one_run_publish_it_once_and_the_second_says_so(house, undisturbed):
    drivers = [house.start(pause_s=0.02), house.start(pause_s=0.02)]
    assert [driver.wait() for driver in drivers] == [0, 0], "\n".join(driver.words for driver in drivers)
    assert [driver.summary["published"] for driver in drivers] == [True, True]
    house.check_published(undisturbed)
    assert house.scored()[0] == 240
    others = ("published by another driver meanwhile", "is published already")
    assert sum(any(word in driver.words for word in others) for driver in drivers) == 1


@pytest.mark.full
@pytest.mark.parametrize("length", [0, 7, 400])
def test_a_unit_truncated_by_hand_is_scored_again_and_no_other(house, undisturbed, length):
    driver = house.start(stages=["plan", "score"])
    assert driver.wait() == 0, driver.words
    unit = min(finished_units(house.storage, house.output, SCORER))
    address = Path(scores_folder(house.output, SCORER), f"{unit}.parquet")
    whole = address.read_bytes()
    address.write_bytes(whole[:length])
    house.recover(undisturbed)
    assert address.read_bytes() == whole


@pytest.mark.full
def test_a_unit_written_twice_is_written_once(house, undisturbed):
    driver = house.start(stages=["plan", "score"])
    assert driver.wait() == 0, driver.words
    _, versions = house.scored()
    for unit in finished_units(house.storage, house.output, SCORER):
        rows = read_unit(house.storage, house.output, SCORER, unit)
        assert not write_unit(house.storage, house.output, SCORER, unit, rows)
    assert house.scored()[1] == versions
    house.recover(undisturbed)


@pytest.mark.full
def test_a_full_disk_under_sparks_local_folder_is_named(house, undisturbed, small_disk):
    driver = house.start({"spark.local.dir": str(small_disk)})
    assert driver.wait() == 1
    assert "No space left on device" in driver.summary["message"], driver.summary
    assert "spark.local.dir" in driver.summary["message"]
    assert not house.storage.exists(house.paths().current)
    house.recover(undisturbed)


@pytest.mark.full
def test_a_full_disk_under_the_output_is_named(house, undisturbed, small_disk):
    driver = house.start(output=str(small_disk / "out"))
    assert driver.wait() == 1
    assert "No space left on device" in driver.summary["message"], driver.summary
    assert str(small_disk) in driver.summary["message"]
    assert not (small_disk / "out" / "current.json").exists()
    house.recover(undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    if os.geteuid():
        pytest.skip("only root can mount a small file system")
    import subprocess

    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
