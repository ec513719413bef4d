"""Equal contents under several ids: scored once, ranked and rejected under each."""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.rerank.conftest import Lake

from lakerank.audit import Bounds
from lakerank.config import DuplicatesConfig
from lakerank.duplicates.clusters import EDGES, clusters_of
from lakerank.duplicates.sketch import BUCKETS, Likeness, bucket_pairs
from lakerank.lake.runs import read_manifest
from lakerank.lake.storage import Storage
from lakerank.model.preprocess.pipeline import digest
from lakerank.ranking import Fusion
from lakerank.rerank.publish import AuditRules
from lakerank.rerank.rank.write import RankRule
from lakerank.rerank.run import run
from lakerank_evaluation.inputs import LakeTables, find_inputs
from lakerank_evaluation.job import evaluate_run
from lakerank_evaluation.repetition import repetition

sys.path.append(str(Path(__file__).parents[1] / "scale"))
import duplicates as scale

TEXTS = st.sampled_from(["same", "other", "long", "too much", "last"])
PAIRS = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1)


def write(lake, queries, documents, candidates):
    lake.write("queries", [{"query_id": f"q{n}", "text": text} for n, text in enumerate(queries)])
    lake.write("documents", [{"doc_id": f"d{n}", "text": text} for n, text in enumerate(documents)], row_group_rows=2)
    rows = [{"query_id": f"q{q}", "doc_id": f"d{d}", "first_stage_rank": 10 * q + d} for q, d in sorted(candidates)]
    lake.write("candidates", rows)


def outcome(lake, run_id):
    """Each pair with its logit or reason."""
    ranked = {(row["query_id"], row["doc_id"]): row["logit"] for row in lake.ranked(run_id)}
    rejected = {(row["query_id"], row["doc_id"]): row["reason"] for row in lake.rejected(run_id)}
    assert not ranked.keys() & rejected.keys()
    return ranked | rejected


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(st.lists(TEXTS, min_size=4, max_size=4), st.lists(TEXTS, min_size=8, max_size=8), PAIRS)
def test_each_pair_of_contents_is_scored_once_whatever_the_ids(
    tmp_path_factory, runner, queries, documents, candidates
):
    lake, storage = Lake(tmp_path_factory.mktemp("lake")), Storage()
    write(lake, queries, documents, candidates)
    changes = {"audit": AuditRules(Bounds(allow_empty=True, max_reject_rate=None, max_unranked_queries=None))}
    summary = run(runner, storage, lake.job("r1", **changes))
    contents = {(queries[q], documents[d]) for q, d in candidates}
    assert summary["new"] == len(contents)
    units = (lake.folder / "out/scores").rglob("*.parquet")
    assert sum(pq.read_metadata(unit).num_rows for unit in units) == len(contents)
    logits = lake.logits()
    expected = {(f"q{q}", f"d{d}"): logits.get((f"q{q}", f"d{d}"), "out_of_memory") for q, d in candidates}
    assert outcome(lake, "r1") == expected
    assert {(row["query_id"], row["doc_id"], row["first_stage_rank"]) for row in lake.ranked("r1")} == {
        (f"q{q}", f"d{d}", 10 * q + d) for q, d in candidates if documents[d] != "too much"
    }
    manifest = read_manifest(storage, str(lake.folder / "out"), "r1")
    assert manifest["counts"]["shared"] == len(candidates) - len(contents)
    # The next run finds the scores that are there, and scores again only what the machine could not do.
    again = run(runner, storage, lake.job("r2", **changes))
    assert again["new"] == len({pair for pair in contents if pair[1] == "too much"})
    assert outcome(lake, "r2") == expected


