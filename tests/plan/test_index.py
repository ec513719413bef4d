"""The index of a table of many small files: few index files, each read once a step, whatever night their rows came."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerank.cost import Sizing
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.plan.plan import PlanLimits, Tables, plan_folder, planned_units
from lakerank.rerank.plan.builder import ensure_plan
from lakerank.runner import LocalRunner

SIZING = Sizing(3136, 602112, 10000)
LIMITS = PlanLimits(SIZING, SIZING, 3, unit_tokens=100_000, rows_per_file=1_000_000, with_group_ids=True)
DOCUMENTS = [{"doc_id": f"d{n:02}", "text": f"text {n % 7} " * n, "group_id": str(n % 4) or None} for n in range(40)]
NIGHTS = st.lists(st.lists(st.integers(0, 19), min_size=1, unique=True), min_size=1, max_size=3)


class Counting(Storage):
    """Counts how often each index file of documents is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: Counter[str] = Counter()

    def open_parquet(self, file: Any, *options: Any, **more: Any) -> AbstractContextManager[pq.ParquetFile]:
        if "/index/documents/" in str(file):
            self.opened[str(file)] += 1
        return super().open_parquet(file, *options, **more)


def planned(folder: Path, output: str, run_id: str, tasks: int = 1) -> tuple[list[dict[str, Any]], Counting]:
    """What a plan writes of its groups, without where their documents are."""
    storage, paths = Counting(), RunPaths(str(folder / output), run_id)
    tables = Tables(str(folder / "documents"), str(folder / "queries.parquet"), str(folder / "candidates.parquet"))
    plan = ensure_plan(LocalRunner(tasks), storage, paths, tables, "f00d", LIMITS)
    assert plan.read_bytes == plan.fetch_bytes, "each document is a row group"
    rows = []
    for unit in planned_units(storage, paths, plan):
        groups = pq.read_table(Path(plan_folder(paths, plan.attempt), "units", f"{unit}.parquet")).to_pylist()
        rows += [{**row, "file": Path(row["file"]).name} for row in groups]
    return sorted(rows, key=lambda row: (row["doc_id"], row["queries"][0]["number"])), storage


@given(nights=NIGHTS)
@settings(max_examples=3, deadline=None)
def test_files_indexed_together_on_any_night_are_planned_as_in_one(tmp_path_factory, nights) -> None:
    folder = tmp_path_factory.mktemp("lake")
    queries = [{"query_id": f"q{n}", "text": f"query {n}"} for n in range(6)]
    pairs = [{"query_id": f"q{n % 6}", "doc_id": f"d{n * 7 % 40:02}"} for n in range(60)]
    for name, rows in (("queries", queries), ("candidates", pairs)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    (folder / "documents").mkdir()
    rest = sorted({*range(20)} - {file for files in nights for file in files})
    for night, files in enumerate([*nights, rest]):
        for file in files:  # two documents a file; what an earlier night wrote is replaced
            rows = [row | {"text": f"{row['text']} {night}"} for row in DOCUMENTS[2 * file : 2 * file + 2]]
            pq.write_table(pa.Table.from_pylist(rows), folder / f"documents/{file:02}.parquet", row_group_size=1)
        groups, storage = planned(folder, "out", f"r{night}")
    assert max(storage.opened.values()) <= 4, "named twice, joined, split"
    assert len([*(folder / "out/index/documents").iterdir()]) <= 4 * (len(nights) + 1)
    alone, _ = planned(folder, "other", "r", tasks=100)
    assert groups == alone
    assert {row["group_id"] for row in groups} == {"0", "1", "2", "3"}
