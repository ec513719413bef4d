"""Bad lines and rows of every layout: listed with file, line and reason; all others are read."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.errors import ConfigError, IngestError, StorageError


def spoil(path, number, line):
    """Put a line in, before line `number`."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(number - 1, line + b"\n")
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("layout", "file", "line", "table", "fault"),
    [
        ("beir", "scifact/corpus.jsonl", b"{", "documents", "json_invalid"),
        ("beir", "scifact/corpus.jsonl", b'{"text": "no id"}', "documents", "field_missing"),
        ("beir", "scifact/corpus.jsonl", b'{"_id": "x", "text": 5}', "documents", "field_invalid"),
        ("beir", "scifact/corpus.jsonl", b'{"_id": "\xff"}', "documents", "text_undecodable"),
        ("beir", "scifact/queries.jsonl", b"[]", "queries", "json_invalid"),
        ("beir", "scifact/qrels/test.tsv", b"1\td1", "qrels", "field_missing"),
        ("beir", "scifact/qrels/test.tsv", b"1\td1\tmuch", "qrels", "field_invalid"),
        ("beir", "scifact/qrels/test.tsv", b"1\td1\t0.5", "qrels", "field_invalid"),
        ("miracl", "miracl-v1.0-de/topics/topics.miracl-v1.0-de-dev.tsv", b"alone", "queries", "field_missing"),
        ("miracl", "miracl-v1.0-de/qrels/qrels.miracl-v1.0-de-dev.tsv", b"9#0 Q0 7#2", "qrels", "field_missing"),
        ("mkqa", "qa_data/de.jsonl", b'{"id": "9", "question": "q", "answers": "a"}', "queries", "field_invalid"),
        ("mbeir", "cand_pool/local/mbeir_oven_task6_cand_pool.jsonl", b'{"did": "5:9"}', "documents", "field_missing"),
        (
            "mbeir",
            "cand_pool/local/mbeir_visualnews_task0_cand_pool.jsonl",
            b'{"did": "0:9", "img_path": "mbeir_images/gone.jpg"}',
            "documents",
            "image_not_found",
        ),
        (
            "mbeir",
            "cand_pool/local/mbeir_visualnews_task0_cand_pool.jsonl",
            b'{"did": "0:9", "img_path": "../secret.jpg"}',
            "documents",
            "image_outside_source",
        ),
        ("winoground", "data/examples.jsonl", b'{"id": 9, "caption_0": "one"}', "documents", "field_missing"),
    ],
)
def test_a_bad_line_is_listed_and_the_rest_is_read(publish, ingested, layout, file, line, table, fault):
    folder = publish(layout)
    whole = ingested(folder).table(table)
    spoil(folder / file, 2, line)
    lake = ingested(folder)
    assert lake.table(table) == whole
    assert [(reject["path"], reject["line"], reject["fault"]) for reject in lake.rejects(table)] == [(file, 2, fault)]
    assert lake.done.rejected_by_fault[fault] >= 1
    assert lake.done.rejects[table].endswith(f"rejects/{table}.jsonl")


def test_a_bad_query_of_mbeir_has_no_instruction(publish, ingested):
    folder = publish("mbeir")
    path = folder / "query" / "test" / "mbeir_webqa_task1_test.jsonl"
    record = json.loads(path.read_text()) | {"query_modality": "sound"}
    path.write_text(json.dumps(record) + "\n")
    lake = ingested(folder)
    assert "2:77" not in lake.by_id("queries")
    [reject] = lake.rejects("queries")
    assert reject["detail"] == "no instruction for sound → text"


def test_a_winoground_image_that_is_not_in_the_archive(publish, ingested):
    folder = publish("winoground")
    path = folder / "data" / "examples.jsonl"
    path.write_text(path.read_text().replace("ex_1_img_0", "ex_9_img_9"))
    lake = ingested(folder)
    assert "1:i0" not in lake.by_id("documents")
    assert len(lake.by_id("documents")) == 7
    assert [reject["fault"] for reject in lake.rejects("documents")] == ["image_not_found"]


@pytest.mark.parametrize(
    ("layout", "file", "message"),
    [
        ("mldr", "mldr-v1.0-de/corpus.jsonl.gz", "mldr-v1.0-de/corpus.jsonl.gz: cannot be read"),
        ("winoground", "data/images.zip", "data/images.zip: not a whole zip archive"),
        ("vidore_v2", "esg_reports_v2/corpus/test-00000-of-00001.parquet", "check that it is a whole Parquet file"),
    ],
)
def test_a_file_that_was_cut_short_stops_the_job_and_is_named(publish, ingested, layout, file, message):
    folder = publish(layout)
    path = folder / file
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StorageError, match=message):
        ingested(folder, layout=layout)