def test_a_content_is_scored_where_it_first_stands_and_can_be_scored(tmp_path, runner, storage):
    lake = Lake(tmp_path)
    texts = [(None, "same"), ("empty", ""), ("d1", "other"), ("unlisted", "same"), ("d2", "same"), ("d3", "same")]
    given = {"empty": "given", "d1": "given"}  # an empty document with the hash of another
    lake.write("documents", [{"doc_id": i, "text": text, "content_hash": given.get(i)} for i, text in texts])
    lake.write("queries", [{"query_id": "q", "text": "query"}])
    lake.write("candidates", [{"query_id": "q", "doc_id": name} for name in ("d3", "d2", "d1", "empty")])
    audit = AuditRules(replace(Bounds(), max_reject_rate=None))
    summary = run(runner, storage, lake.job("r1", audit=audit))
    assert (summary["new"], summary["reused"], summary["rejected"]) == (2, 1, 1)
    logits = lake.logits()
    assert outcome(lake, "r1") == {
        **{("q", name): logits["q", name] for name in ("d1", "d2", "d3")},
        ("q", "empty"): "empty_document",
    }
    units = [pq.read_table(unit) for unit in (lake.folder / "out/scores/scorer=f00d").iterdir()]
    assert sorted(pa.concat_tables(units)["doc_id"].to_pylist()) == ["d1", "unlisted"]


LIKENESS = Likeness(DuplicatesConfig().text_similarity, DuplicatesConfig().image_difference)
BODY = " ".join(f"word{number}" for number in range(80))


def near_lake(folder):
    """Two copies of a text under other headers, one of which twice; its translation; two texts of their own."""
    lake = Lake(folder)
    other = " ".join(f"wort{number}" for number in range(80))
    texts = [f"first header {BODY}", f"another header {BODY}", other, f"first header {BODY}", "alone", "too much", ""]
    write(lake, ["query 0", "query 1"], texts, {(q, d) for q in range(2) for d in range(6)})
    return lake


def near_job(lake, run_id, duplicates="keep", share=False, per_group=None, later=(), **changes):
    rule = RankRule(0.0, (0.5,), None, per_group, duplicates)
    limits = lake.limits(likeness=LIKENESS, share=share)
    audit = AuditRules(replace(Bounds(), max_reject_rate=None))
    return lake.job(run_id, later, limits=limits, rule=rule, audit=audit, **changes)


def test_near_duplicates_are_marked_with_the_best_of_their_list_or_left_out(tmp_path, runner, storage):
    lake = near_lake(tmp_path)
    assert run(runner, storage, near_job(lake, "kept"))["published"]
    run(runner, storage, near_job(lake, "marked", "mark"))
    run(runner, storage, near_job(lake, "collapsed", "collapse"))
    kept, marked, collapsed = (lake.ranked(name) for name in ("kept", "marked", "collapsed"))
    assert [{key: row[key] for key in kept[0]} for row in marked] == kept
    left = []
    for query in ("q0", "q1"):
        rows = [row for row in marked if row["query_id"] == query]
        best, *others = [row["doc_id"] for row in rows if row["doc_id"] in ("d0", "d1", "d3")]
        assert {row["doc_id"]: row["duplicate_of"] for row in rows if row["duplicate_of"]} == dict.fromkeys(
            others, best
        )
        listed = [row for row in rows if not row["duplicate_of"]]
        left += [{**{key: row[key] for key in kept[0]}, "rank": rank} for rank, row in enumerate(listed, start=1)]
    assert collapsed == left
    counts = read_manifest(storage, str(lake.folder / "out"), "collapsed")["counts"]
    assert (counts["collapsed"], counts["repeated"], counts["ranked"]) == (4, 4, 6)
    assert counts["candidates"] == counts["ranked"] + counts["rejected"] + counts["collapsed"]


def test_near_duplicates_share_a_score_where_they_are_told_to(tmp_path, runner, storage):
    lake = near_lake(tmp_path)
    summary = run(runner, storage, near_job(lake, "shared", "mark", share=True))
    assert summary["new"] == 2 * 4
    logits = {(row["query_id"], row["doc_id"]): row["logit"] for row in lake.ranked("shared")}
    assert all(logits[query, "d0"] == logits[query, "d1"] == logits[query, "d3"] for query in ("q0", "q1"))
    assert len({logits["q0", document] for document in ("d0", "d2", "d4")}) == 3
    counts = read_manifest(storage, str(lake.folder / "out"), "shared")["counts"]
    assert (counts["shared"], counts["near"]) == (4, 2)
    again = run(runner, storage, near_job(lake, "again", "mark", share=True))
    assert again["new"] == 2, "what was out of memory"


