"""A run over Iceberg or Delta tables ranks as one over plain Parquet, whatever is committed meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable, write_deltalake

from lakerank.cli import main
from lakerank.cli.resolve import recorded
from lakerank.config import resolve_config
from lakerank.errors import StorageError
from lakerank.lake.storage import Storage
from lakerank.plan.plan import Tables
from lakerank.rerank.run import Rerank, run
from lakerank.spark.runtime.runner import SparkRunner
from table_formats import IcebergLake, iceberg

__all__ = ["iceberg"]  # a fixture

NAMES = ("documents", "queries", "candidates")


@dataclass(frozen=True)
class IcebergCopy:
    """The lake's tables in a catalog, the documents with a history."""

    lake: Any
    iceberg: IcebergLake

    def write(self) -> Tables:
        rows = {name: pq.read_table(self.lake.folder / f"{name}.parquet") for name in NAMES}
        for name in NAMES[1:]:
            self.iceberg.create(name, rows[name])
        documents = rows["documents"].append_column("lang", pa.array([f"l{row % 3}" for row in range(30)]))
        old = documents.slice(0, 20).rename_columns(["sku", *documents.schema.names[1:]])
        table = self.iceberg.create("documents", pa.concat_tables([old, _extra("sku", old)]), partition="lang")
        with table.update_schema() as schema:
            schema.rename_column("sku", "doc_id")
        table.append(documents.slice(20))
        self.iceberg.delete_rows("documents", ["x1"])
        self.iceberg.delete_rows("documents", ["x2"], vector=True)
        self.iceberg.table("documents").delete("doc_id = 'x3'")
        return Tables(*(f"iceberg://lake/db.{name}" for name in NAMES))

    def change(self) -> None:
        """Everything changes: rows go, others come, and the files are written anew."""
        table = self.iceberg.table("documents")
        table.overwrite(table.scan().to_arrow().slice(0, 5))
        self.iceberg.table("queries").delete("query_id = 'q01'")
        self.iceberg.table("candidates").delete("query_id = 'q02'")

    def expire(self) -> None:
        for file in Path(self.iceberg.folder, "warehouse", "db", "documents", "data").rglob("*.parquet"):
            file.unlink()


@dataclass(frozen=True)
class DeltaCopy:
    """The lake's tables as Delta, the documents with a history."""

    lake: Any

    def write(self) -> Tables:
        for name in NAMES[1:]:
            write_deltalake(self._folder(name), pq.read_table(self.lake.folder / f"{name}.parquet"))
        documents = pq.read_table(self.lake.folder / "documents.parquet")
        documents = documents.append_column("lang", pa.array([f"l {row % 3}" for row in range(30)]))
        folder, old = self._folder("documents"), documents.slice(0, 20)
        write_deltalake(folder, pa.concat_tables([old, _extra("doc_id", old)]), partition_by=["lang"])
        write_deltalake(folder, documents.slice(20), mode="append")
        DeltaTable(folder).delete("doc_id in ('x1', 'x2')")
        DeltaTable(folder).delete("doc_id = 'x3'")
        return Tables(*(f"delta+{self._folder(name)}" for name in NAMES))

    def change(self) -> None:
        """Everything changes: the files are written anew, rows go."""
        DeltaTable(self._folder("documents")).optimize.compact()
        DeltaTable(self._folder("documents")).delete("doc_id > 'd05'")
        DeltaTable(self._folder("queries")).delete("query_id = 'q01'")
        DeltaTable(self._folder("candidates")).delete("query_id = 'q02'")

    def expire(self) -> None:
        table = DeltaTable(self._folder("documents"))
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)

    def _folder(self, name: str) -> Path:
        return self.lake.folder / f"{name}-delta"


def _extra(id_column: str, like: pa.Table) -> pa.Table:
    """Rows that are deleted later; x1 would be a candidate's document."""
    rows = [{id_column: f"x{number}", "text": "deleted", "lang": "l1"} for number in (1, 2, 3)]
    return pa.Table.from_pylist(rows, schema=like.schema)


@pytest.fixture(params=["iceberg", "delta"])
def copy(request: pytest.FixtureRequest, lake: Any) -> IcebergCopy | DeltaCopy:
    return IcebergCopy(lake, request.getfixturevalue("iceberg")) if request.param == "iceberg" else DeltaCopy(lake)


