"""SIGKILL of the driver's whole process group anywhere: the same command again gives the same bytes, nothing twice."""

from __future__ import annotations

import random
import signal
import time

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.nightly]

#: Stage, pattern of a write's URI, whether death comes before or after it, and the how many-th such write of a process.
POINTS = [
    ("plan", r"/index/documents/", "after", 1),
    ("plan", r"/index/queries/", "before", 1),
    ("plan", r"/runs/r/plan/[0-9a-f]+/", "before", 1),
    ("plan", r"/runs/r/plan/[0-9a-f]+/", "after", 2),
    ("plan", r"/runs/r/plan/[0-9a-f]+/.*units", "after", 2),
    ("plan", r"/runs/r/plan/plan\.json$", "before", 1),
    ("plan", r"/runs/r/plan/plan\.json$", "after", 1),
    ("score", r"/scores/scorer=f00d/", "before", 1),
    ("score", r"/scores/scorer=f00d/", "after", 1),
    ("score", r"/scores/scorer=f00d/", "after", 3),
    ("rank", r"/ranked/run_id=r/", "before", 1),
    ("rank", r"/ranked/run_id=r/", "after", 1),
    ("rank", r"/rejected/run_id=r/", "after", 1),
    ("publish", r"/runs/r/manifest\.json$", "before", 1),
    ("publish", r"/runs/r/manifest\.json$", "after", 1),
    ("publish", r"/current\.json$", "before", 1),
    ("publish", r"/current\.json$", "after", 1),
]
QUICK = {POINTS[9], POINTS[15]}


@pytest.mark.parametrize(
    "point",
    [pytest.param(p, id=f"{p[0]}-{p[2]}-{p[3]}-{p[1]}", marks=() if p in QUICK else pytest.mark.full) for p in POINTS],
)
def test_a_driver_killed_at_a_write_is_taken_up_where_it_stopped(deployment, undisturbed, point):
    _, pattern, when, nth = point
    driver = deployment.start(kill={"pattern": pattern, "when": when, "nth": nth})
    assert driver.wait() == -signal.SIGKILL, driver.words
    if point[0] != "publish" or when == "before":
        assert not deployment.storage.exists(deployment.paths().current), "no reader sees a run that is not complete"
    deployment.recover(undisturbed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(6))
def test_a_driver_killed_at_any_moment_is_taken_up_where_it_stopped(deployment, undisturbed, seed):
    luck = random.Random(seed)
    for _ in range(2):
        driver = deployment.start(pause_s=0.05)
        time.sleep(luck.uniform(3, 14))
        driver.kill()
        assert driver.wait() in (-signal.SIGKILL, 0)
    deployment.recover(undisturbed)
