"""SIGKILL of a driver around its commit to a table: the same command again leaves the run's rows there, once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from lakerank.lake.storage import join
from table_formats import IcebergLake, iceberg

__all__ = ["iceberg"]  # a fixture

pytestmark = [pytest.mark.nightly, pytest.mark.parametrize("kind", ["iceberg", "delta"])]

#: Pattern of a URI, whether death comes before or after it is written or at its reading, and the how many-th time.
POINTS = {
    "between the pointer and the table": (r"/current\.json$", "after", 1),
    "while rows are written to the table": (r"/ranked/run_id=r/", "reading", 3),
    "between the commit and its record": (r"/ranked_table\.json$", "before", 1),
}


def commits(kind: str, lake: IcebergLake, folder: Path) -> list[str]:
    """The run of each commit, oldest first."""
    if kind == "delta":
        return (
            [c["lakerank.run_id"] for c in reversed(DeltaTable(folder).history())]
            if DeltaTable.is_deltatable(str(folder))
            else []
        )
    if not lake.catalog.table_exists("db.ranked"):
        return []
    return [s.summary.additional_properties["lakerank.run_id"] for s in lake.table("ranked").snapshots()]


def rows(kind: str, lake: IcebergLake, folder: Path) -> pa.Table:
    table = lake.table("ranked").scan().to_arrow() if kind == "iceberg" else DeltaTable(folder).to_pyarrow_table()
    return table.sort_by([("query_id", "ascending"), ("rank", "ascending")])


@pytest.mark.parametrize("append", [pytest.param(False, marks=pytest.mark.full), True], ids=["overwrite", "append"])
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_a_driver_killed_around_its_commit_leaves_it_to_the_next(
    deployment: Any, iceberg: IcebergLake, kind: str, point: tuple[str, str, int], append: bool, tmp_path: Path
) -> None:
    pattern, when, nth = point
    folder = tmp_path / "table"
    address = "iceberg://lake/db.ranked" if kind == "iceberg" else f"delta+{folder}"
    settings = {"local": True, "rows_per_file": 80, "ranked_table": {"address": address, "append": append}}
    driver = deployment.start(kill={"pattern": pattern, "when": when, "nth": nth}, **settings)
    assert driver.wait() == -signal.SIGKILL, driver.words
    committed = "ranked_table" in pattern
    assert commits(kind, iceberg, folder) == ["r"] * committed
    for _ in range(2):
        driver = deployment.start(**settings)
        assert driver.wait() == 0, driver.words
        assert driver.summary["ranked_table"]["snapshot"] is not None
    assert commits(kind, iceberg, folder) == ["r"]
    ranked = pq.read_table(deployment.paths().ranked, partitioning=None)
    written = rows(kind, iceberg, folder)
    assert written.select(ranked.schema.names).to_pylist() == ranked.to_pylist()
    assert deployment.storage.exists(join(deployment.paths().folder, "ranked_table.json"))
