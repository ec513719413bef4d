"""A run over Iceberg or Delta tables ranks as one over plain Parquet, whatever is committed meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lakerank.cli import main
from lakerank.cli.resolve import recorded
from lakerank.config import resolve_config
from lakerank.errors import StorageError
from lakerank.lake.storage import Storage
from lakerank.plan.plan import Tables
from lakerank.rerank.run import Rerank, run
from lakerank.spark.runtime.runner import SparkRunner
from table_formats import COPIES, NAMES, Copy, IcebergLake, iceberg

__all__ = ["iceberg"]  # a fixture


@pytest.fixture(params=COPIES)
def copy(request: pytest.FixtureRequest, lake: Any, iceberg: IcebergLake) -> Copy:
    return COPIES[request.param](lake.folder, iceberg)


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
    run(runner, Storage(), lake.job("r1", tables=tables, config_yaml=recorded(config, Storage(), "r1")))

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


def test_a_compaction_between_plan_and_score_changes_nothing(runner, lake, copy) -> None:
    run(runner, Storage(), lake.job("plain"))
    expected = lake.ranked("plain")
    shutil.rmtree(lake.folder / "out")
    tables = copy.write()
    run(runner, Storage(), lake.job("r1", tables=tables), ["plan"])
    copy.compact()
    assert run(runner, Storage(), lake.job("r1", tables=tables), ["score", "publish"])["scored"] == 240
    assert lake.ranked("r1") == expected
    copy.expire()  # what the compaction has replaced
    later = run(runner, Storage(), lake.job("r2", tables=tables))
    assert (later["scored"], later["reused"]) == (0, 240)
    assert lake.ranked("r2") == expected


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
        lake.folder / "documents-mapped",
        lake.folder / "iceberg" / "warehouse" / "db" / "documents" / "data",
    ):
        for file in folder.rglob("*.parquet"):
            if not file.name.endswith("-deletes.parquet"):  # which are metadata
                file.unlink()
    second = run(runner, Storage(), lake.job("r2", tables=tables))
    assert (second["reused"], second["scored"], second["published"]) == (first["scored"], 0, True)
