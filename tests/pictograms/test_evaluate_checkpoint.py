"""A judging lake's figures: by hand, each document scored once, each list on its own candidates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from lakerank.config import read_yaml
from lakerank.errors import SchemaError
from lakerank.lake.storage import Storage
from lakerank.records import Reject, RejectReason, ScoredPair
from lakerank_pictograms.evaluate_checkpoint import evaluate, main, markdown

CONF = Path(__file__).parents[2] / "conf"


class ByLength:
    """A reranker that likes long documents, and rejects one."""

    def __init__(self):
        self.groups = []

    def score_groups(self, groups):
        for group in groups:
            self.groups.append((group.document.doc_id, [query.query_id for query in group.queries]))
            for query in group.queries:
                if group.document.doc_id == "broken":
                    yield Reject(query.query_id, "broken", RejectReason.IMAGE_UNDECODABLE)
                else:
                    logit = float(len(group.document.text))
                    yield ScoredPair(query.query_id, group.document.doc_id, logit, 1, 1, False, False)


@pytest.fixture
def folder(make_lake, tmp_path):
    """Two slices; the list of hard candidates has fewer documents, and leaves the longest out."""
    docs = {"s": "x", "m": "xx", "l": "xxx", "xl": "xxxx", "broken": "?"}
    labels = {"task": "text→text", "slice": "seen"}
    make_lake(
        documents=[{"doc_id": name, "text": text} for name, text in docs.items()],
        queries=[{"query_id": f"q{n}", "text": f"query {n}", **labels} for n in range(6)]
        + [{"query_id": "other", "text": "?", **labels, "slice": "unseen"}, {"query_id": "bare", "text": "?"}],
        candidates=[
            (query, doc, rank)
            for query in ("other", "bare", *(f"q{n}" for n in range(6)))
            for rank, doc in enumerate(("m", "s", "l", "xl", "broken"), start=1)
        ],
        qrels=[(f"q{n}", "l", 2) for n in range(6)] + [("other", "broken", 2), ("bare", "l", 2)],
        ranked={},
    )
    table = pq.read_table(tmp_path / "candidates.parquet")
    kept = [name != "xl" for name in table.column("doc_id").to_pylist()]
    pq.write_table(table.filter(kept), tmp_path / "candidates_hard.parquet")
    return tmp_path


def test_figures_are_those_of_each_list(folder):
    reranker = ByLength()
    figures = evaluate(reranker, Storage(), str(folder), queries_per_slice=4)
    assert [document for document, _ in reranker.groups] == ["s", "m", "l", "xl", "broken"]
    (seen, unseen), (hard, _) = figures.values()
    assert (seen.dimension, seen.value, seen.queries, unseen.queries) == ("text→text", "seen", 4, 1)
    assert seen.first_stage["nDCG@10"] == pytest.approx(1 / 2)  # third place
    assert seen.reranked["nDCG@10"] == pytest.approx(0.6309, abs=1e-4)  # behind xl
    assert hard.reranked["nDCG@10"] == 1
    assert unseen.reranked["nDCG@10"] == 0  # rejected: not found
    assert "| text→text | seen | 4 | 0.590 | 0.500 | 0.631 |" in markdown([seen], "All")


def test_the_same_seed_draws_the_same_queries(folder):
    first, second, other = ByLength(), ByLength(), ByLength()
    for reranker, seed in ((first, 1), (second, 1), (other, 2)):
        evaluate(reranker, Storage(), str(folder), queries_per_slice=2, seed=seed)
    assert first.groups == second.groups
    assert first.groups != other.groups


def test_a_lake_without_labels_is_refused(small_lake):
    with pytest.raises(SchemaError, match="no query has task, slice"):
        evaluate(ByLength(), Storage(), str(Path(small_lake.tables.queries).parent))


@pytest.mark.nightly
def test_the_command_prints_a_table_for_each_list(folder, tiny_checkpoint):
    command = [
        sys.executable,
        "-m",
        "lakerank_pictograms.evaluate_checkpoint",
        str(tiny_checkpoint),
        str(folder),
        "--threads",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| text→text | seen | 6 |") == 2
    assert "Candidates of the same group, nDCG@10:" in done.stdout


@pytest.mark.parametrize(("name", "status"), [("routed.yaml", 0), ("cascade.yaml", 2)])
def test_the_command_takes_a_config_that_names_one(
    folder, tiny_checkpoint, tmp_path, monkeypatch, capsys, name, status
):
    values = read_yaml(CONF / name)
    if name == "routed.yaml":
        for part in values["model"].values():
            part["path"], part["max_length"] = str(tiny_checkpoint), 1024
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(sys, "argv", ["judge", str(tmp_path / "config.yaml"), str(folder), "--queries", "1"])
    assert main() == status
    messages = capsys.readouterr()
    assert ("| text→text | seen | 1 |" in messages.out) == (status == 0)
    assert ("one reranker is evaluated" in messages.err) == (status == 2)
