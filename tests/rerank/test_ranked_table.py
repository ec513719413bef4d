"""A published run's rows in an Iceberg or a Delta table: all of them, in one commit, once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import load_catalog
from stores import SERVER

from lakerank.audit import Bounds
from lakerank.errors import ConfigError, SchemaError, StorageError
from lakerank.lake.formats import resolve
from lakerank.lake.formats.output import CommitConflict, OutputTable, RunRows, _Delta, check_output, write_rows
from lakerank.lake.storage import Storage
from lakerank.rerank.publish import AuditRules, Override
from lakerank.rerank.run import run
from table_formats import IcebergLake, iceberg

__all__ = ["iceberg"]  # a fixture


@dataclass(frozen=True)
class IcebergOut:
    iceberg: IcebergLake
    address: str = "iceberg://lake/db.ranked"

    def rows(self) -> pa.Table:
        return self.iceberg.table("ranked").scan().to_arrow()

    def commits(self) -> list[dict[str, Any]]:
        return [snapshot.summary.additional_properties for snapshot in self.iceberg.table("ranked").snapshots()]

    def create(self, rows: pa.Table, partition: str | None = None) -> None:
        self.iceberg.create("ranked", rows, partition)

    def append(self, rows: pa.Table) -> None:
        self.iceberg.table("ranked").append(rows)

    def exists(self) -> bool:
        return self.iceberg.catalog.table_exists("db.ranked")


@dataclass(frozen=True)
class DeltaOut:
    folder: Path

    @property
    def address(self) -> str:
        return f"delta+{self.folder}"

    def rows(self) -> pa.Table:
        return DeltaTable(self.folder).to_pyarrow_table()

    def commits(self) -> list[dict[str, Any]]:
        return DeltaTable(self.folder).history()[::-1]

    def create(self, rows: pa.Table, partition: str | None = None) -> None:
        write_deltalake(self.folder, rows, partition_by=partition)

    def append(self, rows: pa.Table) -> None:
        write_deltalake(self.folder, rows, mode="append")

    def exists(self) -> bool:
        return self.folder.exists()


@pytest.fixture(params=["iceberg", "delta"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> IcebergOut | DeltaOut:
    return IcebergOut(request.getfixturevalue("iceberg")) if request.param == "iceberg" else DeltaOut(tmp_path / "t")


def in_order(rows: pa.Table | list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = rows if isinstance(rows, list) else rows.to_pylist()
    return sorted(rows, key=lambda row: (row.get("run_id") or "", str(row["query_id"]), row["rank"]))


def test_a_run_is_one_commit_that_has_its_rows(runner, lake, out) -> None:
    job = replace(lake.job("r1"), ranked_table=OutputTable(out.address))
    written = run(runner, Storage(), job)["ranked_table"]
    assert in_order(out.rows()) == in_order(lake.ranked("r1"))
    assert run(runner, Storage(), job)["ranked_table"] == written
    (lake.folder / "out" / "runs" / "r1" / "ranked_table.json").unlink()  # as a kill behind the commit leaves it
    assert run(runner, Storage(), job)["ranked_table"] == written
    assert [commit["lakerank.run_id"] for commit in out.commits()] == ["r1"]
    lake.write("queries", [{"query_id": f"q{number:02}", "text": f"other {number}"} for number in range(12)])
    run(runner, Storage(), replace(lake.job("r2"), ranked_table=OutputTable(out.address)))
    assert in_order(out.rows()) == in_order(lake.ranked("r2")) != in_order(lake.ranked("r1"))
    assert [commit["lakerank.run_id"] for commit in out.commits()] == ["r1", "r2"]
    late = run(runner, Storage(), replace(job, ranked_table=OutputTable(out.address)))
    assert (late["superseded_by"], late["ranked_table"]["snapshot"]) == ("r2", None)
    assert len(out.commits()) == 2


def test_lists_whose_audit_failed_are_not_written(runner, lake, out) -> None:
    lake.write("documents", [{"doc_id": "d00", "text": "only one"}])
    job = replace(lake.job("r1"), audit=AuditRules(Bounds(max_reject_rate=0.1)), ranked_table=OutputTable(out.address))
    summary = run(runner, Storage(), job)
    assert summary["failed_audits"]
    assert "ranked_table" not in summary
    assert not out.exists()
    anyway = replace(job, audit=AuditRules(Bounds(max_reject_rate=0.1), override=Override("a test", "me")))
    assert run(runner, Storage(), anyway)["ranked_table"]["snapshot"] is not None
    assert in_order(out.rows()) == in_order(lake.ranked("r1"))


@pytest.mark.nightly
def test_a_table_that_is_appended_to_has_every_run_once(runner, lake, out) -> None:
    table = OutputTable(out.address, append=True)
    jobs = [replace(lake.job(name), ranked_table=table) for name in ("r1", "r2")]
    for job in (*jobs, *jobs):
        run(runner, Storage(), job)
        (lake.folder / "out" / "runs" / job.paths.run_id / "ranked_table.json").unlink()
    expected = [row | {"run_id": name} for name in ("r1", "r2") for row in lake.ranked(name)]
    assert in_order(out.rows()) == in_order(expected)
    assert len(out.commits()) == 2


@dataclass
class Ranked:
    """Files of ranked rows, without a run behind them."""

    folder: Path

    def rows(self, run_id: str, publication: int | None = 1, ids: Any = ("q1", "q2"), files: int = 3) -> RunRows:
        table = pa.table({"query_id": ids, "doc_id": ids, "rank": pa.array(range(1, len(ids) + 1), pa.int32())})
        rest = {"logit": pa.float32(), "relevance": pa.float32(), "label": pa.int8()}
        for name, kind in {**rest, "first_stage_rank": pa.int32(), "truncated": pa.bool_()}.items():
            table = table.append_column(name, pa.nulls(len(table), kind))
        addresses = [str(self.folder / f"{run_id}-{number}.parquet") for number in range(files)]
        for address in addresses:
            pq.write_table(table, address)
        return RunRows("lake", run_id, publication, f"made-from-{run_id}", addresses)


@pytest.fixture
def ranked(tmp_path: Path) -> Ranked:
    return Ranked(tmp_path)


class Gathering(Storage):
    """Where each thread reads the first rows to be written, it waits until all do: their commits meet."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.barrier, self.opened = threading.Barrier(threads), threading.local()

    def open_parquet(self, uri: str, *options: Any, **more: Any) -> Any:
        self.opened.count = getattr(self.opened, "count", 0) + 1
        if self.opened.count == 2:
            self.barrier.wait(30)
        return super().open_parquet(uri, *options, **more)