def test_a_cascade_and_an_ensemble_know_duplicates_too(tmp_path, runner, storage):
    lake = near_lake(tmp_path)
    first = near_job(lake, "any").stages[0]
    for name, top in (("cascade", 3), ("ensemble", None)):
        later = (replace(first, scorer="beef", factory=lake.factory("B"), top=top),)
        fusion = None if top else Fusion("reciprocal_rank", (0.5, 0.5))
        job = near_job(lake, name, later=later, fusion=fusion)
        job = replace(job, rule=replace(job.rule, duplicates="collapse"))
        assert run(runner, storage, job)["published"]
        for query in ("q0", "q1"):
            listed = {row["doc_id"] for row in lake.ranked(name) if row["query_id"] == query}
            assert len(listed & {"d0", "d1", "d3"}) == 1


def test_sketches_are_made_for_new_files_only(tmp_path, runner, storage):
    lake = near_lake(tmp_path)
    run(runner, storage, near_job(lake, "one", "mark"))
    folder = lake.folder / "out/index/sketches"
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    documents = lake.folder / "documents.parquet"
    table = pq.read_table(documents)
    documents.rename(lake.folder / "0.parquet")
    documents.mkdir()
    (lake.folder / "0.parquet").rename(documents / "0.parquet")
    run(runner, storage, near_job(lake, "two", "mark"))
    pq.write_table(table.slice(0, 1).set_column(0, "doc_id", [["d9"]]), documents / "1.parquet")
    kept = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    run(runner, storage, near_job(lake, "three", "mark"))
    after = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert before.items() <= kept.items() <= after.items()
    assert len(after) == len(kept) + 1


def test_an_image_that_has_killed_two_processes_is_not_sketched(tmp_path, runner, storage):
    lake = near_lake(tmp_path)
    images = [io.BytesIO() for _ in range(2)]
    for stream, colour in zip(images, ("lime", "red"), strict=True):
        Image.new("RGB", (56, 56), colour).save(stream, "PNG")
    deadly, other = (stream.getvalue() for stream in images)
    lake.write("documents", [{"doc_id": "d0", "image": deadly}, {"doc_id": "d1", "image": other}])
    lake.write("candidates", [{"query_id": "q0", "doc_id": "d0"}])
    run(runner, storage, near_job(lake, "one", "mark"))
    (file,) = (lake.folder / "out/index/sketches").iterdir()
    assert pq.read_table(file)["pixels"].null_count == 0
    file.unlink()
    attempts = lake.folder / "out/runs/two/plan/attempts"
    attempts.mkdir(parents=True)
    for left in ("started", digest(deadly)):  # by the two that were killed
        (attempts / f"{file.name}.{left}").write_text("{}")
    run(runner, storage, near_job(lake, "two", "mark"))
    assert pq.read_table(file)["pixels"].is_null().to_pylist() == [True, False]
    assert not [*attempts.iterdir()]


def test_the_report_says_how_much_is_repetition_and_shows_it(tmp_path, runner, storage):
    lake = near_lake(tmp_path)
    qrels = pa.table({"query_id": ["q0", "q1"], "doc_id": ["d0", "d4"], "relevance": pa.array([1, 1], pa.int32())})
    pq.write_table(qrels, lake.folder / "qrels.parquet")
    tables = LakeTables(
        *(str(lake.folder / f"{name}.parquet") for name in ("documents", "queries", "candidates", "qrels"))
    )
    shown = {}
    for mode in ("keep", "mark", "collapse"):
        job = near_job(lake, mode, mode)
        run(runner, storage, job)
        evaluated = evaluate_run(runner, storage, find_inputs(storage, tables, job.paths))
        figures = json.loads(Path(evaluated.figures).read_text())["repetition"]
        shown[mode] = figures, Path(evaluated.report).read_text()
    figures, page = shown["mark"]
    assert {name: figures[name] for name in ("pairs", "repeated", "lists", "lists_with_some")} == {
        "pairs": 10, "repeated": 4, "lists": 2, "lists_with_some": 2,
    }  # fmt: skip
    assert figures["mean_share"] == figures["top_share"] == figures["share"] == 0.4
    assert [sorted(cluster) for cluster in figures["clusters"]] == [["d0", "d1", "d3"]]
    assert ("4 of 10 pairs (40.00%)" in page, "another header word0" in page) == (True, True)
    figures, page = shown["collapse"]
    assert (figures["repeated"], figures["pairs"], "left out" in page) == (4, 10, True)
    figures, page = shown["keep"]
    assert (figures, 'id="repetition"' in page) == (None, False)


