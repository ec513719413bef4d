"""Each layout, in its publisher's own files, into tables: what is where, under which ids, judged how."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lakerank.errors import StorageError
from lakerank.lake.storage import Storage, join
from lakerank_datasets.benchmark_lake import LayoutOptions, ingest_benchmark
from lakerank_datasets.layouts import LAYOUTS
from lakerank_datasets.layouts.mbeir import format_text

#: Documents, queries, candidates and judgements of each benchmark in miniature.
COUNTS = {
    "beir": (9, 4, 9, 5),
    "coir": (6, 2, 6, 2),
    "miracl": (6, 2, 6, 4),
    "mldr": (6, 2, 6, 2),
    "mkqa": (15, 6, 86, 86),
    "vidore_v1": (6, 5, 16, 5),
    "vidore_v2": (3, 3, 9, 4),
    "vidore_v3": (3, 2, 3, 3),
    "mbeir": (56, 8, 32, 8),
    "winoground": (8, 8, 16, 16),
}


def test_every_layout_has_a_miniature():
    assert sorted(COUNTS) == sorted(LAYOUTS)


@pytest.mark.parametrize("layout", COUNTS)
def test_every_layout_is_recognised_and_read_whole(publish, ingested, layout):
    lake = ingested(publish(layout))
    assert lake.done.layout == layout
    names = ("documents", "queries", "candidates", "qrels")
    assert tuple(len(lake.table(name)) for name in names) == COUNTS[layout]
    assert tuple(lake.done.tables[name].rows for name in names) == COUNTS[layout]
    assert lake.done.rejected_by_fault == {}
    assert {row["benchmark"] for row in lake.table("queries")} == {layout}
    ids = lake.by_id("documents")
    assert {doc_id for docs in lake.candidates().values() for doc_id in docs} <= set(ids)
    assert {query_id for query_id, _ in lake.qrels()} <= set(lake.by_id("queries"))


def test_the_same_source_gives_the_same_bytes(publish, ingested):
    folder = publish("mkqa")
    first = {path.relative_to(path.parents[1]): path.read_bytes() for path in _parts(ingested(folder).folder)}
    again = {path.relative_to(path.parents[1]): path.read_bytes() for path in _parts(ingested(folder).folder)}
    assert first == again


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def test_beir_keeps_subsets_apart_and_reads_one_split(publish, ingested):
    lake = ingested(publish("beir"))
    queries = lake.by_id("queries")
    assert queries["scifact/1"] == {"text": "red apple", "benchmark": "beir", "dataset": "scifact"}
    assert (queries["cqadupstack/unix/7"]["dataset"], queries["cqadupstack/unix/7"]["subset"]) == (
        "cqadupstack",
        "unix",
    )
    assert "scifact/3" not in queries, "it is judged in another split alone"
    documents = lake.by_id("documents")
    assert documents["scifact/d1"]["text"] == "Apples A red apple lies on the table."
    assert documents["scifact/d2"]["text"] == "The locomotive pulls a red train."
    assert documents["scifact/d3"]["text"] == "Pears"
    assert lake.qrels()["scifact/1", "scifact/d1"] == 2
    assert lake.candidates()["scifact/1"] == ["scifact/d1", "scifact/d2"]
    assert lake.table("candidates")[-1]["first_stage_rank"] is not None


def test_beir_reads_one_dataset_by_itself_and_another_split(publish, ingested):
    lake = ingested(publish("beir") / "scifact", split="train")
    assert list(lake.by_id("queries")) == ["scifact/3"]
    assert lake.qrels() == {("scifact/3", "scifact/d3"): 1}


def test_beir_takes_qrels_from_the_repository_beside(publish, ingested):
    folder = publish("beir")
    (folder / "scifact" / "qrels").rename(folder / "scifact-qrels")
    assert ("scifact/2", "scifact/d2") in ingested(folder).qrels()


def test_coir_has_its_tasks_and_languages(publish, ingested):
    queries = ingested(publish("coir")).by_id("queries")
    assert queries["cosqa/q0"]["task"] == "text-to-code"
    result = queries["codesearchnet-go/q0"]
    assert (result["dataset"], result["subset"], result["task"]) == ("codesearchnet", "go", "code-to-text")
    assert len(queries) == 2, "queries of the train split are left out"


def test_miracl_ids_of_languages_do_not_meet(publish, ingested):
    lake = ingested(publish("miracl"))
    assert [row["language"] for row in lake.table("documents")] == ["de"] * 3 + ["th"] * 3
    assert lake.qrels()["miracl-th/9#0", "miracl-th/7#0"] == 1
    assert lake.candidates()["miracl-de/9#0"][0] == "miracl-de/7#0"
    assert lake.candidates()["miracl-th/9#0"][0] == "miracl-th/7#0", "Thai is searched without spaces"


def test_miracl_is_found_in_the_folders_of_its_two_repositories(publish, ingested):
    folder = publish("miracl")
    for name in ("miracl", "miracl-corpus"):
        (folder / name).mkdir()
    for path in [path for path in folder.iterdir() if "v1.0" in path.name]:
        path.rename(folder / ("miracl-corpus" if "corpus" in path.name else "miracl") / path.name)
    assert len(ingested(folder).table("documents")) == 6


def test_mldr_judgements_come_out_of_the_queries(publish, ingested):
    folder = publish("mldr")
    lake = ingested(folder)
    assert lake.qrels()["mldr-ja/q-ja-1", "mldr-ja/doc-ja-1"] == 1
    assert len(lake.by_id("documents")["mldr-de/doc-de-0"]["text"]) > 200
    lake = ingested(folder, split="train")
    judged = {doc: relevance for (query, doc), relevance in lake.qrels().items() if query == "mldr-de/q-de-2"}
    assert judged == {"mldr-de/doc-de-1": 1, "mldr-de/doc-de-0": 0}


def test_mkqa_candidates_are_judged_by_their_answers(publish, ingested):
    lake = ingested(publish("mkqa"))
    assert json.loads(lake.by_id("queries")["mkqa-de/0"]["answers"]) == ["Volvo", "Volvo Cars"]
    qrels = lake.qrels()
    assert set(qrels) == {(query, doc) for query, docs in lake.candidates().items() for doc in docs}
    assert ("mkqa-de/2", "mkqa/doc1") in qrels, "a query that no candidate answers is judged all the same"
    right = {pair for pair, relevance in qrels.items() if relevance}
    assert right == {
        ("mkqa-de/0", "mkqa/doc0"),
        ("mkqa-ja/0", "mkqa/doc0"),
        ("mkqa-de/1", "mkqa/doc2"),
        ("mkqa-ja/1", "mkqa/doc2"),
    }
    assert len(lake.table("documents")) == 15, "one pool for all languages"


def test_mkqa_counts_a_query_without_candidates(publish, ingested):
    folder = publish("mkqa")
    question = {"id": "8", "question": "自動車", "answers": ["Volvo"]}
    with (folder / "qa_data" / "ja.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(question) + "\n")
    lake = ingested(folder, all_documents=False)
    assert "mkqa-ja/8" not in lake.candidates()
    judged = {doc: relevance for (query, doc), relevance in lake.qrels().items() if query == "mkqa-ja/8"}
    assert judged == {"mkqa/doc0": 1}, "one document of the pool, for what it is worth"


def test_mkqa_original_leaves_out_what_cannot_be_searched_for(publish, ingested):
    folder = publish("mkqa")
    for path in (folder / "qa_data").iterdir():
        path.unlink()
    kinds = [("entity", "Saab", ["SAAB AB"]), ("binary", "yes", []), ("unanswerable", None, None)]
    records = [
        {
            "example_id": number,
            "queries": {"en": "cars", "de": "Autos"},
            "answers": {"en": [{"type": kind, "text": text, "aliases": aliases}], "de": []},
        }
        for number, (kind, text, aliases) in enumerate(kinds, start=5)
    ]
    (folder / "mkqa.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lake = ingested(folder)
    queries = lake.by_id("queries")
    assert len(queries) == 26, "one question, 26 languages"
    assert queries["mkqa-de/5"]["text"] == "Autos"
    assert json.loads(queries["mkqa-de/5"]["answers"]) == ["Saab", "SAAB AB"]


def test_vidore_v1_pages_and_questions_that_stand_twice(publish, ingested):
    lake = ingested(publish("vidore_v1"))
    name = "docvqa_test_subsampled"
    pages = [f"{name}/images/{page}.jpg" for page in "abcd"]
    assert [doc_id for doc_id in lake.by_id("documents") if doc_id.startswith(name)] == pages
    assert {query: row["text"] for query, row in lake.by_id("queries").items() if query.startswith(name)} == {
        f"{name}/q0": "what is red",
        f"{name}/q1": "what is green",
        f"{name}/q2": "what else is red",
    }
    assert lake.qrels()[f"{name}/q0", pages[3]] == 1, "the last row of a question says which page is right"
    assert lake.candidates()[f"{name}/q1"] == pages, "the whole pool"
    assert lake.table("candidates")[0]["first_stage_rank"] is None
    assert lake.by_id("documents")[pages[0]]["image"].startswith(b"\x89PNG")
    assert lake.done.tables["documents"].images == 6


def test_vidore_v2_languages_are_subsets_over_one_pool(publish, ingested):
    lake = ingested(publish("vidore_v2"))
    queries = lake.by_id("queries")
    assert [(row["subset"], row["language"]) for row in queries.values()] == [
        ("english", "english"),
        ("english", "english"),
        ("french", "french"),
    ]
    assert len(lake.qrels()) == 4
    assert lake.qrels()["esg_reports_v2/2", "esg_reports_v2/1"] == 2
    assert lake.done.rejected_by_fault == {}, "a judgement of another language's query is not missing"


def test_vidore_v3_is_searched_by_the_texts_of_its_pages(publish, ingested):
    lake = ingested(publish("vidore_v3"))
    assert lake.candidates()["vidore_v3_energy/0"] == ["vidore_v3_energy/0"]
    assert lake.candidates()["vidore_v3_energy/1"][0] == "vidore_v3_energy/1"
    document = lake.by_id("documents")["vidore_v3_energy/0"]
    assert "image" in document, "the page is ranked as an image"
    assert "text" not in document
    assert "subset" not in lake.by_id("queries")["vidore_v3_energy/0"], "there is one language"


def test_mbeir_has_eight_tasks_with_instructions(publish, ingested):
    lake = ingested(publish("mbeir"))
    queries = lake.by_id("queries")
    one, two = (
        ("text→image", "text→text", "text→image,text", "image→text", "image→image"),
        ("text", "image", "image,text"),
    )
    assert sorted(row["task"] for row in queries.values()) == sorted([*one, *(f"image,text→{wants}" for wants in two)])
    for row in queries.values():
        assert row["text_prefix"] in ("Find what matches.", "Give me the match.")
        asks = row["task"].partition("→")[0]
        assert row["text"] == f"{row['text_prefix']} green things." if "text" in asks else row["text_prefix"]
        assert ("image" in row) == ("image" in asks)
    documents = lake.by_id("documents")
    assert documents["3:1"]["text"] == "A green thing.", "outer quotes go, a capital and a full stop come"
    assert "image" in documents["3:1"]
    assert "text" not in documents["0:1"]
    assert lake.candidates()["2:77"] == ["2:1"], "the instruction is not searched for"
    assert lake.candidates()["9:77"] == [f"9:{k}" for k in range(7)], (
        "an image cannot be searched with: all of a small pool"
    )


def test_mbeir_uses_the_global_pool_where_that_is_all(publish, ingested, tmp_path):
    folder = publish("mbeir")
    local = sorted((folder / "cand_pool" / "local").iterdir())
    union = folder / "cand_pool" / "global" / "mbeir_union_test_cand_pool.jsonl"
    union.parent.mkdir()
    union.write_text("".join(path.read_text() for path in local))
    for path in local:
        path.unlink()
    lake = ingested(folder)
    assert len(lake.table("documents")) == 56
    assert all(len(docs) == 56 for docs in lake.candidates().values())


@pytest.mark.parametrize(
    ("text", "formatted"),
    [(' "a\r dog" ', "A dog."), ("what?", "What?"), ("", ""), (None, ""), ("Éa!", "Éa!"), ("ß", "SS.")],
)
def test_mbeir_texts_are_cleaned_as_the_authors_do(text, formatted):
    assert format_text(text) == formatted


def test_winoground_asks_both_ways(publish, ingested):
    lake = ingested(publish("winoground"))
    assert lake.candidates()["0:c0"] == lake.candidates()["0:c1"] == ["0:i0", "0:i1"]
    assert lake.candidates()["1:i1"] == ["1:c0", "1:c1"]
    qrels = lake.qrels()
    assert len(qrels) == 16
    assert {pair for pair, relevance in qrels.items() if relevance} == {
        (f"{k}:{a}{side}", f"{k}:{b}{side}") for k in "01" for a, b in ("ci", "ic") for side in "01"
    }
    queries = lake.by_id("queries")
    assert (queries["0:c0"]["text"], queries["0:c0"]["task"]) == ("red on green", "caption→image")
    assert ("text" not in queries["0:i1"], queries["0:i1"]["task"]) == (True, "image→caption")
    assert lake.by_id("documents")["1:i0"]["image"] == queries["1:i0"]["image"]


def test_winoground_with_unpacked_images_and_as_parquet(publish, ingested, unpack_winoground):
    folder = publish("winoground")
    packed = ingested(folder).by_id("documents")
    assert ingested(unpack_winoground(folder, "images")).by_id("documents") == packed
    assert ingested(unpack_winoground(folder, "parquet")).by_id("documents") == packed


def test_links_are_followed_only_when_asked_for(publish, ingested, tmp_path):
    folder = publish("beir") / "scifact"
    corpus = folder / "corpus.jsonl"
    corpus.rename(tmp_path / "blob")
    corpus.symlink_to(tmp_path / "blob")
    with pytest.raises(StorageError, match="--follow-links"):
        ingested(folder, layout="beir")
    assert len(ingested(folder, follow_links=True, layout="beir").table("documents")) == 3


@pytest.mark.parametrize("layout", ["miracl", "vidore_v1", "mbeir", "winoground"])
def test_an_object_store_gives_the_same_rows(publish, ingested, s3_server, s3_storage, s3_folder, layout):
    folder = publish(layout)
    bucket, _, prefix = s3_folder.removeprefix("s3://").partition("/")
    client = s3_server.client()
    for path in folder.rglob("*"):
        if path.is_file():
            client.put_object(Bucket=bucket, Key=f"{prefix}/in/{path.relative_to(folder)}", Body=path.read_bytes())
    client.close()
    options = LayoutOptions()
    done = ingest_benchmark(s3_storage, join(s3_folder, "in"), join(s3_folder, "out"), options)
    here = ingested(folder)
    for name in ("documents", "queries", "candidates", "qrels"):
        with s3_storage.open_parquet(join(s3_folder, "out", name, "part-000000.parquet")) as remote:
            assert remote.read().to_pylist() == here.table(name)
    assert done.rejected_by_fault == {}


def test_a_folder_that_is_no_benchmark_says_what_each_layout_expects(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(StorageError, match=r"not recognised[\s\S]*beir: a dataset's corpus.jsonl"):
        ingest_benchmark(Storage(), str(tmp_path / "in"), str(tmp_path / "out"), LayoutOptions())


@pytest.mark.parametrize(
    ("layout", "gone", "named"),
    [
        ("beir", "scifact/qrels/test.tsv", "scifact/qrels/test.tsv"),
        ("beir", "scifact/queries.jsonl", "scifact/queries.jsonl"),
        ("coir", "cosqa-qrels/data/test-00000-of-00001.parquet", r"cosqa-qrels/data/test-\*.parquet"),
        ("miracl", "miracl-v1.0-th/qrels/qrels.miracl-v1.0-th-dev.tsv", "qrels.miracl-v1.0-th-dev.tsv"),
        ("miracl", "miracl-corpus-v1.0-de/*", "miracl-corpus-v1.0-de/docs-0.jsonl.gz"),
        ("mldr", "mldr-v1.0-ja/test.jsonl.gz", "mldr-v1.0-ja/test.jsonl"),
        ("mkqa", "nq/corpus.jsonl", "nq/corpus.jsonl"),
        ("vidore_v2", "esg_reports_v2/qrels/*", r"esg_reports_v2/qrels/test-\*.parquet"),
        ("mbeir", "qrels/test/mbeir_oven_task6_test_qrels.txt", "mbeir_oven_task6_test_qrels.txt"),
        ("mbeir", "cand_pool/local/mbeir_oven_task6_cand_pool.jsonl", "mbeir_oven_task6_cand_pool.jsonl"),
        ("mbeir", "instructions/query_instructions.tsv", "query_instructions.tsv"),
        ("winoground", "data/images.zip", "data/images.zip"),
    ],
)
def test_a_missing_file_is_named_with_what_is_expected(publish, ingested, layout, gone, named):
    folder = publish(layout)
    for path in list(folder.glob(gone)):
        path.unlink()
    with pytest.raises(StorageError, match=rf"{named}[\s\S]*The layout {layout} is"):
        ingested(folder, layout=layout)


def test_all_missing_files_are_named_at_once(publish, ingested):
    folder = publish("beir")
    with pytest.raises(StorageError, match=r"android/qrels/dev.tsv[\s\S]*scifact/qrels/dev.tsv"):
        ingested(folder, split="dev")


def test_small_row_groups_of_images(publish, ingested):
    lake = ingested(publish("mbeir"))
    [part] = (lake.folder / "documents").glob("*.parquet")
    metadata = pq.read_metadata(part)
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert len(rows) > 1, "a reader that wants one image does not read them all"


def test_beir_rows_keep_a_language_of_their_own(publish, ingested):
    folder = publish("beir") / "scifact"
    queries = [json.loads(line) | {"language": "de"} for line in (folder / "queries.jsonl").read_text().splitlines()]
    (folder / "queries.jsonl").write_text("".join(f"{json.dumps(query)}\n" for query in queries))
    lake = ingested(folder)
    assert {row["language"] for row in lake.table("queries")} == {"de"}
    assert not any(row.get("language") for row in lake.table("documents"))


def test_vidore_v3_pages_keep_their_text_for_search(publish, ingested):
    documents = ingested(publish("vidore_v3")).table("documents")
    assert all(row["search_text"] and row.get("text") is None for row in documents)