def together(*actions: Callable[[Storage], dict[str, Any]]) -> list[dict[str, Any]]:
    storage, results = Gathering(len(actions)), []
    threads = [threading.Thread(target=lambda act=act: results.append(act(storage))) for act in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(actions)
    return results


@pytest.mark.parametrize("append", [False, True], ids=["overwrite", "append"])
@pytest.mark.parametrize("there", [pytest.param(False, marks=pytest.mark.nightly), True], ids=["new", "there"])
def test_two_drivers_of_a_run_commit_it_once(ranked, out, append, there) -> None:
    table, rows = OutputTable(out.address, append), ranked.rows("r1")
    if there:
        write_rows(Storage(), table, ranked.rows("r0", 0))
    first, second = together(*[lambda storage: write_rows(storage, table, rows)] * 2)
    assert first == second
    assert [commit["lakerank.run_id"] for commit in out.commits()] == ["r0", "r1"][not there :]
    assert out.rows().num_rows == (12 if append and there else 6)


def test_a_table_that_another_driver_makes_meanwhile_is_looked_at_again(ranked, tmp_path) -> None:
    out, rows = DeltaOut(tmp_path / "t"), ranked.rows("r1")
    late = _Delta(Storage(), out.address)
    assert late.load() is None
    write_rows(Storage(), OutputTable(out.address), rows)
    with pytest.raises(CommitConflict, match="run the same command again"):
        late.write(rows, rows.schema(Storage()), append=True)
    assert out.rows().num_rows == 6


@pytest.mark.nightly
def test_runs_that_commit_at_once_are_all_there_or_the_later_one_is(ranked, out) -> None:
    write_rows(Storage(), OutputTable(out.address, append=True), ranked.rows("r0", 0))
    runs = [ranked.rows(f"r{number}", number) for number in (1, 2, 3)]
    together(*(lambda s, rows=rows: write_rows(s, OutputTable(out.address, append=True), rows) for rows in runs))
    assert sorted(set(out.rows()["run_id"].to_pylist())) == ["r0", "r1", "r2", "r3"]
    assert out.rows().num_rows == 24
    runs = [ranked.rows(f"r{number}", number) for number in (4, 5)]
    together(*(lambda s, rows=rows: write_rows(s, OutputTable(out.address), rows) for rows in runs))
    assert set(out.rows()["run_id"].to_pylist()) == {"r5"}
    assert write_rows(Storage(), OutputTable(out.address), ranked.rows("r3", 3))["snapshot"] is None
    assert set(out.rows()["run_id"].to_pylist()) == {"r5"}
    write_rows(Storage(), OutputTable(out.address), ranked.rows("r3", None))
    assert set(out.rows()["run_id"].to_pylist()) == {"r3"}


def test_what_else_a_table_has_is_kept(ranked, out) -> None:
    """Rows of others go in the same commit, columns stay: null in ours. Partitions are the table's own."""
    out.create(ranked.rows("none").schema(Storage()).empty_table().append_column("lang", pa.array([], pa.string())))
    foreign = pa.Table.from_pylist([{"query_id": "x", "lang": "de"}], schema=out.rows().schema)
    out.append(foreign)
    before = len(out.commits())
    write_rows(Storage(), OutputTable(out.address), ranked.rows("r1"))
    assert (out.rows().num_rows, out.rows()["lang"].null_count) == (6, 6)
    assert len(out.commits()) == before + 1
    write_rows(Storage(), OutputTable(out.address), ranked.rows("r2", 2, ids=(), files=1))
    assert out.rows().num_rows == 0


def test_a_run_made_again_is_not_appended_beside_its_old_rows(ranked, out) -> None:
    table, rows = OutputTable(out.address, append=True), ranked.rows("r1")
    write_rows(Storage(), table, rows)
    write_rows(Storage(), table, ranked.rows("r0"))
    with pytest.raises(StorageError, match=r"rows of an earlier run 'r1': delete those of run_id = 'r1'"):
        write_rows(Storage(), table, replace(rows, made_from="made again"))
    assert out.rows().num_rows == 12


@pytest.fixture(params=["iceberg", "delta"])
def s3_out(
    request: pytest.FixtureRequest, s3_server: Any, s3_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Callable[[], pa.Table]]:
    """The address of a table in a bucket, and what its format's own library reads of it."""
    if request.param == "delta":
        if SERVER == "moto":
            pytest.skip("moto answers in this process, whose interpreter deltalake does not let go of")
        allowed = {"AWS_ENDPOINT_URL": s3_server.endpoint, "AWS_ALLOW_HTTP": "true", **s3_server.environment()}
        return f"delta+{s3_folder}/ranked", lambda: pa.table(
            DeltaTable(f"{s3_folder}/ranked", storage_options=allowed).to_pyarrow_table()
        )
    keys = {"s3.access-key-id": s3_server.access_key, "s3.secret-access-key": s3_server.secret_key}
    place = {"warehouse": s3_folder, "s3.endpoint": s3_server.endpoint, "s3.region": "us-east-1"}
    files = {"py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO"}  # Ceph refuses pyarrow's uploads: no Content-Length
    catalog = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", **place, **keys, **files}
    (tmp_path / ".pyiceberg.yaml").write_text(yaml.safe_dump({"catalog": {"lake": catalog}}))
    monkeypatch.setenv("PYICEBERG_HOME", str(tmp_path))
    load_catalog("lake", **catalog).create_namespace("db")
    return "iceberg://lake/db.ranked", lambda: load_catalog("lake", **catalog).load_table("db.ranked").scan().to_arrow()


@pytest.mark.nightly
@pytest.mark.parametrize("append", [False, True], ids=["overwrite", "append"])
def test_a_table_in_an_object_store_has_each_run_once(ranked, s3_storage, s3_out, append) -> None:
    (address, read), runs = s3_out, [ranked.rows("r1"), ranked.rows("r2", 2)]
    for rows in (runs[0], runs[0], runs[1]):
        check_output(s3_storage, OutputTable(address, append))
        assert write_rows(s3_storage, OutputTable(address, append), rows)["snapshot"] is not None
    assert read().num_rows == (12 if append else 6)
    files = resolve(s3_storage, address).files
    assert sum(batch.num_rows for file in files for batch in s3_storage.batches(file)) == read().num_rows


@pytest.mark.nightly
def test_a_partitioned_table_is_written_by_its_partitions(ranked, out) -> None:
    schema = ranked.rows("none").schema(Storage()).append(pa.field("run_id", pa.string()))
    out.create(schema.empty_table(), partition="run_id")
    for name in ("r1", "r2"):
        write_rows(Storage(), OutputTable(out.address, append=True), ranked.rows(name))
    assert sorted(out.rows()["run_id"].to_pylist()) == ["r1"] * 6 + ["r2"] * 6


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [pa.uint64(), pa.uint32(), pa.int16(), pa.int64()], ids=str)
def test_ids_of_any_type_keep_their_values(ranked, out, kind) -> None:
    highest = 2 ** (kind.bit_width - (0 if pa.types.is_unsigned_integer(kind) else 1)) - 1
    write_rows(Storage(), OutputTable(out.address), ranked.rows("r1", ids=pa.array([0, highest], kind), files=1))
    assert sorted(map(int, out.rows()["query_id"].to_pylist())) == [0, highest]