def test_a_judged_query_that_is_not_there(publish, ingested):
    folder = publish("beir") / "scifact"
    spoil(folder / "qrels" / "test.tsv", 2, b"404\td1\t1")
    lake = ingested(folder)
    assert ("scifact/404", "scifact/d1") not in lake.qrels()
    [reject] = lake.rejects("qrels")
    assert (reject["fault"], reject["path"]) == ("query_not_found", "scifact")


def test_a_page_without_its_image(publish, ingested):
    folder = publish("vidore_v2")
    path = folder / "esg_reports_v2" / "corpus" / "test-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1]["image"]["bytes"] = None
    pq.write_table(pa.Table.from_pylist(rows), path)
    lake = ingested(folder)
    assert sorted(lake.by_id("documents")) == ["esg_reports_v2/0", "esg_reports_v2/2"]
    [reject] = lake.rejects("documents")
    assert (reject["fault"], reject["line"]) == ("field_missing", 2)


def test_a_text_of_parquet_that_is_not_utf8(publish, ingested):
    folder = publish("coir")
    path = folder / "cosqa-queries-corpus" / "data" / "corpus-00000-of-00002.parquet"
    raw = pa.array([b"fine", b"\xff\xfe"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())  # as writers do that check nothing
    pq.write_table(pa.table({"_id": ["d0", "d1"], "title": ["", ""], "text": text}), path)
    lake = ingested(folder)
    assert [doc_id for doc_id in lake.by_id("documents") if doc_id.startswith("cosqa/")] == ["cosqa/d0", "cosqa/d2"]
    [reject] = lake.rejects("documents")
    assert (reject["fault"], reject["line"]) == ("text_undecodable", 2)


def test_a_table_without_a_column_is_named(publish, ingested):
    folder = publish("vidore_v3")
    path = folder / "vidore_v3_energy" / "qrels" / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["score"]), path)
    with pytest.raises(Exception, match="no column 'score' \\(found: query_id, corpus_id, content_type\\)"):
        ingested(folder)


def test_rejects_of_an_earlier_ingestion_go(publish, ingested):
    folder = publish("beir")
    corpus = folder / "scifact" / "corpus.jsonl"
    whole = corpus.read_bytes()
    spoil(corpus, 1, b"{")
    assert ingested(folder).rejects("documents")
    corpus.write_bytes(whole)
    assert ingested(folder).rejects("documents") == []


def test_tables_that_would_be_empty_stop_the_job_and_earlier_ones_stay(publish, ingested):
    folder = publish("beir") / "scifact"
    earlier = ingested(folder)
    tables = ("documents", "queries", "candidates", "qrels")
    before = {name: earlier.table(name) for name in tables}
    qrels = folder / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text().replace("\t", " "))
    with pytest.raises(IngestError, match=r"qrels: nothing could be read .*\n  qrels/test.tsv, line 1: field_missing"):
        ingested(folder)
    assert {name: earlier.table(name) for name in tables} == before


def test_a_query_among_the_documents_is_no_candidate_of_itself(publish, ingested, tmp_path):
    folder = publish("beir") / "scifact"
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.write((folder / "queries.jsonl").read_text())
    pairs = {(row["query_id"], row["doc_id"]) for row in ingested(folder).table("candidates")}
    assert pairs
    assert not any(query_id == doc_id for query_id, doc_id in pairs)
    (tmp_path / "run").write_text("1 Q0 1 1 9 x\n1 Q0 d1 2 8 x\n1 Q0 d2 3 7 x\n1 Q0 d3 4 6 x\n")
    rows = ingested(folder, runs=(str(tmp_path / "run"),), depth=2).table("candidates")
    assert [(row["doc_id"], row["first_stage_rank"]) for row in rows] == [("scifact/d1", 1), ("scifact/d2", 2)]


def test_a_single_dataset_may_keep_its_own_ids(publish, ingested):
    folder = publish("beir")
    lake = ingested(folder / "scifact", plain_ids=True)
    tables = ("documents", "queries", "candidates", "qrels")
    ids = {row[name] for table in tables for row in lake.table(table) for name in ("query_id", "doc_id") if name in row}
    assert {"1", "d1"} <= ids
    assert not any("/" in row_id for row_id in ids)
    with pytest.raises(ConfigError, match="--plain-ids"):
        ingested(folder, plain_ids=True)
