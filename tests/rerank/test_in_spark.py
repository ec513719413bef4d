"""A lake with every kind of row gets the same files from Spark and from this process; each goes on from the other."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lakerank.audit import Bounds
from lakerank.lake.storage import Storage
from lakerank.limits import Listwise
from lakerank.plan.guarantee import Promise
from lakerank.ranking import Fusion
from lakerank.rerank.publish import AuditRules
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.run import run
from lakerank.runner import Deadline, one_row
from lakerank.schemas import QRELS
from lakerank.spark.runtime.runner import SparkRunner

from .conftest import HashListFactory

pytestmark = pytest.mark.spark

#: Texts that a HashReranker scores, cannot score, truncates, and that no reranker gets.
TEXTS = ["too much", "long", "of two B", "", " ", None, "é🍎", *(f"text {number}" for number in range(20))]


def fill(lake: Any, seed: int) -> None:
    """Texts and images, ids that are there twice, rows that are empty or missing, and pairs that are listed twice."""
    rng, buffer = random.Random(seed), io.BytesIO()
    Image.new("RGB", (60, 40), 90).save(buffer, "PNG")
    images = [buffer.getvalue(), None, None]
    for table, name, count in (("documents", "doc_id", 40), ("queries", "query_id", 15)):
        numbers = [*range(count), *rng.sample(range(count), 4)]
        ids = [f"{name[0]}{number:02}" for number in numbers]
        lake.write(table, [{name: row, "text": rng.choice(TEXTS), "image": rng.choice(images)} for row in ids])
    documents = pq.read_table(lake.folder / "documents.parquet")
    groups = pa.array([rng.choice([None, 1, 2, 3]) for _ in range(len(documents))])
    pq.write_table(documents.append_column("group_id", groups), lake.folder / "documents.parquet", row_group_size=4)
    pairs = [(rng.randrange(17), rng.randrange(43), rng.choice([None, rng.randrange(50)])) for _ in range(500)]
    rows = [{"query_id": f"q{q:02}", "doc_id": f"d{d:02}", "first_stage_rank": rank} for q, d, rank in pairs]
    lake.write("candidates", rows, row_group_rows=60)
    qrels = [{"query_id": f"q{q:02}", "doc_id": f"d{d:02}", "relevance": d % 2} for q in range(9) for d in range(30)]
    pq.write_table(pa.Table.from_pylist(qrels, QRELS), lake.folder / "qrels.parquet")


def results(lake: Any, run_id: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """A run's lists, rejects and unit files by path, and the manifest's figures."""
    out = lake.folder / "out"
    folders = (out / "ranked" / f"run_id={run_id}", out / "rejected" / f"run_id={run_id}", out / "scores")
    files = [path for folder in folders for path in folder.rglob("*.parquet")]
    manifest = json.loads((out / "runs" / run_id / "manifest.json").read_text())
    figures = {name: manifest[name] for name in ("counts", "labels", "rejected", "audit", "histogram", "passes")}
    for stage in figures["passes"]:
        del stage["attempt"], stage["planning"], stage["scoring"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}, figures


@pytest.mark.parametrize("fusion", [None, Fusion("reciprocal_rank", (0.5, 0.5))], ids=["cascade", "ensemble"])
def test_spark_and_this_process_write_the_same_files(spark, runner, storage, lake, tmp_path_factory, fusion):
    fill(lake, seed=4)
    assert run(runner, storage, lake.job("r1"))["published"]
    there = type(lake)(tmp_path_factory.mktemp("there"))
    shutil.copytree(lake.folder, there.folder, dirs_exist_ok=True)
    for each, tasks in ((lake, runner), (there, SparkRunner(spark))):
        each.write("candidates", pq.read_table(each.folder / "candidates.parquet").to_pylist()[:-80], row_group_rows=60)
        rule = RankRule(0.0, (0.5,), None, per_group=2)
        first = each.job("any", rule=rule).stages[0]
        later = [replace(first, scorer="beef", factory=each.factory("B"), top=None if fusion else 4)]
        if fusion is None:
            later += replace(first, scorer="cafe", factory=each.factory("C"), keep=Promise(2, 0.6, 0.6)).parts
            of_lists = replace(first.limits, listwise=Listwise())
            later.append(replace(first, scorer="115e", factory=HashListFactory(), top=3, limits=of_lists))
        rules = AuditRules(Bounds(golden_qrels=str(each.folder / "qrels.parquet")))
        summary = run(tasks, storage, each.job("r2", tuple(later), fusion, audit=rules, rule=rule))
        assert summary["published"]
        assert min(summary[name] for name in ("scored", "rejected", "dropped", "beyond_group")) > 0
    files, figures = results(lake, "r2")
    files_there, figures_there = results(there, "r2")
    assert files.keys() == files_there.keys()
    assert files == files_there
    assert figures == figures_there
    assert {check["name"] for check in figures["audit"]} >= {"top-10 churn", "golden queries, drop of nDCG@10"}


class KilledError(BaseException):
    """The process is gone."""


class MortalStorage(Storage):
    """Its process is killed when it has written so many unit files."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units

    def create(self, uri: str, data: bytes) -> bool:
        if "/scores/" in uri and self.units == 0:
            raise KilledError
        self.units -= "/scores/" in uri
        return super().create(uri, data)


def test_each_goes_on_where_the_other_was_killed(spark, runner, storage, published):
    first = published.ranked_bytes("r1")
    job = published.job("r2", scorer="f00e")
    assert run(SparkRunner(spark), storage, job, ["plan"])["units"] > 5
    with pytest.raises(KilledError):
        run(runner, MortalStorage(3), job, ["score"])
    assert len(published.unit_files("f00e")) == 3
    summary = run(SparkRunner(spark), storage, job, ["score"])
    assert (summary["found"], len(published.unit_files("f00e"))) == (3, summary["units"])
    assert run(runner, storage, job, ["publish"])["published"]
    assert published.ranked_bytes("r2") == first


@pytest.mark.nightly
@pytest.mark.parametrize("how", ["collect", "stream"])
def test_a_worker_that_stands_still_in_any_step_is_killed_and_its_task_done_again(spark, tmp_path, how):
    stopped, schema = tmp_path / "stopped", pa.schema([("number", pa.int64())])

    def work(number: int) -> Any:
        if number == 1 and not stopped.exists():
            stopped.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        yield one_row(schema, number)

    tasks = SparkRunner(spark, Deadline(20, 20, 0.5))
    rows = tasks.scatter([0, 1], work, schema)
    numbers = [*tasks.stream(rows)] if how == "stream" else tasks.collect(rows, schema).to_pylist()
    assert stopped.exists()
    assert [row["number"] for row in numbers] == [0, 1]
