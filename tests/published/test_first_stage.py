"""First stages: run files in all their variety, BM25 where there is text, whole pools where they are small."""

from __future__ import annotations

import gzip
import json
import unicodedata

import pytest

from lakerank.errors import ConfigError, StorageError

RUN = "1 Q0 d2 1 9.5 bm25\n1 Q0 d3 2 11 bm25\n1 Q0 d1 3 2e-1 bm25\n2 Q0 d2 1 3 bm25\n"


def rows(lake, query):
    result = [row for row in lake.table("candidates") if row["query_id"] == query]
    return [(row["doc_id"], row["first_stage_score"], row["first_stage_rank"]) for row in result]


def test_a_run_is_ordered_by_score_and_cut(publish, ingested, tmp_path):
    (tmp_path / "run.txt").write_text(RUN)
    lake = ingested(publish("beir") / "scifact", runs=(str(tmp_path / "run.txt"),), depth=2)
    assert rows(lake, "scifact/1") == [("scifact/d3", 11.0, 1), ("scifact/d2", 9.5, 2)]
    assert rows(lake, "scifact/2") == [("scifact/d2", 3.0, 1)]
    assert lake.done.first_stage == {"run": 1}


def test_a_run_may_be_gzipped_and_use_the_lakes_own_ids(publish, ingested, tmp_path):
    content = RUN.replace("1 Q0 d", "scifact/1 Q0 scifact/d").replace("2 Q0 d", "scifact/2 Q0 scifact/d")
    (tmp_path / "run.gz").write_bytes(gzip.compress(content.encode()))
    lake = ingested(publish("beir") / "scifact", runs=(str(tmp_path / "run.gz"),))
    assert [doc for doc, _, _ in rows(lake, "scifact/1")] == ["scifact/d3", "scifact/d2", "scifact/d1"]


def test_a_run_for_one_part_leaves_bm25_to_the_others(publish, ingested, tmp_path):
    (tmp_path / "run.txt").write_text(RUN)
    lake = ingested(publish("beir"), runs=(f"scifact={tmp_path / 'run.txt'}",))
    assert lake.done.first_stage == {"bm25": 2, "run": 1}
    assert rows(lake, "scifact/2") == [("scifact/d2", 3.0, 1)]


def test_a_run_for_each_part_by_name_and_by_language(publish, ingested, tmp_path):
    for language in ("de", "th"):
        (tmp_path / f"run-{language}.txt").write_text("9#0 Q0 7#2 1 1.5 x\n")
        (tmp_path / f"run-miracl-{language}.txt").write_text("9#0 Q0 7#1 1 1.5 x\n")
    folder = publish("miracl")
    lake = ingested(folder, runs=(str(tmp_path / "run-{language}.txt"),))
    assert lake.candidates() == {f"miracl-{k}/9#0": [f"miracl-{k}/7#2"] for k in ("de", "th")}
    lake = ingested(folder, runs=(str(tmp_path / "run-{part}.txt"),))
    assert lake.candidates() == {f"miracl-{k}/9#0": [f"miracl-{k}/7#1"] for k in ("de", "th")}


def test_mbeir_runs_have_a_task_number_and_one_file_serves_all_parts(publish, ingested, tmp_path):
    lines = [f"{k}:77 Q0 {k}:2 1 0.5 uniir 0\n{k}:77 Q0 {k}:1 2 0.4 uniir 0\n" for k in (0, 2, 3, 9, 4, 5, 8, 6)]
    (tmp_path / "run.txt").write_text("".join(lines))
    lake = ingested(publish("mbeir"), runs=(str(tmp_path / "run.txt"),), depth=1, all_documents=False)
    assert lake.candidates() == {f"{k}:77": [f"{k}:2"] for k in range(10) if k not in (1, 7)}
    assert sorted(lake.by_id("documents")) == sorted(f"{k}:2" for k in range(10) if k not in (1, 7))


def test_documents_can_be_those_that_are_candidates(publish, ingested):
    lake = ingested(publish("beir"), all_documents=False, depth=1)
    expected = {doc for docs in lake.candidates().values() for doc in docs}
    assert set(lake.by_id("documents")) == expected
    assert len(expected) == 4


