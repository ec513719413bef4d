"""`lakerank show` and `lakerank runs`: lists with their files and texts, what was rejected, another run; all runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluated_lake import Lake, encoded, write
from lakerank import schemas
from lakerank.cli import main
from lakerank.lake.ranked import SNIPPET, passage
from lakerank.lake.runs import RunPaths

LONG = "word " * 400


@pytest.fixture
def lake(make_lake: Callable[..., Lake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """Two queries over three documents of a folder; lakerank.yaml stands beside it, and names other tables."""
    made = make_lake(
        documents=[
            {"doc_id": "m#7", "text": f"Hold the\x1b[31m button. {LONG}", "path": "manual.pdf", "page": "7"},
            {"doc_id": "n", "text": "The lamp 灯が点滅する blinks.", "path": "notes.md"},
            {"doc_id": "p", "image": encoded((800, 400))},
            {"doc_id": "x", "text": "", "path": "empty.txt"},
        ],
        queries=[
            {"query_id": "q1", "text": "How to reset it"},
            {"query_id": "q2", "text": "why does the lamp blink", "instruction": "Judge by\nthe notes."},
        ],
        candidates=[("q1", "m#7", 2), ("q1", "n", 1), ("q1", "x", 3), ("q2", "n", 1), ("q2", "p", 2)],
        qrels=[],
        ranked={"q1": ["m#7", "n"], "q2": ["p", "n"]},
        rejected=[("q1", "x", "empty_document")],
        manifest={"published_at": "2026-01-05T10:11:12+00:00", "counts": {"candidates": 5, "scored": 4, "reused": 0}},
    )
    made.add_run("r0", {"q1": ["n", "x"]}, complete=True)
    Path(RunPaths(made.paths.output, "r0").manifest).write_text('{"published_at": "2026-01-04T00:00:00+00:00"}')
    tables = {name: getattr(made.tables, name) for name in ("documents", "queries", "candidates")}
    config = {"lake": {**tables, "output": made.paths.output}, "model": {"path": "/models/own"}}
    Path(made.paths.config).write_text(json.dumps(config))
    Path(made.paths.current).write_text(json.dumps({"run_id": "r1", "published_at": "2026-01-05T10:11:12+00:00"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "90")
    (tmp_path / "lakerank.yaml").write_text(json.dumps({"lake": {**config["lake"], "queries": "nowhere.parquet"}}))
    return made


def _call(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == status, done.output
    return done


def test_a_list_shows_ranks_relevance_files_texts_and_rejects(lake: Lake) -> None:
    printed = _call("show").stdout
    assert printed.splitlines()[:7] == [
        "Run r1: rank, relevance, label, rank in the first stage, file and text",
        "",
        "How to reset it  (q1)",
        "   1  0.50  2        –  manual.pdf, page 7  Hold the [31m button. word word word word wor…",
        "   2  0.33  1        –  notes.md  The lamp 灯が点滅する blinks.",
        "      rejected: 1 empty_document",
        "        empty_document: empty.txt",
    ]
    assert (
        "why does the lamp blink  (q2)\n      instruction: Judge by the notes.\n   1  0.50  2        –  p\n" in printed
    )
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("arguments", "queries"),
    [
        (["r1"], ["q1", "q2"]),
        (["current"], ["q1", "q2"]),
        (["LAMP why"], ["q2"]),
        (["r1", "lamp", "why"], ["q2"]),
        (["q1"], ["q1"]),
        (["--queries", "1"], ["q1"]),
    ],
)
def test_a_run_and_queries_are_named_by_id_or_words(arguments: list[str], queries: list[str], lake: Lake) -> None:
    shown = json.loads(_call("show", *arguments, "--json").stdout)
    assert [query["query_id"] for query in shown["queries"]] == queries
    assert shown["run_id"] == "r1"


def test_another_run_is_compared(lake: Lake) -> None:
    lines = _call("show", "q1", "--against", "r0", "--top", "2").stdout.splitlines()
    assert lines[0] == "Run r1: rank, relevance, label, rank in the first stage, rank in run r0, file and text"
    assert [line.split()[4:6] for line in lines[3:5]] == [["new", "manual.pdf,"], ["was", "1"]]
    assert lines[5].strip() == "gone from rank 2: empty.txt"
    (query,) = json.loads(_call("show", "q1", "--against", "r0", "--json").stdout)["queries"]
    assert [result["other_rank"] for result in query["results"]] == [None, 1]
    assert query["gone"] == [{"rank": 2, "doc_id": "x", "path": "empty.txt", "page": None}]


def test_json_holds_what_the_text_shows(lake: Lake, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    queries = json.loads(_call("show", "--thumbnails", str(folder), "--json").stdout)["queries"]
    first = queries[0]["results"][0]
    assert {key: first[key] for key in ("rank", "doc_id", "path", "page", "label", "thumbnail")} == {
        "rank": 1, "doc_id": "m#7", "path": "manual.pdf", "page": 7, "label": 2, "thumbnail": None,
    }  # fmt: skip
    assert [query["instruction"] for query in queries] == ["", "Judge by the notes."]
    assert queries[0]["rejected"] == [
        {"doc_id": "x", "reason": "empty_document", "detail": "", "path": "empty.txt", "page": None}
    ]
    with Image.open(queries[1]["results"][0]["thumbnail"]) as image:
        assert (image.format, image.size) == ("JPEG", (480, 240))
    assert len(list(folder.iterdir())) == 1


def _refused(*arguments: str) -> str:
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    return done.stderr


def test_what_is_not_there_is_named(lake: Lake) -> None:
    done = CliRunner().invoke(main, ["show", "r9", "lamp"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"no run 'r9' in {lake.paths.output}; published: r0, r1" in done.stderr
    assert "has the id or all the words 'no such thing'" in _refused("show", "no such thing")


def test_runs_are_listed_latest_first_with_what_became_of_them(lake: Lake) -> None:
    runs = Path(lake.paths.output) / "runs"
    for name, files in {
        "failed": {"audit.json": {"passed": False}, "started.json": {"started_at": "2026-01-07T00:00:00+00:00"}},
        "begun": {"started.json": {"started_at": "2026-01-06T00:00:00+00:00"}},
    }.items():
        (runs / name).mkdir()
        for file, content in files.items():
            (runs / name / file).write_text(json.dumps(content))
    (runs / "r1" / "evaluation.json").write_text(json.dumps({"overall": {"reranked": {"nDCG@10": 0.65}}}))
    lines = _call("runs").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["failed", "begun", "*", "r0"]
    assert lines[1].split()[3:5] == ["audit", "failed"]
    row: dict[str, Any] = json.loads(_call("runs", "--json").stdout)["runs"][2]
    assert row == {
        "run_id": "r1", "when": "2026-01-05T10:11:12+00:00", "state": "published", "candidates": 5, "scored": 4,
        "reused": 0, "rejected": None, "nDCG@10": 0.65, "model": "/models/own", "current": True,
    }  # fmt: skip
    assert lines[3].split() == [
        "*",
        "r1",
        "2026-01-05",
        "10:11",
        "published",
        "5",
        "4",
        "0",
        "–",
        "0.650",
        "/models/own",
    ]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("manifest.json", "{"),
        ("manifest.json", '{"run_id": "r1", "checksum": "0"}'),
        ("manifest.json", '{"published_at": "yesterday"}'),
        ("manifest.json", '{"counts": 3}'),
        ("audit.json", "{}"),
        ("evaluation.json", '{"overall": 1}'),
        ("config.yaml", "model: [\n"),
    ],
)
def test_a_damaged_run_is_listed_as_that_beside_the_others(
    lake: Lake, file: str, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(lake.paths.output) / "runs" / "damaged"
    folder.mkdir()
    (folder / file).write_text(content)
    result = _call("runs", "--json")
    rows: list[dict[str, Any]] = json.loads(result.stdout)["runs"]
    assert {row["run_id"]: row["state"] for row in rows} == {
        "damaged": "damaged", "r0": "published", "r1": "published",
    }  # fmt: skip
    assert rows[0].keys() == rows[1].keys()
    assert caplog.messages[0].startswith("run damaged: ")
    assert "r1  " in _call("runs").stdout


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"run_id": 3}', b'{"run_id": "r1", "checksum": "0"}'])
def test_runs_are_listed_where_the_pointer_is_damaged(
    lake: Lake, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    Path(lake.paths.current).write_bytes(content)
    shown, result = _call("runs", status=1), _call("runs", "--json", status=1)
    summary = json.loads(result.stdout)
    assert [run["run_id"] for run in summary["runs"] if not run["current"]] == ["r1", "r0"]
    assert summary["current"] is None
    assert summary["damaged"] in caplog.messages
    assert "current.json" in summary["damaged"]
    assert "delete it, and run `lakerank rerank --run-id RUN`" in summary["damaged"]
    assert "r1  " in shown.stdout
    Path(lake.paths.current).unlink()
    assert "damaged" not in json.loads(_call("runs", "--json").stdout)


def test_runs_are_in_the_order_of_their_publication_whatever_the_clock_said(lake: Lake) -> None:
    for run_id, number, day in (("r0", 3, 1), ("r1", 2, 5)):
        manifest = {"publication": number, "published_at": f"2026-01-0{day}T00:00:00+00:00"}
        Path(RunPaths(lake.paths.output, run_id).manifest).write_text(json.dumps(manifest))
    assert [run["run_id"] for run in json.loads(_call("runs", "--json").stdout)["runs"]] == ["r0", "r1"]


@pytest.mark.parametrize("content", [b"\xff\xfe: [", b"- a list\n", b"a: [\n"], ids=["bytes", "a list", "half"])
def test_a_damaged_config_of_a_run_is_named(lake: Lake, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    config = RunPaths(lake.paths.output, "r0").config
    Path(config).write_bytes(content)
    done = _call("runs")
    assert [line.split()[-9:-7] for line in done.stdout.splitlines() if "damaged" in line] == [["r0", "–"]]
    assert f"{config}: " in caplog.messages[0]


def test_the_output_of_a_search_is_enough(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config names the folder as the search did, from another one; one at hand is of another lake."""
    output = Path(lake.paths.output)
    tables = {name: getattr(lake.tables, name) for name in ("documents", "queries", "candidates")}
    (output / "lakerank.yaml").write_text(json.dumps({"lake": {**tables, "output": "relative"}}))
    for at_hand in (json.dumps({"lake": {**tables, "output": "elsewhere"}}), None):
        Path("lakerank.yaml").write_text(at_hand) if at_hand else Path("lakerank.yaml").unlink()
        assert "why does the lamp blink  (q2)" in _call("show", "--output", str(output)).stdout
        listed = json.loads(_call("runs", "--output", "out", "--json").stdout)
        assert [run["run_id"] for run in listed["runs"]] == ["r1", "r0"]


