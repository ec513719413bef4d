"""The best documents of each group: kept in each list, the others counted, nothing scored again."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.errors import RunConflictError, SchemaError
from lakerank.lake.runs import read_manifest
from lakerank.lake.storage import Storage
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.run import run

#: Group of each document by its number: of most four share one, which are in different files; some are their own.
GROUPS = [None if number % 5 == 4 else number % 7 for number in range(30)]


INT64 = pa.int64()


def put_in_groups(lake, kind=INT64, files=3):
    """The documents in several files, each with a group but for those of the last file, which lacks the column."""
    table = pq.read_table(lake.folder / "documents.parquet")
    groups = pa.array([None if group is None else str(group) for group in GROUPS]).cast(kind)
    table = table.append_column("group_id", groups)
    (lake.folder / "documents.parquet").unlink()
    (lake.folder / "documents.parquet").mkdir()
    rows = len(table) // files
    for part in range(files):
        piece = table.slice(part * rows, rows)
        piece = piece.drop_columns("group_id") if part == files - 1 else piece
        pq.write_table(piece, lake.folder / "documents.parquet" / f"{part}.parquet", row_group_size=4)
    return {f"d{number:02}": GROUPS[number] if number < rows * (files - 1) else None for number in range(30)}


def job(lake, run_id, per_group, depth=None, **changes):
    return lake.job(run_id, rule=RankRule(0.0, (0.5,), depth, per_group), **changes)


def best_of(rows, groups, per_group, depth=None):
    """The oracle: walk down each list, and count."""
    kept, seen, places = [], {}, {}
    for row in rows:
        query, group = row["query_id"], groups[row["doc_id"]]
        seen[query, group] = seen.get((query, group), 0) + 1
        if group is None or seen[query, group] <= per_group:
            places[query] = places.get(query, 0) + 1
            if depth is None or places[query] <= depth:
                kept.append({**row, "rank": places[query], "group_id": group})
    return kept


@pytest.mark.parametrize(("kind", "depth"), [(pa.int64(), None), (pa.int32(), 6), (pa.string(), None)])
def test_a_list_keeps_the_best_of_each_group(runner, storage, published, kind, depth):
    groups = put_in_groups(published, kind)
    groups = {
        doc_id: str(group) if group is not None and kind == pa.string() else group for doc_id, group in groups.items()
    }
    summary = run(runner, storage, job(published, "r2", 2, depth))
    rows = published.ranked("r2")
    assert rows == best_of(published.ranked("r1"), groups, 2, depth)
    assert pq.read_schema(next((published.folder / "out/ranked/run_id=r2").iterdir())).field("group_id").type == kind
    assert (summary["reused"], summary["found"], summary["published"]) == (240, 0, True)
    left_out = 240 - len(best_of(published.ranked("r1"), groups, 2))
    assert summary["beyond_group"] == left_out > 0
    assert summary["beyond_depth"] == 240 - left_out - len(rows)
    counts = read_manifest(storage, str(published.folder / "out"), "r2")["counts"]
    assert counts["candidates"] == counts["ranked"] + counts["beyond_depth"] + counts["beyond_group"]


def test_new_scores_and_a_cascade_get_groups_too(runner, storage, lake):
    groups = put_in_groups(lake)
    later = replace(job(lake, "any", 1).stages[0], scorer="beef", factory=lake.factory("B"), top=8)
    run(runner, storage, job(lake, "all", 1000, later=(later,)))
    summary = run(runner, storage, job(lake, "best", 1, later=(later,)))
    whole = lake.ranked("all")
    assert [row["group_id"] for row in whole] == [groups[row["doc_id"]] for row in whole]
    assert lake.ranked("best") == best_of(whole, groups, 1)
    assert {tuple(row["scored_by"]) for row in lake.ranked("best")} == {(1,), (1, 2)}
    assert summary["found"] == 0


def test_without_the_setting_a_column_of_groups_is_carried_by_nobody(runner, storage, published):
    table = pq.read_table(published.folder / "documents.parquet")
    pq.write_table(table.append_column("group_id", pa.array([0.5] * 30)), published.folder / "documents.parquet")
    assert run(runner, storage, published.job("r2"))["published"]
    assert published.ranked_bytes("r2") == published.ranked_bytes("r1")


def test_an_empty_group_id_is_no_group(runner, storage, published):
    table = pq.read_table(published.folder / "documents.parquet")
    pq.write_table(table.append_column("group_id", pa.array([""] * 30)), published.folder / "documents.parquet")
    assert run(runner, storage, job(published, "r2", 1))["ranked"] == 240


@pytest.mark.parametrize(
    "column", [None, pa.array([0.5] * 30), pa.array([b"\xff"] * 30)], ids=["none", "double", "bytes"]
)
def test_documents_without_group_ids_stop_the_run_before_it_is_announced(runner, storage, lake, column):
    if column is not None:
        table = pq.read_table(lake.folder / "documents.parquet")
        pq.write_table(table.append_column("group_id", column), lake.folder / "documents.parquet")
    with pytest.raises(SchemaError, match=r"documents\.parquet: (no )?column 'group_id'"):
        run(runner, storage, job(lake, "r1", 1))
    assert not (lake.folder / "out").exists()


def test_a_run_that_was_planned_without_groups_says_so(runner, storage, lake):
    run(runner, storage, lake.job("r1"), ("plan",))
    put_in_groups(lake)
    with pytest.raises(RunConflictError, match=r"planned without ranking\.per_group.*another --run-id"):
        run(runner, storage, job(lake, "r1", 1), ("score", "publish"))
    assert not (lake.folder / "out" / "scores").exists()


def test_groups_by_another_name_are_read_by_it(runner, storage, published):
    """And the kept group ids of a file are those of the column that it was read by."""
    table = pq.read_table(published.folder / "documents.parquet")
    for name, size in (("manual", 2), ("shelf", 10)):
        table = table.append_column(name, pa.array([number // size for number in range(30)]))
    pq.write_table(table, published.folder / "documents.parquet")
    for run_id, (name, size) in {"r2": ("manual", 2), "r3": ("shelf", 10)}.items():
        columns = {str(published.folder / "documents.parquet"): {"group_id": name}}
        run(runner, Storage(storage.options, columns), job(published, run_id, 1))
        groups = {f"d{number:02}": number // size for number in range(30)}
        assert published.ranked(run_id) == best_of(published.ranked("r1"), groups, 1)
