"""`lakerank init` and `lakerank search`: from a folder and questions to a config, and to lists; again, what is new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from lakerank.cli import main
from lakerank.config import load_config

QUESTIONS = "how to reset the router\nwhy does the lamp blink\n\nwhere is the printer\n"
FILES = {
    "manuals/router.md": "# Router\n\nHold the button for five seconds to reset the router.",
    "manuals/lamp.html": "<html><body><p>The lamp does blink while the battery is charging.</p></body></html>",
    "notes.txt": "The router is in the cellar, the printer on the first floor.",
    "prices.csv": "id,text\np1,A lamp is 12 euros.\np2,A router is 40 euros.\n",
    "broken.bin": "\x00\x01",
}


@pytest.fixture
def folder(tmp_path: Path, no_session: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some files; commands are called beside their folder, where nothing has been fetched."""
    folder = tmp_path / "my files"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "questions.txt").write_text(QUESTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAKERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))  # no small lake needs it
    return folder


def _call(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == status, (done.output, done.exception)
    return done


def _search(checkpoint: Path, *arguments: str) -> dict[str, Any]:
    done = _call("search", "my files", "--queries", "questions.txt", "--model", str(checkpoint), "--json", *arguments)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def test_without_a_reranker_it_says_so_and_shows_the_first_stages_order(folder: Path) -> None:
    done = _call("search", "my files", "--queries", "questions.txt", "--top", "2")
    assert done.stdout.splitlines()[:3] == [
        "how to reset the router",
        "   1     –  manuals/router.md  # Router Hold the button for five seconds to reset the router.",
        done.stdout.splitlines()[2],
    ]
    (line,) = [line for line in done.stderr.splitlines() if "fetch" in line]
    assert "`lakerank fetch minilm-en`" in line
    assert "not read: 1 unsupported_format" in done.stdout
    listed = json.loads(_call("search", "--json").stdout)
    assert listed["queries"][0]["results"][0]["relevance"] is None
    assert not (folder / "lakerank-out").exists()


def test_lists_are_printed_for_people_and_show_has_more_of_them(folder: Path, tiny_checkpoint: Path) -> None:
    (folder / "long.txt").write_text("The printer prints. " * 300)
    options = ("--model", str(tiny_checkpoint), "--set", "source.chunk=1600")
    done = _call("search", "my files", "--queries", "questions.txt", *options)
    blocks = done.stdout.split("\n\n")
    assert [block.count("long.txt") for block in blocks[:3]] == [1, 1, 1], "a text in pieces is one result"
    assert [block.splitlines()[0] for block in blocks[:3]] == [line for line in QUESTIONS.splitlines() if line]
    ranks = [[line.split()[0] for line in block.splitlines()[1:]] for block in blocks[:3]]
    assert all(numbers == [str(rank) for rank in range(1, len(numbers) + 1)] for numbers in ranks)
    assert "pairs scored, 6 reused; `lakerank show` has more" in blocks[3], "two of the pieces have the same words"
    shown = _call("show", "lamp blink").stdout
    assert "why does the lamp blink  (q2)" in shown
    assert "was 1" in shown


def test_a_search_again_scores_only_what_is_new(folder: Path, tiny_checkpoint: Path) -> None:
    first = _search(tiny_checkpoint)
    assert (first["scored"] > 0, first["reused"]) == (True, 0)
    again = _search(tiny_checkpoint)
    assert (again["run_id"], again["scored"], again["reused"]) == (first["run_id"], 0, first["scored"])
    assert again["queries"] == first["queries"]
    (folder / "new.txt").write_text("How the router is reset: see the manual.")
    (folder / "manuals" / "router.md").write_text("The router has no button.")
    (folder / "notes.txt").unlink()
    changed = _search(tiny_checkpoint)
    assert changed["run_id"] != first["run_id"]
    paths = {result["path"] for query in changed["queries"] for result in query["results"]}
    assert "new.txt" in paths
    assert "notes.txt" not in paths
    before = {(query["query_id"], result["doc_id"]) for query in first["queries"] for result in query["results"]}
    after = {(query["query_id"], result["doc_id"]) for query in changed["queries"] for result in query["results"]}
    same = {pair for pair in before & after if pair[1] != "manuals/router.md"}
    assert changed["reused"] == len(same) > 0
    assert changed["scored"] == len(after) - len(same)


def test_queries_in_the_folder_are_no_documents(folder: Path, tiny_checkpoint: Path) -> None:
    shutil.move("questions.txt", folder / "questions.txt")
    done = _call("search", "my files", "--queries", "my files/questions.txt", "--model", str(tiny_checkpoint), "--json")
    paths = {result["path"] for query in json.loads(done.stdout)["queries"] for result in query["results"]}
    assert paths
    assert "questions.txt" not in paths


def test_init_writes_a_config_that_every_command_takes(folder: Path, tiny_checkpoint: Path) -> None:
    done = _call("init", "my files", "--queries", "questions.txt")
    assert "1 .csv" in done.stdout
    assert "1 not readable" in done.stdout
    config = load_config("lakerank.yaml")
    assert (config.source.folder, config.source.pdf_content, config.model.path) == ("my files", "text", "minilm-en")  # type: ignore[union-attr]
    assert (config.audit.max_reject_rate, config.lake.output) == (None, "lakerank-out")
    Path("lakerank.yaml").rename("first.yaml")
    _call("init", "my files", "--queries", "questions.txt", "--output", "a: #b")
    assert load_config("lakerank.yaml").lake.documents == "a: #b/tables/documents"
    Path("first.yaml").rename("lakerank.yaml")
    again = _call("init", "my files", "--queries", "questions.txt", status=2)
    assert "lakerank.yaml is here already" in again.stderr
    text = Path("lakerank.yaml").read_text().replace("minilm-en    #", f"{tiny_checkpoint}    #")
    Path("lakerank.yaml").write_text(text)
    tables = json.loads(_call("ingest").stdout)["tables"]
    assert [tables[name]["rows"] for name in ("documents", "queries")] == [5, 3]
    _call("candidates")
    assert json.loads(_call("rerank").stdout)["published"]
    assert "how to reset the router  (q1)" in _call("show").stdout
    assert json.loads(_call("search", "--json").stdout)["reused"] > 0


def test_init_says_what_the_model_cannot_read(folder: Path) -> None:
    Image.new("RGB", (200, 100), "white").save(folder / "photo.jpg")
    Path("questions.txt").write_text("где принтер\nкак сбросить маршрутизатор\n")
    notes = json.loads(_call("init", "my files", "--queries", "questions.txt", "--json").stdout)["notes"]
    assert [note.partition(":")[0] for note in notes] == [
        "image files",
        "the queries are not in Latin letters",
    ]


@pytest.mark.parametrize("command", ["init", "search"])
def test_what_is_missing_is_listed_at_once_and_the_lake_is_never_in_the_folder(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = _call(command, "no", "--queries", "~/none.txt", status=2)
    assert f"no: there is no such folder (looked for {Path.cwd() / 'no'})" in wrong.stderr
    assert f"there is no such file (looked for {Path.home() / 'none.txt'})" in wrong.stderr
    inside = _call(command, "my files", "--queries", "questions.txt", "--output", "my files/lake", status=2)
    assert "is inside my files" in inside.stderr
    monkeypatch.chdir(folder)
    _call(command, ".", "--queries", "../questions.txt")
    assert (folder.parent / "lakerank-out").exists() or "lakerank-out" in (folder / "lakerank.yaml").read_text()
    assert not (folder / "lakerank-out").exists()


def test_rows_of_two_tables_with_the_same_ids_are_all_found(folder: Path, tiny_checkpoint: Path) -> None:
    (folder / "lamps.csv").write_text("id,text\np1,A green lamp.\np2,A blue lamp.\n")
    summary = _search(tiny_checkpoint)
    found = {result["doc_id"] for query in summary["queries"] for result in query["results"]}
    assert {f"{file}.csv#{name}" for file in ("lamps", "prices") for name in ("p1", "p2")} <= found
    assert not summary["rejected_by_reason"]


def test_a_model_that_is_not_there_leaves_nothing(folder: Path, tiny_checkpoint: Path) -> None:
    wrong = _call("search", "my files", "--queries", "questions.txt", "--model", "nosuch", status=1)
    assert "nosuch: neither a folder" in wrong.stderr
    assert not Path("lakerank-out").exists()
    first = _search(tiny_checkpoint)
    _call("search", "--model", "nosuch", status=1)
    assert json.loads(_call("search", "--json").stdout)["run_id"] == first["run_id"]


def test_files_without_text_are_named_in_words_of_search(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(7):
        Image.new("RGB", (20, 10), "white").save(folder / f"photo{number}.png")
    done = _call("search", "my files", "--queries", "questions.txt")
    (line,) = [line for line in done.stderr.splitlines() if "no text" in line]
    assert line.endswith(
        "7 documents have no text (photo0.png, photo1.png, photo2.png, photo3.png, photo4.png, …): "
        "minilm-en reads texts alone"
    )
    assert "all-pairs" not in caplog.text
    for name in ("manuals", "notes.txt", "prices.csv"):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    nothing = _call("search", "my files", "--queries", "questions.txt", status=1)
    assert "no document has a word of a query; without text, and so not searched: photo0.png" in nothing.stderr


def test_of_a_small_folder_everything_is_read_unless_a_depth_is_named(folder: Path, tiny_checkpoint: Path) -> None:
    Path("questions.txt").write_text("Refunds?\nresetting\n")
    assert _search(tiny_checkpoint)["ranked"] == 2 * 5
    assert "no document has a word" in _call("search", "--depth", "3", status=1).stderr
    for number in range(500):
        (folder / f"{number}.txt").write_text("Nothing about it.")
    _call("search", "--json", status=1)


def test_what_is_rejected_is_counted_and_a_failed_audit_is_the_exit_status(folder: Path, tiny_checkpoint: Path) -> None:
    (folder / "torn.png").write_bytes(Image.new("RGB", (20, 10)).tobytes())
    arguments = ("search", "my files", "--queries", "questions.txt", "--model", str(tiny_checkpoint))
    assert "not scored: 3 pairs image_unsupported_format" in _call(*arguments).stdout
    failed = _call(*arguments, "--set", "audit.max_reject_rate=0.01", status=3)
    assert "nothing is shown: an audit failed (reject rate, 3 of 18" in failed.stdout
    assert "lakerank show" not in failed.stdout
    assert "nothing is shown" not in _call("search").stdout, "the bound was for that search alone"


def test_a_file_is_no_folder_and_a_question_no_file(folder: Path) -> None:
    wrong = _call("search", "my files/notes.txt", "--queries", "where is the printer?" * 20, status=2)
    assert "my files/notes.txt: it is a file: name the folder that it is in" in wrong.stderr
    assert "write questions in a file, one a line" in wrong.stderr


def test_judgements_go_beside_the_tables_of_the_config_at_hand(folder: Path) -> None:
    _call("init", "my files", "--queries", "questions.txt")
    Path("judgements.qrels").write_text("q1 0 notes.txt 1\n")
    output = json.loads(_call("ingest", "judgements.qrels", "--as", "qrels").stdout)["output"]
    assert output == "lakerank-out/tables/qrels"
    assert "--output: name the folder" in _call("ingest", "my files/prices.csv", status=2).stderr


def test_a_sentence_in_a_long_text_is_found(folder: Path, minilm_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKERANK_CACHE", str(minilm_cache))
    about = "The meeting of the garden club spoke about roses, hedges and the colour of the new fence at length. "
    answer = "Refunds are paid within fourteen days of a return. "
    (folder / "minutes.txt").write_text(about * 7 + answer + about * 7)
    Path("questions.txt").write_text("how long does a refund take\n")
    done = json.loads(_call("search", "my files", "--queries", "questions.txt", "--json").stdout)
    best = done["queries"][0]["results"][0]
    assert best["path"] == "minutes.txt"
    assert best["relevance"] > 0.5
