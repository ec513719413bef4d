"""What an evaluation comes to: better, worse, no better than random; what the candidates allow; the runs before."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank_evaluation.job import trend
from lakerank_evaluation.report.terminal import WIDTH, terminal_table
from lakerank_evaluation.report.verdict import Outcome, verdict
from lakerank_evaluation.unmatched import Unmatched

DOCS = [f"d{number:02}" for number in range(20)]
QUERIES = 12


def at(rank):
    """A list with d00, which alone is relevant, at a rank from 0."""
    return DOCS[1 : rank + 1] + DOCS[:1] + DOCS[rank + 1 :]


@pytest.fixture
def ranks(make_lake):
    def make(before, after, queries=QUERIES, **options):
        names = [f"q{number}" for number in range(queries)]
        lists = dict.fromkeys(names, at(after))
        return make_lake(
            documents=[{"doc_id": doc, "text": doc} for doc in DOCS],
            queries=[{"query_id": name, "text": name} for name in names],
            candidates=[
                (name, doc, None if before is None else rank)
                for name in names
                for rank, doc in enumerate(at(before or 0), start=1)
            ],
            qrels=[(name, DOCS[0], 1) for name in names],
            ranked=lists,
            **options,
        )

    return make


@pytest.mark.parametrize(
    ("before", "after", "queries", "outcome"),
    [
        (5, 0, QUERIES, Outcome.BETTER),
        (0, 5, QUERIES, Outcome.WORSE),
        (5, 5, QUERIES, Outcome.UNCLEAR),
        (5, 0, 3, Outcome.UNCLEAR),  # too few for an interval
        (0, 15, QUERIES, Outcome.BELOW_RANDOM),
        (15, 15, QUERIES, Outcome.BELOW_RANDOM),
        (None, 0, QUERIES, Outcome.BETTER),
        (None, 15, QUERIES, Outcome.BELOW_RANDOM),
    ],
)
def test_the_outcome(ranks, before, after, queries, outcome):
    assert verdict(ranks(before, after, queries).evaluation()).outcome == outcome


def test_where_every_order_is_as_good_nothing_is_blamed(make_lake):
    names = [f"q{number}" for number in range(QUERIES)]
    lake = make_lake(
        documents=[{"doc_id": "a", "text": "x"}],
        queries=[{"query_id": name, "text": "x"} for name in names],
        candidates=[(name, "a", None) for name in names],
        qrels=[(name, "a", 1) for name in names],
        ranked={name: ["a"] for name in names},
    )
    result = verdict(lake.evaluation())
    assert result.outcome == Outcome.UNCLEAR
    assert "Nothing is missing" in result.ceiling


def test_whose_fault_it_is(make_lake):
    """Of two relevant documents one is a candidate, and the reranker puts it first."""
    lake = make_lake(
        documents=[{"doc_id": doc, "text": doc} for doc in "abc"],
        queries=[{"query_id": "q", "text": "x"}],
        candidates=[("q", "a", 2), ("q", "b", 1)],
        qrels=[("q", "a", 1), ("q", "c", 1)],
        ranked={"q": ["a", "b"]},
    )
    evaluation = lake.evaluation()
    assert evaluation.overall.ceiling["Recall@10"] == 0.5
    assert evaluation.overall.ceiling["nDCG@10"] == evaluation.overall.reranked["nDCG@10"] < 1
    assert "1 of 2 documents judged relevant (50%)" in verdict(evaluation).ceiling
    assert "from the candidates" in verdict(evaluation).ceiling
    assert evaluation.unmatched == Unmatched(), "c is not listed, but there"


def test_judgements_that_match_nothing_are_said_aloud(make_lake, caplog):
    """Of a text in pieces, of documents and queries that are not there; every document is a candidate."""
    pieces = [f"long.txt#chunk={number}" for number in range(3)]
    lake = make_lake(
        documents=[{"doc_id": doc, "text": doc} for doc in ("a", *pieces)],
        queries=[{"query_id": "q", "text": "x"}],
        candidates=[("q", doc, rank) for rank, doc in enumerate(("a", *pieces), 1)],
        qrels=[("q", "a", 1), ("q", "long.txt", 1), *(("q", f"no{n}", 0) for n in range(4)), ("p", "a", 1)],
        ranked={"q": ["a", *pieces]},
    )
    done = lake.evaluated()
    queries = "judged queries that are not in the queries table: 1 (p)"
    documents = (
        "judged documents that are not in the documents table: 5 (long.txt, no0, no1, …); its ids are such as "
        "long.txt#chunk=0"
    )
    assert [message for message in caplog.messages if "judged" in message][:2] == (
        [f"run r1: {queries}", f"run r1: {documents}"]
    )
    result = verdict(done.evaluation)
    assert result.advice[:2] == (f"J{queries[1:]}.", f"J{documents[1:]}.")
    assert "more to gain from the judgements" in result.ceiling
    assert "better ones" not in result.ceiling


def test_advice_names_what_is_suspicious(ranks):
    logits = {(f"q{query}", doc): 9.0 for query in range(QUERIES) for doc in DOCS}
    lake = ranks(5, 0, logits=logits, rejected=[("q0", f"gone-{n}", "missing_document") for n in range(100)])
    path = Path(lake.paths.ranked, "part-0.parquet")
    table = pq.read_table(path)
    alike = table.set_column(table.schema.get_field_index("label"), "label", [[3] * len(table)]).cast(table.schema)
    pq.write_table(alike, path)
    advice = " ".join(verdict(lake.evaluation()).advice)
    assert "240 of 240 ranked pairs have label 3" in advice
    assert "42% of the candidates were rejected" in advice
    Path(lake.paths.manifest).write_text(json.dumps({"warnings": ["the model is a toy"]}))
    advice = " ".join(verdict(lake.evaluation()).advice)
    assert "The model is a toy." in advice
    assert "label 3" not in advice, "the manifest has said so, or had no reason to"


def test_a_worse_run_is_said_aloud(ranks, caplog):
    lake = ranks(0, 15)
    done = lake.evaluated()
    assert "Do not publish" in caplog.text
    assert done.summary()["verdict"] == "worse than random"
    assert json.loads(Path(done.figures).read_text())["verdict"] == "worse than random"
    assert 'class="verdict bad-tone"' in Path(done.report).read_text()


def test_the_terminal_names_the_baseline_run(ranks):
    lake = ranks(5, 0)
    name = "a-run-with-a-name-that-is-far-too-long-for-a-column-of-the-table"
    lake.add_run(name, {f"q{number}": at(2) for number in range(QUERIES)})
    done = lake.evaluated(name)
    text = terminal_table(done.evaluation, done.examples)
    header = next(line for line in text.splitlines() if "random" in line)
    assert "a-run-with-a-name-t… " in header
    assert f"Against run {name}: nDCG@10 +0.500" in text.replace("\n", " ")
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize("name", ["first", "change"])
def test_a_run_named_as_a_column_is_told_from_it(ranks, name):
    lake = ranks(5, 0)
    lake.add_run(name, {f"q{number}": at(2) for number in range(QUERIES)})
    done = lake.evaluated(name)
    header = next(line for line in terminal_table(done.evaluation, done.examples).splitlines() if "random" in line)
    columns = re.split(r"  +", header.strip())
    assert columns == ["queries", "nDCG@10:", "random", "first", "reranked", f"run {name}", "change"]


def test_runs_before_it_that_were_judged_alike_are_its_trend(ranks):
    lake = ranks(5, 0)
    for number, rank in enumerate((9, 3, 6), start=1):
        run_id, published_at = f"night-{number}", f"2026-01-0{number}T00:00:00+00:00"
        lake.add_run(run_id, {f"q{query}": at(rank) for query in range(QUERIES)}, complete=True)
        paths = RunPaths(lake.paths.output, run_id)
        Path(paths.manifest).write_text(json.dumps({"published_at": published_at}))
        pointer = Path(lake.paths.output, "publications", f"0000000{number}.json")
        pointer.parent.mkdir(exist_ok=True)
        pointer.write_text(json.dumps({"run_id": run_id}))
        result = replace(lake, paths=paths).evaluation().as_dict()
        if number == 2:
            result["judgements"]["fingerprint"] = "of other judgements"
        Path(paths.folder, "evaluation.json").write_text(json.dumps(result))
    points = trend(Storage(), lake.evaluation())
    assert [point["run_id"] for point in points] == ["r1", "night-3", "night-1"]
    assert points[2]["overall"]["reranked"]["Recall@10"] == 1.0
    assert "night-3" in Path(lake.evaluated().report).read_text()


def test_one_changed_judgement_is_another_fingerprint(ranks):
    lake = ranks(5, 0)
    before = lake.evaluation().queries.judgements
    table = pq.read_table(lake.tables.qrels)
    rows = table.to_pylist()
    pq.write_table(table.take(list(range(len(table)))[::-1]), lake.tables.qrels)
    assert lake.evaluation().queries.judgements == before, "in another order"
    rows[3]["relevance"] = 2
    pq.write_table(table.from_pylist(rows, table.schema), lake.tables.qrels)
    assert lake.evaluation().queries.judgements != before
