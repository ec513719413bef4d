"""SIGKILL of a driver over Iceberg or Delta tables that change meanwhile: it ranks what it was planned from."""

from __future__ import annotations

import signal
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from lakerank.lake.storage import Storage, join
from table_formats import COPIES, IcebergLake, iceberg

__all__ = ["iceberg"]  # a fixture

pytestmark = [pytest.mark.nightly, pytest.mark.parametrize("kind", COPIES)]

#: Pattern of a write's URI, whether death comes before or after it, and the how many-th such write.
POINTS = {
    "plan": (r"/runs/r/plan/[0-9a-f]+/.*units", "after", 2),
    "score": (r"/scores/scorer=f00d/", "after", 3),
    "publish": (r"/runs/r/manifest\.json$", "before", 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_driver_killed_over_a_table_that_changes_ranks_its_snapshot(
    deployment: Any, iceberg: IcebergLake, kind: str, point: str
) -> None:
    driver = deployment.start(local=True, run_id="plain", output=join(deployment.folder, "plain"))
    assert driver.wait() == 0, driver.words
    folder = Path(deployment.folder, "plain", "ranked", "run_id=plain")
    expected = {file.name: file.read_bytes() for file in folder.iterdir()}
    copy = COPIES[kind](Path(deployment.folder), iceberg)
    settings = {"local": True, "addresses": astuple(copy.write())}
    pattern, when, nth = POINTS[point]
    driver = deployment.start(kill={"pattern": pattern, "when": when, "nth": nth}, **settings)
    assert driver.wait() == -signal.SIGKILL, driver.words
    assert not Storage().exists(deployment.paths().current)
    if point == "plan":
        copy.compact()  # nothing is pinned yet; what is planned now has the same rows
    else:
        copy.change()
    deployment.recover(expected, **settings)