def test_the_passage_with_the_words_of_the_query_is_shown(lake: Lake) -> None:
    text = f"Hold. {LONG}. Then reset the router by the red button. {LONG}"
    rows = [{"doc_id": "m#7", "text": text}, {"doc_id": "n", "text": "The lamp blinks."}]
    write(Path(lake.tables.documents), rows, schemas.DOCUMENTS)
    write(Path(lake.tables.queries), [{"query_id": "q1", "text": "How to RESET the router"}], schemas.QUERIES)
    assert "m#7  … Then reset the router by" in _call("show", "q1").stdout
    first = json.loads(_call("show", "q1", "--json").stdout)["queries"][0]["results"][0]
    assert first["text"].startswith("… Then reset the router by the red button. word")


@pytest.mark.parametrize(
    ("text", "query", "begins"),
    [
        (f"Reset it. {LONG}", "reset", "Reset it."),
        (LONG, "lamp", "word word"),
        (f"{LONG}the {LONG}. A lamp, the last. {LONG}the lamp", "the LAMP", "… A lamp, the last."),
        ("あ" * 300 + "。赤いランプが点滅する。" + "い" * 300, "ランプの点滅", "… 赤いランプが点滅する。"),
        ("東の京の都の" + "い" * 300 + "。東京都に雪。", "東京都", "… 東京都に雪。"),
        ("крот " * 90 + "Лампа мигает", "лампа мигает", "… Лампа мигает"),
    ],
)
def test_a_passage_is_where_most_words_are(text: str, query: str, begins: str) -> None:
    assert passage(text, query).startswith(begins)


@given(st.text(), st.text())
def test_a_passage_is_a_piece_of_the_text(text: str, query: str) -> None:
    shown = passage(text, query)
    assert len(shown) <= SNIPPET
    assert shown in text or shown.removeprefix("… ") in text
