"""Blocks of queries judged apart come to what all come to together; Spark judges what this process does."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lakerank.evaluation.analysis.samples import Sample, merged
from lakerank.evaluation.partials import Rule, collect, judge_block
from lakerank.evaluation.rows import ROWS, Source, by_query

ROOT = Path(__file__).parents[2]
QUERIES, DOCS = 40, 12


def random_rows(seed):
    """A lake with everything in it: unjudged and unknown queries, rejected candidates, duplicates, lists of nothing."""
    generator = random.Random(seed)
    rows = []

    def add(query, source, doc="", **columns):
        rows.append({"query_id": query, "doc_id": doc, "source": source, **columns})

    for number in range(QUERIES):
        query = f"q{number}"
        docs = generator.sample([f"d{one}" for one in range(30)], DOCS)
        if number % 11:
            labels = {"task": f"t{number % 3}", "benchmark": "beir", "dataset": f"s{number % 2}", "name": query}
            add(query, Source.QUERY, modality=1 + number % 2, labels=json.dumps(labels))
        for doc in docs if number % 13 else []:
            add(query, Source.CANDIDATE, doc, score=generator.random(), modality=1 + int(doc[1:]) % 2)
        add(query, Source.CANDIDATE, docs[0], score=-1.0, modality=1 + int(docs[0][1:]) % 2)
        for source in (Source.RANKED, Source.AGAINST):
            listed = generator.sample(docs, DOCS - 2) if number % 7 else []
            for rank, doc in enumerate(listed, start=1):
                logit = generator.gauss(0, 2)
                add(query, source, doc, place=rank, score=logit, relevance=1 / (1 + 2.7**-logit), grade=rank % 3)
        for doc in generator.sample(docs, 3) if number % 5 else []:
            add(query, Source.QREL, doc, grade=generator.randint(0, 2))
    generator.shuffle(rows)
    return by_query(pa.Table.from_pylist(rows, schema=ROWS))


def same(one, other):
    """Equal but for the last bits of sums."""
    for name in ("slices", "parts"):
        found, expected = getattr(one, name), getattr(other, name)
        assert found.keys() == expected.keys()
        for key in found:
            np.testing.assert_allclose(found[key].packed(), expected[key].packed(), rtol=1e-12, atol=1e-12)
    assert one.samples.keys() == other.samples.keys()
    for kind in one.samples:
        np.testing.assert_array_equal(one.samples[kind].packed(), other.samples[kind].packed())
    assert one.shortlist == other.shortlist
    assert one.winoground == other.winoground
    np.testing.assert_array_equal(one.counts.gains, other.counts.gains)
    assert (one.counts.unjudged, one.counts.lost) == (other.counts.unjudged, other.counts.lost)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_add_up(seed):
    rows, rule = random_rows(seed), Rule(True, True, ("task", "dataset"))
    whole = collect([judge_block(rows, rule)[0]])
    parts = [
        judge_block(rows.filter(pc.is_in(rows["query_id"], pa.array([f"q{n}" for n in numbers]))), rule)[0]
        for numbers in (range(0, QUERIES, 3), range(1, QUERIES, 3), range(2, QUERIES, 3))
    ]
    same(collect(parts), whole)
    same(collect(parts[::-1]), whole)
    assert whole.slices["all", "all"].queries == sum(1 for n in range(QUERIES) if n % 11 and n % 5)
    assert whole.counts.unjudged == sum(1 for n in range(QUERIES) if n % 11 and not n % 5)


def test_a_sample_of_samples_is_fair():
    generator = np.random.default_rng(0)
    parts = []
    for number in range(30):
        rows = np.zeros((1000, 6))
        rows[:, 0], rows[:, 1] = generator.random(1000), number
        parts.append(Sample(1000, rows))
    found = merged([merged(parts[:10]), merged(parts[10:])])
    assert (found.count, len(found.kept), found.weight) == (30_000, 10_000, 3.0)
    assert found.column("draw").max() == pytest.approx(1 / 3, abs=0.01)
    shares = np.bincount(found.column("logit").astype(int))
    assert shares.min() > 270
    np.testing.assert_array_equal(merged(parts[::-1]).kept, found.kept)


@pytest.mark.spark
@pytest.mark.slow
def test_spark_judges_as_this_process_does(make_lake, encode, tmp_path):
    generator = random.Random(1)
    docs = [f"d{number}" for number in range(30)]
    queries = [f"q{number:02}" for number in range(60)]
    lists = {query: generator.sample(docs, 10) for query in queries}
    lake = make_lake(
        documents=[
            {"doc_id": doc, "image": encode()} if int(doc[1:]) % 2 else {"doc_id": doc, "text": "x"} for doc in docs
        ],
        queries=[{"query_id": query, "text": "?", "language": query[1]} for query in queries],
        candidates=[(query, doc, rank) for query in queries for rank, doc in enumerate(lists[query], start=1)],
        qrels=[(query, generator.choice(lists[query]), 1 + number % 2) for number, query in enumerate(queries[5:])],
        ranked={query: generator.sample(found, 9) for query, found in lists.items()},
        rejected=[(queries[0], "gone", "missing_document")],
    )
    lake.add_run("r0", {query: found[::-1] for query, found in lists.items()})
    command = [sys.executable, str(ROOT / "jobs/evaluate.py"), "--config", str(ROOT / "conf/demo.yaml")]
    for name in ("documents", "queries", "candidates", "qrels"):
        command += ["--set", f"lake.{name}={getattr(lake.tables, name)}"]
    command += [
        "--set",
        f"lake.output={lake.paths.output}",
        "--set",
        "spark.conf={spark.master: 'local[2]', spark.ui.enabled: false}",
    ]
    found = []
    for where in ("--no-spark", "--spark"):
        done = subprocess.run(
            [*command, "--run-id", "r1", "--against", "r0", where],
            capture_output=True, text=True, cwd=tmp_path, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append((done.stdout.splitlines()[-1], Path(lake.paths.folder, "evaluation.json").read_text()))
    (here, figures), (there, others) = found
    assert pytest.approx(flat(json.loads(figures))) == flat(json.loads(others))
    keys = ("reranked", "against", "queries", "modality_gap")
    assert [json.loads(here)[key] for key in keys] == [json.loads(there)[key] for key in keys]
    by_query = list(Path(lake.paths.folder, "evaluation/queries").glob("*.parquet"))
    assert sum(pq.read_metadata(path).num_rows for path in by_query) == 55


def flat(value, path=""):
    """Numbers by their paths in a JSON value; anything else is part of its path."""
    if isinstance(value, dict):
        return {key: one for name, part in value.items() for key, one in flat(part, f"{path}/{name}").items()}
    if isinstance(value, list):
        return {key: one for name, part in enumerate(value) for key, one in flat(part, f"{path}/{name}").items()}
    return {path: value} if isinstance(value, int | float) else {f"{path}={value}": 0}