def test_faulty_lines_of_a_run_are_rejects_and_other_queries_are_passed_over(publish, ingested, tmp_path):
    lines = [b"1 Q0 d1 1 5 x", b"1 Q0 d1", b"1 Q0 d2 1 NaN x", b"99 Q0 d1 1 5 x", b"\xff Q0 d1 1 5 x", b""]
    (tmp_path / "run.txt").write_bytes(b"\n".join(lines))
    lake = ingested(publish("beir") / "scifact", runs=(str(tmp_path / "run.txt"),))
    assert lake.candidates() == {"scifact/1": ["scifact/d1"]}
    result = [(reject["path"], reject["fault"], reject["line"]) for reject in lake.rejects("candidates")]
    assert result == [
        ("run.txt", "field_missing", 2),
        ("run.txt", "field_invalid", 3),
        ("run.txt", "text_undecodable", 5),
    ]


def test_a_faulty_line_between_two_lines_of_a_query_does_not_part_them(publish, ingested, tmp_path):
    (tmp_path / "run.txt").write_text("1 Q0 d1 1 5 x\n1 Q0 d2\n1 Q0 d3 3 4 x\n")
    lake = ingested(publish("beir") / "scifact", runs=(str(tmp_path / "run.txt"),))
    assert lake.candidates() == {"scifact/1": ["scifact/d1", "scifact/d3"]}
    assert [reject["line"] for reject in lake.rejects("candidates")] == [2]


def test_a_run_whose_queries_are_scattered_is_refused(publish, ingested, tmp_path):
    (tmp_path / "run.txt").write_text("1 Q0 d1 1 5 x\n2 Q0 d1 1 5 x\n1 Q0 d2 2 4 x\n")
    with pytest.raises(StorageError, match=r"line 3: query 1 again.*sort the run"):
        ingested(publish("beir") / "scifact", runs=(str(tmp_path / "run.txt"),))


def test_a_run_of_something_else_is_refused(publish, ingested, tmp_path):
    (tmp_path / "run.txt").write_text("PLAIN-1 Q0 MED-1 1 5 x\n")
    with pytest.raises(StorageError, match='no line is of a query of scifact, whose ids are like "1"'):
        ingested(publish("beir") / "scifact", runs=(str(tmp_path / "run.txt"),))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (("run.txt",), "which part does it belong to.*cqadupstack/android, cqadupstack/unix, scifact"),
        (("scifact=a.txt", "scifact=b.txt"), "scifact has two run files"),
    ],
)
def test_it_must_be_plain_which_part_a_run_is_of(publish, ingested, runs, message):
    with pytest.raises(ConfigError, match=message):
        ingested(publish("beir"), runs=runs)


def test_a_large_pool_of_images_needs_a_run(publish, ingested, tmp_path):
    folder = publish("vidore_v1")
    with pytest.raises(
        ConfigError, match=r"docvqa_test_subsampled: its pool cannot be searched.*--run docvqa"
    ) as caught:
        ingested(folder, all_pairs=2)
    assert len(caught.value.faults) == 1, "the other pool is small"
    assert not (tmp_path / "lake").exists(), "nothing was written"
    assert ingested(folder, all_pairs=4).done.first_stage == {"all": 2}


def test_the_output_must_not_lie_inside_the_source(publish, ingested, tmp_path):
    publish("beir")
    with pytest.raises(ConfigError, match="is inside the source"):
        ingested(tmp_path)


def test_queries_in_decomposed_letters_find_documents_that_happen_to_have_their_ids(ingested, tmp_path):
    folder = tmp_path / "published" / "toy"
    (folder / "qrels").mkdir(parents=True)
    texts = {"fr": ("le résumé du café", "résumé"), "vi": ("tiếng Việt", "Việt"), "x": ("other words", "other")}
    for name, side in (("corpus", 0), ("queries", 1)):
        lines = [{"_id": i, "text": unicodedata.normalize(("NFC", "NFD")[side], t[side])} for i, t in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nfr\tfr\t1\nvi\tvi\t1\n")
    assert ingested(folder).candidates() == {f"toy/{name}": [f"toy/{name}"] for name in ("fr", "vi")}
