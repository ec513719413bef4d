"""Whatever has been done to a table, its rows are those that the format's own library reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from table_formats import IcebergLake, iceberg, rows_read

__all__ = ["iceberg"]  # a fixture

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore:Delete operation did not match")]

IDS = st.lists(st.integers(0, 20).map("d{}".format), min_size=1, max_size=6, unique=True)
HISTORY = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


def documents(ids: list[str], version: int) -> pa.Table:
    texts, languages = [f"{name} in version {version}" for name in ids], [f"l {name[-1]}" for name in ids]
    return pa.table({"doc_id": ids, "text": texts, "lang": languages})


@given(history=st.lists(st.tuples(st.sampled_from(["append", "upsert", "delete", "positions", "vector", "rename",
                                                   "partition"]), IDS), min_size=2, max_size=5))  # fmt: skip
@HISTORY
def test_iceberg(iceberg: IcebergLake, history: list[tuple[str, list[str]]]) -> None:
    if iceberg.catalog.table_exists("db.docs"):
        iceberg.catalog.drop_table("db.docs")
    names, pinned = {"text": "text"}, {}
    iceberg.create("docs", documents(["d1", "d2", "d3"], 0))
    for version, (change, ids) in enumerate(history, start=1):
        table = iceberg.table("docs")
        rows = documents(ids, version).rename_columns(["doc_id", names["text"], "lang"])
        if change == "append":
            table.append(rows)
        elif change == "upsert":
            table.delete(f"doc_id in ({', '.join(map(repr, ids))})")
            table.append(rows)
        elif change == "delete":
            table.delete(f"doc_id in ({', '.join(map(repr, ids))})")
        elif change in ("positions", "vector"):
            iceberg.delete_rows("docs", ids, vector=change == "vector")
        elif change == "rename":
            with table.update_schema() as schema:
                schema.rename_column(names["text"], f"text{version}")
            names["text"] = f"text{version}"
        elif not table.spec().fields:
            with table.update_spec() as spec:
                spec.add_identity("lang")
        if (snapshot := iceberg.table("docs").current_snapshot()) is not None:
            pinned[snapshot.snapshot_id] = texts_by_pyiceberg(iceberg, snapshot.snapshot_id)
    assert texts(rows_read("iceberg://lake/db.docs", names)) == texts_by_pyiceberg(iceberg)
    for snapshot_id, expected in pinned.items():
        schema = iceberg.table("docs").snapshot_by_id(snapshot_id).schema_id
        name = iceberg.table("docs").schemas()[schema].find_column_name(2)
        assert texts(rows_read(f"iceberg://lake/db.docs@{snapshot_id}", {"text": name})) == expected


def texts_by_pyiceberg(lake: IcebergLake, snapshot_id: int | None = None) -> list[str]:
    rows = lake.table("docs").scan(snapshot_id=snapshot_id).to_arrow()
    return sorted(rows[rows.schema.names[1]].to_pylist())


def texts(rows: pa.Table) -> list[str]:
    return sorted(rows["text"].to_pylist())


@given(history=st.lists(st.tuples(st.sampled_from(["append", "merge", "delete", "overwrite", "compact"]), IDS),
                        min_size=2, max_size=5))  # fmt: skip
@HISTORY
def test_delta(tmp_path: Path, history: list[tuple[str, list[str]]]) -> None:
    folder = tmp_path / "docs"
    shutil.rmtree(folder, ignore_errors=True)
    write_deltalake(folder, documents(["d1", "d2", "d3"], 0), partition_by=["lang"])
    versions = {}
    for version, (change, ids) in enumerate(history, start=1):
        condition = f"doc_id in ({', '.join(map(repr, ids))})"
        if change in ("append", "overwrite"):
            write_deltalake(folder, documents(ids, version), mode=change)
        elif change == "merge":
            table = DeltaTable(folder)
            table.delete(condition)
            merge = table.merge(documents(ids, version), "t.doc_id = s.doc_id", source_alias="s", target_alias="t")
            merge.when_matched_update_all().when_not_matched_insert_all().execute()
        elif change == "delete":
            DeltaTable(folder).delete(condition)
        elif change == "compact":
            DeltaTable(folder).optimize.compact()
        versions[DeltaTable(folder).version()] = texts(pa.table(DeltaTable(folder).scan()))
    for version, expected in versions.items():
        assert texts(rows_read(f"delta+{folder}@{version}")) == expected
    assert texts(rows_read(f"delta+{folder}")) == [*versions.values()][-1]
