"""Jobs beside each other, and a disk that fills up in a stage: with Spark, and in this process."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest

from lakerank.lake.clean import Retention, delete, plan_cleaning
from lakerank.lake.publication import current_run
from lakerank.lake.runs import read_manifest
from lakerank.lake.storage import join

pytestmark = [pytest.mark.spark, pytest.mark.nightly]
SCORER = "f00d"
ENGINES = [pytest.param(True, id="local"), pytest.param(False, id="Spark", marks=pytest.mark.full)]


@pytest.mark.parametrize("local", ENGINES)
def test_of_two_runs_published_at_once_the_later_is_current_and_both_are_whole(deployment, undisturbed, local):
    drivers = [deployment.start(local=local, run_id=run_id) for run_id in ("a", "b")]
    assert [driver.wait() for driver in drivers] == [0, 0], "\n".join(driver.words for driver in drivers)
    manifests = {run_id: read_manifest(deployment.storage, deployment.output, run_id) for run_id in ("a", "b")}
    numbers = {run_id: manifest["publication"] for run_id, manifest in manifests.items()}
    later, earlier = sorted(numbers, key=numbers.get, reverse=True)
    assert numbers[later] > numbers[earlier]
    deployment.check_published(undisturbed, later)
    assert deployment.ranked(earlier) == undisturbed
    for driver in drivers:
        summary = driver.summary
        assert summary["published"] is (summary["current"] == summary["run_id"])
        assert summary["published"] or (summary["run_id"], summary["superseded_by"]) == (earlier, later)
    assert any(driver.summary["published"] for driver in drivers)


@pytest.mark.parametrize("local", ENGINES)
def test_cleaning_beside_a_run_takes_nothing_that_it_needs(deployment, undisturbed, local):
    assert deployment.start(local=local, run_id="before").wait() == 0
    driver = deployment.start(local=local, pause_s=0.02, stages=["plan", "score", "publish"])
    rounds = 0
    while driver.process.poll() is None:
        clean(deployment)
        rounds += 1
    assert driver.wait() == 0, driver.words
    assert rounds > 3
    deployment.check_published(undisturbed)
    clean(deployment)
    deployment.check_published(undisturbed)
    assert not deployment.ranked("before"), "the cleaning did clean"


def clean(deployment) -> None:
    """Delete all that no kept run needs, as `jobs/clean.py --apply` does."""
    tables = {name: join(deployment.folder, f"{name}.parquet") for name in ("documents", "queries")}
    retention = Retention(keep_runs=1, keep_s=0.0, grace_s=600)
    plan = plan_cleaning(deployment.storage, deployment.output, retention, [SCORER], tables, time.time())
    delete(deployment.storage, deployment.output, plan, lambda deletion: None)


@pytest.mark.parametrize("local", ENGINES)
@pytest.mark.parametrize("stage", ["plan", "score", "publish"])
def test_a_disk_that_is_full_in_a_stage_is_named_and_the_stage_done_again(deployment, undisturbed, disk, local, stage):
    output, stages = disk / "out", ["plan", "score", "publish"]
    for before in stages[: stages.index(stage)]:
        done = deployment.start(local=local, output=str(output), stages=[before])
        assert done.wait() == 0, done.words
    fill(disk / "filler")
    failed = deployment.start(local=local, output=str(output), stages=[stage])
    assert failed.wait() == 1
    assert "No space left on device" in failed.summary["message"], failed.summary
    assert str(disk) in failed.summary["message"]
    assert not (output / "current.json").exists()
    (disk / "filler").unlink()
    again = deployment.start(local=local, output=str(output), stages=stages[stages.index(stage) :])
    assert again.wait() == 0, again.words
    ranked = output / "ranked" / "run_id=r"
    assert {file.name: file.read_bytes() for file in ranked.iterdir()} == undisturbed
    assert current_run(deployment.storage, str(output))["run_id"] == "r"


def fill(file: Path) -> None:
    """Leave not a page of a file's disk."""
    with suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"\0" * 4096)
