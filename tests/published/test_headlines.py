"""Benchmarks average as their authors do, and stand beside what was published."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from lakerank_datasets.headlines import winoground
from lakerank_evaluation.job import folder


@pytest.fixture
def benchmark_lake(make_lake):
    """A query finds its document at the rank given: benchmark_lake([(labels, rank or None), …])."""

    def make(queries, depth=12):
        docs = [f"d{number:02}" for number in range(depth)]
        names = [f"q{number}" for number in range(len(queries))]
        expected = {
            name: "absent" if rank is None else docs[rank - 1] for name, (_, rank) in zip(names, queries, strict=True)
        }
        return make_lake(
            documents=[{"doc_id": doc, "text": "x"} for doc in docs],
            queries=[
                {"query_id": name, "text": "x", **labels} for name, (labels, _) in zip(names, queries, strict=True)
            ],
            candidates=[(name, doc, rank) for name in names for rank, doc in enumerate(reversed(docs), start=1)],
            qrels=[(name, expected[name], 1) for name in names],
            ranked=dict.fromkeys(names, docs),
        )

    return make


def of(benchmark, dataset, subset=None):
    return {"benchmark": benchmark, "dataset": dataset} | ({"subset": subset} if subset else {})


def test_means_over_subsets_then_datasets_however_many_queries_they_have(benchmark_lake):
    lake = benchmark_lake([
        (of("beir", "nfcorpus"), 1), (of("beir", "nfcorpus"), 1), (of("beir", "nfcorpus"), 1),
        (of("beir", "cqadupstack", "android"), 1),
        (of("beir", "cqadupstack", "gis"), None), (of("beir", "cqadupstack", "gis"), None),
    ])  # fmt: skip
    done = lake.evaluated()
    [beir] = done.evaluation.benchmarks
    assert {dataset.name: dataset.reranked for dataset in beir.datasets} == {"nfcorpus": 1.0, "cqadupstack": 0.5}
    assert beir.reranked == 0.75
    assert done.evaluation.overall.reranked["nDCG@10"] == pytest.approx(4 / 6)
    assert done.summary()["benchmarks"] == {"beir": 0.75}
    assert "over all 18 datasets, here 2" in beir.setting
    html = Path(done.report).read_text()
    assert ">0.5895<" in html
    rows = list(csv.DictReader(io.StringIO((Path(folder(lake.paths)) / "benchmarks.csv").read_text())))
    assert [(row["dataset"], float(row["reranked"])) for row in rows] == [
        ("all", 0.75), ("cqadupstack", 0.5), ("nfcorpus", 1.0),
    ]  # fmt: skip


def test_recall_of_mkqa_and_mbeir_is_a_hit_at_their_depth(benchmark_lake):
    lake = benchmark_lake([
        (of("mkqa", "mkqa-de"), 10), (of("mkqa", "mkqa-de"), 11),
        (of("mbeir", "mscoco_task0"), 6), (of("mbeir", "fashioniq_task7"), 6),
    ])  # fmt: skip
    mkqa, mbeir = lake.evaluated().evaluation.benchmarks
    assert (mkqa.benchmark.measure_name, mkqa.reranked) == ("Recall@10", 0.5)
    assert {dataset.name: dataset.reranked for dataset in mbeir.datasets} == {
        "mscoco_task0": 0.0,
        "fashioniq_task7": 1.0,
    }
    assert (mbeir.benchmark.measure_name, mbeir.reranked) == ("Recall@5", 0.5)


def test_every_dataset_is_a_dot(benchmark_lake):
    lake = benchmark_lake(
        [(of("miracl", f"miracl-{code}"), rank) for rank, code in enumerate(("de", "fi", "ja"), start=1)]
    )
    html = Path(lake.evaluated().report).read_text()
    assert "MIRACL: nDCG@10, a dot for each of 3 datasets" in html
    assert (Path(folder(lake.paths)) / "boxes-miracl.png").read_bytes().startswith(b"\x89PNG")


def authors_scores(pairs):
    """Winoground's rule as its authors word it: pairs[example] holds s(caption, image) for each direction asked."""

    def text(of):
        return of["i0c0"] > of["i0c1"] and of["i1c1"] > of["i1c0"]

    def image(of):
        return of["c0i0"] > of["c0i1"] and of["c1i1"] > of["c1i0"]

    return [sum(map(rule, pairs)) / len(pairs) for rule in (text, image, lambda of: text(of) and image(of))]


def test_winoground_by_its_authors_rule(make_lake):
    generator = random.Random(4)
    names = [f"{side}{number}" for side in "ci" for number in (0, 1)]
    asked = [(caption, other) for caption in names for other in names if caption[0] != other[0]]
    logits, examples = {}, []
    for example in range(40):
        result = {
            f"{caption}{other}": round(generator.random() + (caption[1] == other[1]) * 0.3, 1)
            for caption, other in asked
        }
        examples.append(result)
        logits |= {
            (f"{example}:{caption}", f"{example}:{other}"): result[f"{caption}{other}"] for caption, other in asked
        }
    ids = [f"{example}:{name}" for example in range(40) for name in names]
    ranked = {}
    for query, doc in logits:
        ranked.setdefault(query, []).append(doc)
    for query, docs in ranked.items():
        docs.sort(key=lambda doc, query=query: -logits[query, doc])
    lake = make_lake(
        documents=[{"doc_id": name, "text": "x"} for name in ids],
        queries=[{"query_id": name, "text": "x", "benchmark": "winoground", "dataset": "winoground"} for name in ids],
        candidates=[(*pair, None) for pair in logits],
        qrels=[(query, doc, int(query[-1] == doc[-1])) for query, doc in logits],
        ranked=ranked,
        logits=logits,
    )
    done = lake.evaluated()
    [result] = done.evaluation.benchmarks
    expected = authors_scores(examples)
    assert [result.details[name] for name in ("text", "image", "group")] == pytest.approx(expected)
    assert 0 < expected[2] < min(expected[:2])
    assert result.reranked == pytest.approx(sum(expected) / 3)
    assert result.low < result.reranked < result.high
    assert "0.439" in Path(done.report).read_text()


def test_a_tie_and_a_missing_pair_are_wrong():
    right = {"0:c0": {"0:i0": 2.0, "0:i1": 1.0}, "0:c1": {"0:i1": 2.0, "0:i0": 1.0},
             "0:i0": {"0:c0": 2.0, "0:c1": 1.0}, "0:i1": {"0:c1": 2.0, "0:c0": 1.0}}  # fmt: skip
    assert winoground(right).details["group"] == 1
    tied = right | {"0:c0": {"0:i0": 1.0, "0:i1": 1.0}}
    assert winoground(tied).details == {"text": 1, "image": 0, "group": 0}
    missing = right | {"0:i1": {"0:c1": 2.0}}
    assert winoground(missing).details == {"text": 0, "image": 1, "group": 0}
