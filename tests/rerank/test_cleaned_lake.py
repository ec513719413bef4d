"""A lake that was cleaned: its kept runs are whole, and the next run uses the scores that are there."""

from __future__ import annotations

import time

from lakerank.lake.clean import Retention, delete, plan_cleaning
from lakerank.rerank.run import run


def test_the_next_run_of_a_cleaned_lake_scores_nothing_again(runner, storage, published):
    lake = published
    run(runner, storage, lake.job("old", scorer="f00c"))
    lake.write(
        "documents", [{"doc_id": f"d{i:02}", "text": f"changed {i}" if i < 3 else f"document {i}"} for i in range(30)]
    )
    run(runner, storage, lake.job("r2"))
    kept = lake.ranked_bytes("r2")
    output = str(lake.folder / "out")
    tables = {name: str(lake.folder / f"{name}.parquet") for name in ("documents", "queries")}
    later = time.time() + 30 * 86400
    plan = plan_cleaning(storage, output, Retention(keep_runs=1), ["f00d"], tables, later)
    reasons = {deletion.why for deletion in plan.deletions}
    # and the index of the tables as they are stays
    assert reasons == {"old run", "old number", "old scorer", "stale index"}
    assert delete(storage, output, plan, lambda _: None)
    assert lake.ranked_bytes("r2") == kept
    assert run(runner, storage, lake.job("r2"))["published"] is True
    again = run(runner, storage, lake.job("r3"))
    assert (again["reused"], again["new"], again["published"]) == (240, 0, True)
    assert lake.ranked_bytes("r3") == kept
    lake.write("documents", [{"doc_id": f"d{i:02}", "text": f"document {i}"} for i in range(30)])
    assert run(runner, storage, lake.job("r4"))["reused"] == 240, "scores of contents that come back are there too"
