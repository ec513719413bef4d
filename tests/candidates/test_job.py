"""The first stage as a job: whole tables or none, the same bytes on any runner, and every id accounted for."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lakerank.candidates.job import Addresses, find_candidates
from lakerank.candidates.search import FILE_ROWS, Options
from lakerank.cli.candidates import candidates as command
from lakerank.errors import ConfigError, IngestError, StorageError
from lakerank.lake.storage import Storage

TEXTS = ["red apple", "green apple", "blue train", "red train on red rails", "apple pie with red apple", "sea"]
QUERIES = {"q1": "red apple", "q2": "Train", "q3": "moon", "q4": None}


@dataclass
class Lake:
    folder: Path

    def write(self, name: str, rows: list[dict[str, Any]], files: int = 1) -> None:
        columns = dict.fromkeys(name for row in rows for name in row)
        (self.folder / name).mkdir(exist_ok=True)
        for file in range(files):
            part = {column: [row.get(column) for row in rows[file::files]] for column in columns}
            pq.write_table(pa.table(part), self.folder / name / f"in-{file}.parquet", row_group_size=2)

    def find(self, output: str = "candidates", **options: Any) -> dict[str, Any]:
        addresses = Addresses(*(str(self.folder / name) for name in ("documents", "queries", output)))
        runner = options.pop("runner", None)
        chosen = {"choose_runner": lambda _bytes: nullcontext(runner)} if runner else {}
        runs = tuple(str(self.folder / run) for run in options.pop("runs", ()))
        return find_candidates(Storage(), addresses, Options(runs=runs, **options), **chosen)

    def lists(self, output: str = "candidates") -> dict[str, list[str]]:
        rows = pq.read_table(self.folder / output, partitioning=None).to_pylist()
        lists: dict[str, list[str]] = {}
        for row in rows:
            lists.setdefault(row["query_id"], []).append(row["doc_id"])
            assert row["first_stage_rank"] in (None, len(lists[row["query_id"]]))
        assert rows == sorted(rows, key=lambda row: (row["query_id"], row["first_stage_rank"] or 0))
        return lists

    def files(self, output: str = "candidates") -> dict[str, bytes]:
        folder = self.folder / output
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path)
    lake.write("documents", [{"doc_id": f"d{n}", "text": text, "image": None} for n, text in enumerate(TEXTS)])
    lake.write("queries", [{"query_id": name, "text": text} for name, text in QUERIES.items()])
    return lake


def test_documents_are_found_and_what_cannot_be_is_counted(lake, caplog):
    lake.write("documents", [*({"doc_id": f"d{n}", "text": text} for n, text in enumerate(TEXTS)), {"doc_id": "scan"}])
    summary = lake.find(depth=2)
    assert lake.lists() == {"q1": ["d0", "d4"], "q2": ["d2", "d3"]}
    assert (summary["queries"], summary["candidates"], summary["documents"]) == (4, 4, 7)
    assert (summary["queries_without_candidates"], summary["such_queries"]) == (2, ["q3", "q4"])
    assert (summary["queries_without_text"], summary["documents_without_text"]) == (1, 1)
    assert "1 of 7 documents have no text: BM25 cannot find them" in caplog.text
    assert not any(text in caplog.text for text in ("moon", "apple"))


def test_in_a_small_lake_all_other_documents_follow_each_list(lake):
    whole = 4 * len(TEXTS)
    summary = lake.find(depth=2, fill_pairs=whole)
    rest = {"q1": ["d0", "d4"], "q2": ["d2", "d3"], "q3": [], "q4": []}
    every = [f"d{n}" for n in range(len(TEXTS))]
    assert lake.lists() == {name: [*own, *(d for d in every if d not in own)] for name, own in rest.items()}
    assert (summary["candidates"], summary["queries_without_candidates"]) == (whole, 0)
    rows = pq.read_table(lake.folder / "candidates").to_pylist()
    assert [row["first_stage_score"] is None for row in rows[:3]] == [False, False, True]
    assert lake.find(depth=2, fill_pairs=whole - 1)["candidates"] == 4


def test_a_page_is_found_by_its_text_for_search(lake):
    texts = [("a", None, "red moon"), ("b", "moon", "nothing"), ("c", "moon", None), ("d", b"\xff moon", None)]
    lake.write("documents", [{"doc_id": i, "text": t, "search_text": s} for i, t, s in texts[:3]])
    lake.find()
    assert lake.lists()["q3"] == ["c", "a"]


def test_bytes_that_are_no_text_are_not_searched(lake):
    lake.write("documents", [{"doc_id": "a", "text": b"\xff moon"}, {"doc_id": "b", "text": b"moon"}])
    assert lake.find()["documents_without_text"] == 1
    assert lake.lists() == {"q3": ["b"]}


def test_an_instruction_before_a_query_is_not_searched_for(lake):
    lake.write("queries", [{"query_id": "q", "text": "find an apple: sea", "text_prefix": "find an apple: "}])
    lake.find()
    assert lake.lists() == {"q": ["d5"]}


def test_files_and_row_groups_change_nothing(lake):
    rows = [{"doc_id": f"d{n % 17:02}", "text": TEXTS[n % 6]} for n in range(40)]  # ids occur more than once
    for files in (1, 7):
        lake.write("documents", sorted(rows, key=lambda row: row["doc_id"]), files)
        lake.find(f"of-{files}", depth=20)
    assert lake.files("of-1") == lake.files("of-7")
    assert all(len(set(docs)) == len(docs) for docs in lake.lists("of-1").values())


def test_a_table_of_several_files_has_the_same_rows(lake):
    lake.find("one", depth=10)
    lake.find("many", depth=FILE_ROWS)  # one query a file
    assert sorted(lake.files("many")) == ["part-000000.parquet", "part-000001.parquet"]
    assert lake.lists("many") == lake.lists("one")
    lake.find("many", depth=10)
    assert lake.files("many") == lake.files("one"), "files of the earlier table are gone"


def test_an_earlier_table_stays_where_nothing_is_found(lake):
    lake.find()
    before = lake.files()
    lake.write("documents", [{"doc_id": "scan", "text": None}])
    with pytest.raises(IngestError, match=r"no query has a candidate.*is as it was.*--run"):
        lake.find()
    assert lake.files() == before


def test_lists_are_fused_by_reciprocal_ranks(lake):
    (lake.folder / "a.trec").write_text("q1 Q0 d5 1 9 x\nq1 Q0 d0 2 8 x\nq3 Q0 d5 1 1 x\nq3 Q0 d1 2 1 x\n")
    (lake.folder / "b.trec").write_text("q1 Q0 d5 1 3 x\n")
    lake.find(runs=["a.trec", "b.trec"], depth=3)
    # d5 is first in a and b, d0 first by BM25 and second in a, d4 second by BM25.
    assert lake.lists()["q1"] == ["d5", "d0", "d4"]
    assert lake.lists()["q3"] == ["d5", "d1"], "the order of a list counts, ties included"
    score = pq.read_table(lake.folder / "candidates")["first_stage_score"][0].as_py()
    assert score == pytest.approx(2 / 61, rel=1e-6)


def test_a_run_alone_keeps_its_scores_and_order(lake):
    (lake.folder / "run").write_text("q2 Q0 d2 9 1.5 x\nq2 Q0 d1 8 2.5 x\nq1 Q0 d1 1 7 x\nq2 Q0 d0 1 1.5 x\n")
    summary = lake.find(runs=["run"], method="none", depth=2)
    assert lake.lists() == {"q1": ["d1"], "q2": ["d1", "d2"]}
    assert pq.read_table(lake.folder / "candidates")["first_stage_score"].to_pylist() == [7.0, 2.5, 1.5]
    assert summary["documents_without_text"] is None


def test_lines_of_a_run_that_give_nothing_are_listed(lake):
    (lake.folder / "run").write_text("q1 Q0 d1 1 7 x\nq9 Q0 d1 1 7 x\nq1 Q0 d99 2 6 x\nq1 Q0 d2\n")
    summary = lake.find(runs=["run"], method="none")
    assert summary["rejected_by_fault"] == {"document_not_found": 1, "field_missing": 1, "query_not_found": 1}
    rejects = [json.loads(line) for line in (lake.folder / "rejects" / "candidates.jsonl").read_text().splitlines()]
    faults = {(row["path"], row["line"], row["fault"]) for row in rejects}
    assert faults == {("run", 2, "query_not_found"), ("run", 3, "document_not_found"), ("run", 4, "field_missing")}
    assert lake.lists() == {"q1": ["d1"]}
    lake.find()
    assert not (lake.folder / "rejects" / "candidates.jsonl").exists()


def test_a_run_of_another_lake_is_refused(lake):
    (lake.folder / "run").write_text("PLAIN-1 Q0 d1 1 7 x\n")
    with pytest.raises(StorageError, match=r'no line is of a query of lake\.queries, whose ids are like "q1"'):
        lake.find(runs=["run"])
    assert not (lake.folder / "candidates").exists()


def test_a_small_lake_is_taken_whole_within_a_bound(lake):
    assert lake.find(method="all-pairs", max_pairs=24)["candidates"] == 24
    assert lake.lists() == {query: [f"d{n}" for n in range(6)] for query in QUERIES}
    with pytest.raises(ConfigError, match="4 queries × 6 documents are 24 pairs, more than --max-pairs 23"):
        lake.find(method="all-pairs", max_pairs=23)


@pytest.mark.parametrize("columns", [["doc_id", "text"], ["query_id", "doc_id", "relevance"]])
def test_another_table_is_not_written_over(lake, columns):
    (lake.folder / "other").mkdir()
    pq.write_table(pa.table({name: ["1"] for name in columns}), lake.folder / "other" / "part-000000.parquet")
    with pytest.raises(ConfigError, match="or are another table"):
        lake.find("other")
    with pytest.raises(ConfigError, match="files that would be read with the candidates"):
        lake.find("documents")


def test_what_contradicts_is_refused(lake):
    with pytest.raises(ConfigError, match="give --run FILE"):
        lake.find(method="none")
    with pytest.raises(ConfigError, match="written to a folder"):
        lake.find("documents/in-0.parquet")


def test_command(lake):
    tables = [f"--set=lake.{name}={lake.folder / name}" for name in ("documents", "queries", "candidates")]
    result = CliRunner().invoke(command, ["--config", "demo", *tables, "--set=lake.qrels=null", "--depth", "2"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["candidates"] == 4
    assert CliRunner().invoke(command, ["--config", "demo"]).exit_code == 2, "the bundled lake is not overwritten"


@pytest.mark.spark
def test_spark_writes_the_same_bytes(lake, spark):
    from lakerank.spark.runtime.runner import SparkRunner

    rows = [{"doc_id": f"d{n:03}", "text": f"{TEXTS[n % 6]} {TEXTS[n % 5]} {n % 7}"} for n in range(60)]
    lake.write("documents", rows, files=3)
    (lake.folder / "run").write_text("q1 Q0 d005 1 9 x\nq3 Q0 d001 1 1 x\nq1 Q0 dx 1 1 x\n")
    expected = lake.find("local", runs=["run"], depth=7)
    summary = lake.find("spark", runs=["run"], depth=7, runner=SparkRunner(spark))
    assert lake.files("spark") == lake.files("local")
    changes = ("output", "seconds")
    assert {**summary, **dict.fromkeys(changes)} == {**expected, **dict.fromkeys(changes)}