@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=20))
def test_what_edges_join_is_a_cluster_named_by_the_least(edges):
    names = [f"{number:02}" for number in range(15)]
    table = pa.Table.from_pylist([{"one": names[a], "other": names[b]} for a, b in edges if a != b], schema=EDGES)
    least = list(range(15))
    for _ in edges:
        for a, b in edges:
            least[a] = least[b] = min(least[a], least[b])
    assert dict(zip(*clusters_of(table).to_pydict().values(), strict=True)) == {
        names[number]: names[first] for number, first in enumerate(least) if number != first
    }


def test_a_long_chain_is_one_cluster_after_few_rounds():
    names = pa.array([f"{number:05}" for number in range(50_000)]).take(
        pa.array(np.random.default_rng(1).permutation(50_000))
    )
    started = time.process_time()
    clusters = clusters_of(pa.Table.from_arrays([names[:-1], names[1:]], schema=EDGES))
    assert (clusters.num_rows, pc.unique(clusters["cluster"]).to_pylist()) == (49_999, ["00000"])
    assert time.process_time() - started < 5, "not a round a link"


def test_a_hundred_thousand_alike_make_no_more_than_two_comparisons_each():
    count = 100_000
    columns = [np.zeros(count, np.uint64), np.arange(count, dtype=np.uint64), np.arange(count)]
    one, other = bucket_pairs(pa.Table.from_arrays([pa.array(column) for column in columns], schema=BUCKETS))
    assert (len(one) < 2 * count, set(other.tolist()) == set(range(1, count))) == (True, True)
    equal = pa.Table.from_arrays([pa.array(columns[0]), pa.array(columns[0]), pa.array(columns[2])], schema=BUCKETS)
    assert not len(bucket_pairs(equal)[0])


def test_planted_duplicates_are_found_at_the_defaults_and_no_others(tmp_path, runner):
    groups = scale.planted(seed=5, of_kind=6)
    scale.write(tmp_path / "documents.parquet", [{"doc_id": str(at), **row} for at, row in enumerate(chain(*groups))])
    clusters, hashes = scale.clusters_of(runner, tmp_path, tmp_path / "documents.parquet")
    figures = scale.score(groups, clusters.of(pa.chunked_array([hashes])).to_pylist())
    assert min(figures["precision"], figures["recall"]) >= 0.95, figures


def test_duplicate_of_is_of_the_type_of_doc_id(tmp_path, runner, storage):
    lake = near_lake(tmp_path)
    for name in ("documents", "candidates"):
        table = pq.read_table(lake.folder / f"{name}.parquet")
        at = table.schema.get_field_index("doc_id")
        ids = pc.utf8_ltrim(table["doc_id"], "d").cast(pa.int64())
        pq.write_table(table.set_column(at, "doc_id", ids), lake.folder / f"{name}.parquet")
    job = near_job(lake, "numbers", "mark")
    run(runner, storage, job)
    assert {type(row["duplicate_of"]) for row in lake.ranked("numbers")} == {int, type(None)}
    paths = SimpleNamespace(manifest={"ranking": {"duplicates": "mark"}, "counts": {}}, paths=job.paths)
    assert repetition(storage, paths).repeated == 4
