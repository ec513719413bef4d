"""CSV and JSON files, and queries a line: rows of each table, and nothing that is dropped without a word."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from lakerank.errors import IngestError
from lakerank.ingest.records import csv_records


def content(table, *names):
    return [tuple(row[name] for name in names) for row in table.to_pylist()]


def test_a_question_a_line(write_files, run_ingest):
    source = write_files({"questions.txt": "\ufeffwho?\r\n\r\n  why 東京? \n"})
    _, table = run_ingest(source / "questions.txt", table="queries")
    assert content(table, "query_id", "text") == [("q1", "who?"), ("q3", "why 東京?")]


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("q.csv", 'query_id,text,language\na,who?,de\nb,"why, so",\n', [("a", "who?", "de"), ("b", "why, so", None)]),
        ("q.csv", "question\nwho?\nwhy?\n", [("q2", "who?", None), ("q3", "why?", None)]),
        ("q.tsv", 'id\tquery\n1\tsay "hi\n', [("1", 'say "hi', None)]),
        ("q.csv", "id;query\n1;a, b\n", [("1", "a, b", None)]),
        ("q.json", '[{"_id": 1, "text": "who?", "lang": "fr"}]', [("1", "who?", "fr")]),
        ("q.json", '{"query": "who?"}', [("q.json#item=1", "who?", None)]),
        ("q.jsonl", '{"_id": "1", "text": "who?", "language": "de", "metadata": {}}', [("1", "who?", "de")]),
    ],
)
def test_queries_of_tables(write_files, run_ingest, name, text, rows):
    done, table = run_ingest(write_files({name: text}) / name, table="queries")
    assert content(table, "query_id", "text", "language") == rows
    assert (done.written.rejected, done.remarks.fields_not_kept) == (0, {})


def test_queries_keep_their_instructions(write_files, run_ingest):
    text = '{"_id": "1", "text": "who?", "instruction": "Find a name."}\n{"_id": "2", "text": "why?"}\n'
    done, table = run_ingest(write_files({"q.jsonl": text}) / "q.jsonl", table="queries", keep=("instruction",))
    assert content(table, "query_id", "text", "instruction") == [("1", "who?", "Find a name."), ("2", "why?", None)]
    assert done.remarks.fields_not_kept == {}


def test_documents_of_a_table_have_its_columns(write_files, run_ingest, caplog):
    text = "doc_id,title,text,lang,page,url,price\nd1,T,body,de,3,http://x,\nd2,,only,,,,\n"
    with caplog.at_level(logging.WARNING):
        done, table = run_ingest(write_files({"d.csv": text}))
    names = ("doc_id", "text", "title", "language", "page", "path")
    assert content(table, *names) == [
        ("d1", "T body", "T", "de", 3, "d.csv"),
        ("d2", "only", None, None, None, "d.csv"),
    ]
    assert done.summary()["fields_not_kept"] == {"url": 1}
    assert [record.message for record in caplog.records] == ["fields not kept: url; --keep FIELD keeps one as a column"]


def test_a_table_without_texts_has_a_row_of_all_its_fields(write_files, run_ingest):
    _, table = run_ingest(write_files({"prices.csv": "name,price\napple,3\npear,\n"}))
    expected = [("prices.csv#row=2", "name: apple\nprice: 3"), ("prices.csv#row=3", "name: pear")]
    assert content(table, "doc_id", "text") == expected


def test_a_json_file_of_no_records_is_a_text(write_files, run_ingest):
    _, table = run_ingest(write_files({"package.json": '{"name": "x"}', "list.json": "[1, 2]"}))
    assert content(table, "doc_id", "text") == [("list.json", "[1, 2]"), ("package.json", '{"name": "x"}')]


def test_kept_fields_are_not_reported(write_files, run_ingest):
    line = json.dumps({"id": "1", "text": "t", "url": "u", "tags": ["a"], "empty": None})
    done, table = run_ingest(write_files({"a.jsonl": line}), keep=("tags", "title"))
    assert content(table, "tags", "title") == [('["a"]', None)]
    assert done.remarks.fields_not_kept == {"url": 1}


def test_duplicate_ids_are_counted_and_the_first_named_with_their_files(write_files, run_ingest, caplog):
    lines = "".join(f'{{"id": "{n}", "text": "t"}}\n' for n in range(1, 6))
    source = write_files(
        {"a.jsonl": lines + '{"id": "9", "text": "t"}\n', "b.csv": "id,text\n1,t\n1,t\n2,t\n3,t\n4,t\n"}
    )
    done, _ = run_ingest(source)
    assert done.summary()["duplicates"] == 5
    (message,) = [record.message for record in caplog.records if "another row" in record.message]
    assert message.endswith(": 1 in a.jsonl, b.csv; 2 in a.jsonl, b.csv; 3 in a.jsonl, b.csv")


def test_pairs_given_twice_are_named(write_files, run_ingest, caplog):
    run_ingest(write_files({"c.csv": "query_id,doc_id,score\nq,d,2\nq,e,1\nq,d,1\n"}), table="candidates")
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert warning.message.endswith(": q d")


def test_records_of_two_files_have_their_file_in_front_where_it_is_asked_for(write_files, run_ingest):
    files = {
        "a.csv": "id,text\n1,t\n,u\n",
        "b.json": '[{"id": 1, "text": "t"}]',
        "c/d.jsonl": '{"id": "1", "text": "t"}',
    }
    _, table = run_ingest(write_files(files), file_in_ids=True)
    assert content(table, "doc_id") == [("a.csv#1",), ("a.csv#row=3",), ("b.json#1",), ("c/d.jsonl#1",)]
    _, table = run_ingest(write_files(files) / "a.csv", file_in_ids=True)
    assert content(table, "doc_id") == [("1",), ("a.csv#row=3",)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "query_id,doc_id,score\nq,d,2.5\n"),
        ("c.jsonl", '{"query_id": "q", "doc_id": "d", "first_stage_score": 2.5}'),
    ],
)
def test_candidates(write_files, run_ingest, name, text):
    _, table = run_ingest(write_files({name: text}), table="candidates")
    assert content(table, "query_id", "doc_id", "first_stage_score", "first_stage_rank") == [("q", "d", 2.5, None)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", "query_id,doc_id,relevance\nq 1,d,2\n"),
        ("r.tsv", "query-id\tcorpus-id\tscore\nq 1\td\t2\n"),
        ("r.tsv", "q 1\td\t2\n"),
        ("r.txt", "q 1\t0\td\t2\n"),
        ("r.qrels", "q 1\t0\td\t2\n"),
    ],
)
@pytest.mark.parametrize("is_folder", [True, False])
def test_judgements(write_files, run_ingest, name, text, is_folder):
    source = write_files({name: text})
    _, table = run_ingest(source if is_folder else source / name, table="qrels")
    assert content(table, "query_id", "doc_id", "relevance") == [("q 1", "d", 2)]


@pytest.mark.parametrize(
    ("name", "text", "table", "hint"),
    [
        ("run.txt", "q Q0 d 1 2.5 tag\n", "documents", "candidates --run"),
        ("run.txt", "q Q0 d 1 2.5 tag\n", "queries", "candidates --run"),
        ("run.trec", "q Q0 d 1 2.5 tag\n", "candidates", "candidates --run"),
        ("qrels.txt", "q 0 d 1\n", "documents", "--as qrels"),
        ("d.csv", "doc_id,text\nd,x\n", "queries", "--as documents"),
        ("q.json", '[{"query_id": "q", "text": "x"}]', "documents", "--as queries"),
        ("d.parquet", "PAR1", "documents", "lake.documents"),
    ],
)
def test_a_file_of_another_table_stops_the_job_and_says_what_to_use(write_files, run_ingest, name, text, table, hint):
    with pytest.raises(IngestError, match=hint):
        run_ingest(write_files({name: text}) / name, table=table)


@pytest.mark.parametrize(
    ("text", "line"), [("a,b\n1,2\n1,2,3\n", 3), ("a,a\n1,2\n", 1)], ids=["too many fields", "a column twice"]
)
def test_rows_that_do_not_fit_their_names_are_rejects(text, line):
    *_, reject = csv_records("f.csv", text, None, "documents")
    assert reject.line == line


def test_encodings_that_were_guessed_are_said(write_files, run_ingest, caplog):
    text = "Съешь же ещё этих мягких французских булок, да выпей чаю."
    source = write_files({"a.txt": text.encode("cp1251"), "b.csv": f'id,text\n1,"{text}"\n'.encode("utf-16")})
    with caplog.at_level(logging.WARNING):
        done, table = run_ingest(source)
    assert table["text"].to_pylist() == [text, text]
    assert sum(done.remarks.encodings_guessed.values()) == 1
    assert "encodings guessed" in caplog.text
    done, table = run_ingest(source, encoding="cp1251")
    assert (table["text"].to_pylist(), done.remarks.encodings_guessed) == ([text, text], {})


def test_a_field_longer_than_a_page_is_read(write_files, run_ingest):
    _, table = run_ingest(write_files({"a.csv": f"id,text\n1,{'x' * 200_000}\n"}))
    assert len(table["text"][0].as_py()) == 200_000


def test_the_rejects_of_a_source_without_rows_are_listed(write_files, run_ingest, tmp_path):
    with pytest.raises(IngestError, match=r"nothing could be read .* \(1 rejects\)"):
        run_ingest(write_files({"a.csv": "id,text\n1,\n"}))
    [reject] = map(json.loads, Path(tmp_path / "lake/rejects/documents.jsonl").read_text().splitlines())
    assert (reject["line"], reject["fault"]) == (2, "field_missing")
