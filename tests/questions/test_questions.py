"""The text lake keeps its promises, and so do the rules that made it. Nothing is fetched here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lakerank import schemas
from lakerank.errors import StorageError
from lakerank_questions import manual
from lakerank_questions.__main__ import write_lake
from lakerank_questions.manual import Section, read_sections

ROOT = Path(__file__).parents[2]
LAKE = ROOT / "lib" / "lakerank_questions" / "lake"

PAGE = b"""<html><body>
<section id="first"><h2>What is a page?<a class="headerlink" href="#first">\xc2\xb6</a></h2>
<nav class="contents"><p>What is a page? How long is it?</p></nav>
<!-- nobody reads this -->
<p>A page   is a
sheet of paper, of two sides.</p>
<div class="highlight-python3"><div class="highlight"><pre>for page in book:
    read(page)
</pre></div></div>
<section id="inner"><h3>Sides</h3><p>See the next question.</p></section>
<section id="long"><h3>How long is it?</h3>%s</section>
</section></body></html>"""


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    return pq.read_table(folder / f"{table}.parquet").to_pylist()


def test_a_section_is_its_own_text_without_heading_contents_and_inner_sections() -> None:
    paragraphs = [f"{number} {'x' * 6} {'y' * 250} a b c d" for number in range(4)]
    page = PAGE % "".join(f"<p>{text}</p>" for text in paragraphs).encode()
    first, long = read_sections("faq/paper", page)
    assert first == Section(
        "faq/paper#first",
        "What is a page?",
        "A page is a sheet of paper, of two sides.\nfor page in book:\n    read(page)",
    )
    assert (long.name, long.text) == ("faq/paper#long", "\n".join(paragraphs[:2]))
    (_, whole) = read_sections("faq/paper", PAGE % f"<p>{'word ' * 300}</p><p>a b c d e f g</p>".encode())
    assert whole.text == ("word " * 300).strip()


def test_a_question_asked_twice_has_two_answers_and_only_the_faq_asks(tmp_path: Path) -> None:
    sections = [
        Section("faq/a#x", "What is it?", "one"),
        Section("faq/a#y", "A title", "two"),
        Section("faq/b#x", "What is it?", "three"),
        Section("howto/a#x", "Why?", "four"),
    ]
    write_lake(tmp_path, sections)
    assert [row["doc_id"] for row in rows(tmp_path, "documents")] == ["faq/a#x", "faq/a#y", "faq/b#x", "howto/a#x"]
    assert rows(tmp_path, "queries") == [{"query_id": "q001", "text": "What is it?"}]
    assert [(row["query_id"], row["doc_id"]) for row in rows(tmp_path, "qrels")] == [
        ("q001", "faq/a#x"),
        ("q001", "faq/b#x"),
    ]


def test_another_package_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"{manual.PACKAGE}_{manual.VERSION}_all.deb").write_bytes(b"other")
    with pytest.raises(StorageError, match="SHA-256"):
        manual.fetch(tmp_path)


def test_the_lake_is_whole_and_no_answer_holds_its_question() -> None:
    for table in ("documents", "queries", "qrels"):
        read = pq.read_schema(LAKE / f"{table}.parquet")
        required = [field for field in getattr(schemas, table.upper()) if field.name in read.names]
        assert all(read.field(field.name).type == field.type for field in required)
    documents = {row["doc_id"]: row["text"] for row in rows(LAKE, "documents")}
    queries = {row["query_id"]: row["text"] for row in rows(LAKE, "queries")}
    qrels = rows(LAKE, "qrels")
    assert (len(documents), len(queries), len(qrels)) == (999, 167, 168)
    assert {row["query_id"] for row in qrels} == queries.keys()
    assert not [row for row in qrels if queries[row["query_id"]].lower() in documents[row["doc_id"]].lower()]
    texts = [text.lower() for text in documents.values()]
    assert max(sum(query.lower() in text for query in queries.values()) for text in texts) == 1  # no table of contents
    assert sum(file.stat().st_size for file in LAKE.iterdir()) < 200_000


@pytest.mark.nightly
@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_make_demo_text_ranks_answers_higher_than_bm25(tmp_path: Path, minilm_cache: Path) -> None:
    """The target itself, on eight of the questions, in a folder that holds what it needs."""
    for name in ("conf", "jobs", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    lake = tmp_path / "lib" / "lakerank_questions" / "lake"
    shutil.copytree(LAKE, lake)
    questions = pq.read_table(LAKE / "queries.parquet")
    pq.write_table(questions.take(list(range(15, len(questions), 20))), lake / "queries.parquet")
    command = ["make", "--no-print-directory", "demo-text", "setup=:", f"python={sys.executable}"]
    environment = os.environ | {"LAKERANK_CACHE": str(minilm_cache)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["queries"] == 8
    assert summary["reranked"]["nDCG@10"] > summary["first_stage"]["nDCG@10"] > summary["chance"]["nDCG@10"]
    assert re.search(r"95 % intervals: first .* reranked .* change", done.stdout)
    assert (tmp_path / summary["report"]).is_file()