def test_a_table_that_cannot_hold_the_rows_is_refused_as_it_is(ranked, out) -> None:
    table, schema = OutputTable(out.address), ranked.rows("r1").schema(Storage())
    numbers = schema.set(0, pa.field("query_id", pa.int64())).remove(schema.get_field_index("label"))
    out.create(numbers.empty_table())
    for refused in (lambda: check_output(Storage(), table), lambda: write_rows(Storage(), table, ranked.rows("r1"))):
        with pytest.raises(SchemaError, match=r"no column label \(int8\): add"):
            refused()
    with pytest.raises(SchemaError, match=r"no column label \(int8\), run_id \(string\)"):
        check_output(Storage(), replace(table, append=True))


def test_text_is_not_taken_for_numbers(ranked, out) -> None:
    schema = ranked.rows("r1").schema(Storage())
    out.create(schema.set(0, pa.field("query_id", pa.int64())).empty_table())
    before = len(out.commits())
    with pytest.raises((SchemaError, StorageError), match=r"column 'query_id' of the table is int64"):
        write_rows(Storage(), OutputTable(out.address), ranked.rows("r1", ids=("007", "8")))
    assert len(out.commits()) == before
    write_rows(Storage(), OutputTable(out.address), ranked.rows("r2", ids=(7, 8), files=1))
    assert sorted(out.rows()["doc_id"].to_pylist()) == ["7", "8"]


def test_what_is_no_table_to_write_is_said(iceberg: IcebergLake, tmp_path: Path) -> None:
    for address in (f"delta+{tmp_path}@3", "iceberg://lake/db.ranked@main", str(tmp_path), "iceberg://ranked"):
        with pytest.raises(ConfigError, match=r"leave out the @|expected"):
            check_output(Storage(), OutputTable(address))
    with pytest.raises(StorageError, match="no namespace 'other'"):
        check_output(Storage(), OutputTable("iceberg://lake/other.ranked"))
