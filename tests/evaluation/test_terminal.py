"""The terminal's table: aligned whatever the script, and never wider than it says."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from lakerank.cli.cells import fit, one_line
from lakerank.lake.storage import Storage
from lakerank_evaluation.examples import choose, fetch_examples
from lakerank_evaluation.job import folder
from lakerank_evaluation.report.terminal import WIDTH, terminal_table


@pytest.fixture
def wide_lake(make_lake):
    names = [
        "雨伞雨伞雨伞雨伞雨伞雨伞雨伞雨伞",
        "بومةبومةبومةبومةبومة",
        "छाता",
        "umbrella\x1b[31m\nred",
        "[bold]x[/bold]",
    ]
    return make_lake(
        documents=[{"doc_id": str(number), "text": name} for number, name in enumerate(names)],
        queries=[
            {
                "query_id": f"q{number}",
                "text": name,
                "language": f"l{number}",
                "task": "text→text" if number else "任务",
            }
            for number, name in enumerate(names)
        ],
        candidates=[(f"q{query}", str(doc), doc + 1) for query in range(5) for doc in range(5)],
        qrels=[(f"q{query}", str(query), 1) for query in range(5)],
        ranked={f"q{query}": [str((query + doc) % 5) for doc in range(5)] for query in range(5)},
    )


def test_no_line_is_too_wide_and_the_figures_line_up(wide_lake):
    done = wide_lake.evaluated()
    text = terminal_table(done.evaluation, done.examples)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= WIDTH
    end = next(number for number, line in enumerate(lines) if line.startswith("all "))
    titles = [line for line in lines[:end] if "nDCG@10 " in line]
    assert len(titles) == 5
    assert {cell_len(line) for line in titles} == {WIDTH}
    table = lines[end - 3 : end + 1]
    assert {cell_len(line) for line in table} == {cell_len(table[0])}
    assert "\x1b" not in text
    assert "[bold]x[/bold]" in text


def test_relevant_documents_are_ticked(wide_lake):
    done = wide_lake.evaluated()
    text = terminal_table(done.evaluation, done.examples)
    assert text.count("after  1. ✓") == 5


def test_the_intervals_are_said_for_both_lists_and_their_difference(make_lake):
    names = [f"q{number}" for number in range(8)]
    lake = make_lake(
        documents=[{"doc_id": "a", "text": "x"}, {"doc_id": "b", "text": "y"}],
        queries=[{"query_id": name, "text": "x"} for name in names],
        candidates=[(name, doc, rank) for name in names for rank, doc in enumerate("ba", 1)],
        qrels=[(name, "a", 1) for name in names],
        ranked={name: ["a", "b"] for name in names},
    )
    done = lake.evaluated()
    line = "nDCG@10, 95 % intervals: first 0.631–0.631, reranked 1.000–1.000, change +0.369 (+0.369 to +0.369)"
    assert line in terminal_table(done.evaluation, done.examples).splitlines()
    rows = csv.DictReader(io.StringIO((Path(folder(lake.paths)) / "slices.csv").read_text()))
    row = next(row for row in rows if row["measure"] == "RR@10")
    assert [row[f"{name}_{end}"] for name in ("first_stage", "reranked") for end in ("low", "high")] == (
        ["0.5", "0.5", "1.0", "1.0"]
    )


def test_examples_take_every_task_and_language_in_turn(small_lake):
    done = small_lake.evaluated()
    queries = done.evaluation.queries
    assert set(queries.labels["task"].take(choose(queries, 2)).to_pylist()) == {"text→text", "image→mixed"}
    assert sorted(choose(queries, 10)) == [0, 1, 2]
    [q1] = fetch_examples(Storage(), done.evaluation, [queries.query_ids.to_pylist().index("q1")])
    assert [(listed.content.label, listed.rank, listed.other_rank, listed.is_relevant) for listed in q1.before] == [
        ("beta", 1, 3, False),
        ("alpha", 2, 1, True),
        ("delta", 3, 2, True),
    ]
    assert [(listed.content.id, listed.other_rank) for listed in q1.after] == [("a", 2), ("d", 3), ("b", 1)]


def test_an_example_has_the_first_stage_in_the_order_of_the_figures(make_lake):
    """By rank, then by score, then by id; a pair with two rows once, at its better rank; other judgements are lower."""
    lists = [
        ("c", 3, None),
        ("c", 1, None),
        ("b", 2, 0.1),
        ("n", None, float("nan")),
        ("s", None, 0.9),
        ("t", None, 2.0),
    ]
    names = ("doc_id", "first_stage_rank", "first_stage_score")
    lake = make_lake(
        documents=[{"doc_id": doc, "text": doc} for doc in "bcnst"],
        queries=[{"query_id": "q", "text": "x"}],
        candidates=[{"query_id": "q", **dict(zip(names, row, strict=True))} for row in lists],
        qrels=[("q", "s", 2), ("q", "s", 0)],
        ranked={"q": ["s", "t", "b"]},
    )
    evaluation = lake.evaluation()
    [example] = fetch_examples(Storage(), evaluation, [0])
    assert [listed.content.id for listed in example.before] == ["c", "b", "t", "s", "n"]
    [s] = [listed for listed in example.before if listed.judgement is not None]
    assert (s.rank, s.other_rank, s.judgement) == (4, 1, 2)
    assert evaluation.queries.counts["first_relevant_before"].to_pylist() == [s.rank]


@given(st.text(), st.integers(1, 40))
def test_fit_never_exceeds_its_cells(text, cells):
    line = one_line(text)
    assert cell_len(fit(line, cells)) <= cells
    assert cell_len(fit(line, cells, pad=True)) == cells
