"""A table that is replaced between plan and score never gives a score to the wrong row."""

from __future__ import annotations

import pytest

from lakerank.lake.blobs import ChangedFile
from lakerank.rerank.run import run


@pytest.mark.parametrize("table", ["documents", "queries"])
def test_a_table_replaced_after_planning_stops_the_run_and_another_run_id_plans_anew(runner, storage, lake, table):
    run(runner, storage, lake.job("r1"), ["plan"])
    id_column = {"documents": "doc_id", "queries": "query_id"}[table]
    count = {"documents": 30, "queries": 12}[table]
    # The same ids and row groups, so that every place of the plan leads to a row: only the version tells.
    lake.write(table, [{id_column: f"{table[0]}{i:02}", "text": f"other {i}"} for i in range(count)])
    with pytest.raises(ChangedFile, match=rf"{table}\.parquet: it has changed since the run was planned"):
        run(runner, storage, lake.job("r1"), ["score"])
    assert not (lake.folder / "out" / "scores").exists()
    assert run(runner, storage, lake.job("r2"))["scored"] == 240