def test_lists_are_those_of_plain_parquet_and_a_run_keeps_to_its_snapshot(runner, lake, copy) -> None:
    run(runner, Storage(), lake.job("plain"))
    expected = lake.ranked("plain")
    shutil.rmtree(lake.folder / "out")
    tables = copy.write()
    run(runner, Storage(), lake.job("r1", tables=tables), ["plan"])
    copy.change()
    summary = run(runner, Storage(), lake.job("r1", tables=tables))
    assert summary["scored"] == 240
    assert lake.ranked("r1") == expected
    inputs = json.loads((lake.folder / "out" / "runs" / "r1" / "manifest.json").read_text())["inputs"]
    assert [inputs[name]["address"].partition("@")[0] for name in NAMES] == [*vars_of(tables)]
    assert inputs["documents"]["rows"] == 30
    assert {"uuid", "snapshot"} <= inputs["documents"].keys()
    later = run(runner, Storage(), lake.job("r2", tables=tables))
    assert later["candidates"] == 220
    assert later["scored"] == 0
    assert later["rejected_by_reason"].keys() == {"missing_document", "missing_query"}


def test_what_comes_after_a_run_reads_what_it_was_made_from(runner, lake, copy) -> None:
    tables, qrels = copy.write(), str(lake.folder / "qrels.parquet")
    pq.write_table(pa.table({"query_id": ["q01", "q02"], "doc_id": ["d08", "d15"], "relevance": [1, 1]}), qrels)
    config = resolve_config({"lake": {**asdict(tables), "qrels": qrels, "output": str(lake.folder / "out")}}, ())
    run(runner, Storage(), lake.job("r1", tables=tables, config_yaml=recorded(config)))

    def results(to: str) -> list[Any]:
        """What show, evaluate and export make of the run."""
        shown, judged, _ = (
            _last_line(*command, "--config", "demo", "--set", f"lake.output={lake.folder / 'out'}")
            for command in (
                ("show", "r1", "--json"),
                ("evaluate", "--run-id", "r1"),
                ("export", "--run-id", "r1", "--format", "quepid-csv", "--to", str(lake.folder / to)),
            )
        )
        figures = [judged[name] for name in ("queries", "chance", "first_stage", "reranked")]
        return [shown, figures, *(path.read_bytes() for path in sorted((lake.folder / to).glob("part-*")))]

    before = results("before")
    copy.change()
    assert results("after") == before


def _last_line(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.spark
@pytest.mark.nightly
def test_spark_reads_the_snapshot_that_was_planned_without_it(spark, runner, lake, copy) -> None:
    run(runner, Storage(), lake.job("plain"))
    expected = lake.ranked("plain")
    shutil.rmtree(lake.folder / "out")
    tables = copy.write()
    run(runner, Storage(), lake.job("local", tables=tables), ["plan"])
    run(SparkRunner(spark), Storage(), lake.job("spark", tables=tables), ["plan"])
    copy.change()
    run(SparkRunner(spark), Storage(), lake.job("local", tables=tables))
    assert lake.ranked("local") == expected
    shutil.rmtree(lake.folder / "out" / "scores")
    run(SparkRunner(spark), Storage(), lake.job("spark", tables=tables))
    assert lake.ranked("spark") == expected


def test_a_later_stage_of_a_cascade_reads_the_snapshot_of_the_first(runner, lake, copy) -> None:
    def cascade(run_id: str, tables: Tables) -> Rerank:
        first = lake.job("any").stages[0]
        second = replace(first, scorer="beef", factory=lake.factory("b"), top=5)
        return lake.job(run_id, (second,), tables=tables)

    plain = lake.job("any").tables
    run(runner, Storage(), cascade("plain", plain))
    expected = lake.ranked("plain")
    shutil.rmtree(lake.folder / "out")
    tables = copy.write()
    run(runner, Storage(), cascade("r1", tables), ["plan"])
    copy.change()
    summary = run(runner, Storage(), cascade("r1", tables))
    assert [stage["pairs"] for stage in summary["passes"]] == [240, 60]
    assert lake.ranked("r1") == expected


def vars_of(tables: Tables) -> Sequence[str]:
    return tables.documents, tables.queries, tables.candidates


def test_a_snapshot_whose_files_are_gone_stops_the_run(runner, lake, copy) -> None:
    tables = copy.write()
    run(runner, Storage(), lake.job("r1", tables=tables), ["plan"])
    copy.change()
    copy.expire()
    with pytest.raises(StorageError, match=r"gone: the snapshot .*delta\.deletedFileRetentionDuration"):
        run(runner, Storage(), lake.job("r1", tables=tables), ["score"])
    assert not list((lake.folder / "out").glob("scores/*/*"))


def test_a_run_over_an_unchanged_table_reads_no_file_of_it(runner, lake, copy) -> None:
    """Its documents could be away: keys come from the index, numbers of rows from the metadata."""
    tables = copy.write()
    first = run(runner, Storage(), lake.job("r1", tables=tables))
    for folder in (
        lake.folder / "documents-delta",
        lake.folder / "iceberg" / "warehouse" / "db" / "documents" / "data",
    ):
        for file in folder.rglob("*.parquet"):
            if not file.name.endswith("-deletes.parquet"):  # which are metadata
                file.unlink()
    second = run(runner, Storage(), lake.job("r2", tables=tables))
    assert (second["reused"], second["scored"], second["published"]) == (first["scored"], 0, True)
