"""Queries evaluated in blocks have the figures of all together; Spark reads what this process does."""

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

from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.spark.runtime.runner import SparkRunner
from lakerank_evaluation.analysis.scores import SCORED_PAIR, sampled
from lakerank_evaluation.blocks import block_of, read_blocks
from lakerank_evaluation.evaluation import evaluate
from lakerank_evaluation.examples import choose, extremes
from lakerank_evaluation.inputs import Inputs, LakeTables, Totals
from lakerank_evaluation.job import evaluate_run
from lakerank_evaluation.pairs import PAIR_COLUMNS, InputTable

ROOT = Path(__file__).parents[2]
QUERIES, DOCS = 40, 12


DIMENSIONS = ("task", "dataset")
LABELS = (*DIMENSIONS, "benchmark", "subset", "name")


def random_rows(seed):
    """A lake with everything in it: unjudged and unknown queries, rejected candidates, duplicates, lists of nothing."""
    generator = random.Random(seed)
    rows = {table: [] for table in InputTable}

    def add(query, table, doc, **columns):
        rows[table].append({"query_id": query, "doc_id": doc, **columns})

    for number in range(QUERIES):
        query = f"q{number}"
        docs = generator.sample([f"d{number}" for number in range(30)], DOCS)
        if number % 11:
            labels = {"task": f"t{number % 3}", "benchmark": "beir", "dataset": f"s{number % 2}", "name": query}
            rows[InputTable.QUERY].append({"query_id": query, "modality": 1 + number % 2, **labels})
        for doc in docs if number % 13 else []:
            add(query, InputTable.CANDIDATE, doc, first_stage_score=generator.random(), modality=1 + int(doc[1:]) % 2)
        add(query, InputTable.CANDIDATE, docs[0], first_stage_score=-1.0, modality=1 + int(docs[0][1:]) % 2)
        for table in (InputTable.RANKED, InputTable.BASELINE):
            listed = generator.sample(docs, DOCS - 2) if number % 7 else []
            for rank, doc in enumerate(listed, start=1):
                logit = generator.gauss(0, 2)
                add(query, table, doc, rank=rank, logit=logit, relevance=1 / (1 + 2.7**-logit), label=rank % 3)
        for doc in generator.sample(docs, 3) if number % 5 else []:
            add(query, InputTable.QREL, doc, relevance=generator.randint(0, 2))
    kinds = PAIR_COLUMNS | {
        InputTable.QUERY: pa.schema(
            [("query_id", "string"), ("modality", "int8"), *((name, "string") for name in LABELS)]
        ),
        InputTable.CANDIDATE: PAIR_COLUMNS[InputTable.CANDIDATE].append(pa.field("modality", "int8")),
    }
    for of_table in rows.values():
        generator.shuffle(of_table)
    return {table: pa.Table.from_pylist(of_table, schema=kinds[table]) for table, of_table in rows.items()}


def evaluated(blocks):
    """An evaluation of blocks of rows, whatever the tables."""
    paths = RunPaths("out", "r1")
    tables, totals = LakeTables("documents", "queries", "candidates", "qrels"), Totals(0, 0, 0, {})
    inputs = Inputs(
        tables, paths, RunPaths("out", "r0"), {}, (), ordered=True, dimensions=DIMENSIONS, labels=LABELS, totals=totals,
        manifest={},
    )  # fmt: skip
    return evaluate(Storage(), inputs, map(block_of, blocks))


def ending_in(digit, rows):
    """The rows of the queries whose id ends in a digit."""
    return {
        table: part.filter(pc.equal(pc.utf8_slice_codeunits(part["query_id"], -1), digit))
        for table, part in rows.items()
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reverse", [False, True])
def test_blocks_in_any_order_have_the_figures_of_all_together(seed, reverse):
    rows = random_rows(seed)
    whole = evaluated([rows])
    blocks = [ending_in(digit, rows) for digit in "0123456789"]
    parts = evaluated(blocks[::-1] if reverse else blocks)
    assert parts.as_dict() == whole.as_dict()
    assert choose(parts.queries, 20) == choose(whole.queries, 20)
    assert extremes(parts.queries) == extremes(whole.queries)
    assert parts.pairs.tobytes() == whole.pairs.tobytes()
    assert whole.overall.queries == sum(1 for n in range(QUERIES) if n % 11 and n % 5)
    assert whole.unjudged == sum(1 for n in range(QUERIES) if n % 11 and not n % 5)
    assert whole.without_candidates == 0


def test_only_judged_queries_are_kept():
    queries, pairs, unjudged = block_of(random_rows(0))
    judged = {f"q{n}" for n in range(QUERIES) if n % 5}
    assert set(pairs["query_id"].to_pylist()) == judged
    assert set(queries["query_id"].to_pylist()) == {name for name in judged if int(name[1:]) % 11}
    assert unjudged == sum(1 for n in range(QUERIES) if n % 11 and not n % 5)


def test_a_sample_in_parts_is_a_reservoir_sample_of_all():
    generator = np.random.default_rng(0)
    parts = []
    for number in range(30):
        pairs = np.ones(1200, SCORED_PAIR)
        pairs["draw"], pairs["logit"] = generator.integers(0, 1 << 62, 1200), number
        pairs["judgement"][1000:] = 0  # another stratum, of fewer pairs
        parts.append(pairs)

    def in_turn(parts):
        result = np.zeros(0, SCORED_PAIR)
        for part in parts:
            result = sampled(np.concatenate([result, part]))
        return result

    whole = in_turn(parts)
    few, many = (whole[whole["judgement"] == grade] for grade in (0, 1))
    assert (len(few), set(few["weight"])) == (6000, {1.0})
    assert (len(many), set(many["weight"])) == (10_000, {3.0})
    assert many["draw"].max() / (1 << 62) == pytest.approx(1 / 3, abs=0.01)
    assert np.bincount(many["logit"].astype(int)).min() > 270
    np.testing.assert_array_equal(in_turn(parts[::-1]), whole)


@pytest.fixture
def lake(make_lake, encode):
    """Sixty queries over texts and images, the first five unjudged; and a run to compare with."""
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
        ranked={query: generator.sample(result, 9) for query, result in lists.items()},
        rejected=[(queries[0], "gone", "missing_document")],
    )
    lake.add_run("r0", {query: result[::-1] for query, result in lists.items()}, complete=True)
    return lake


def figures(lake):
    return json.loads(Path(lake.paths.folder, "evaluation-against-r0.json").read_text())


def test_blocks_have_whole_queries_with_all_their_rows(lake, runner):
    [whole] = read_blocks(runner, Storage(), lake.inputs("r0"))
    blocks = list(read_blocks(runner, Storage(), lake.inputs("r0"), block_rows=300))
    assert len(blocks) > 3
    assert sum(block.unjudged for block in blocks) == whole.unjudged == 5
    for name, rows in (("queries", 55), ("pairs", 550)):
        parts = [getattr(block, name) for block in blocks]
        order = [(column, "ascending") for column in ("query_id", "doc_id") if column in parts[0].column_names]
        assert sum(part.num_rows for part in parts) == rows
        assert pa.concat_tables(parts).sort_by(order).equals(getattr(whole, name).sort_by(order))
    assert set(whole.pairs["modality"].to_pylist()) == {1, 2}


@pytest.mark.spark
def test_spark_reads_what_this_process_does(lake, spark):
    here = lake.evaluated("r0").summary(), figures(lake)
    there = evaluate_run(SparkRunner(spark), Storage(), lake.inputs("r0")).summary(), figures(lake)
    assert here[1] == there[1]
    keys = ("reranked", "against", "queries", "modality_gap")
    assert [here[0][key] for key in keys] == [there[0][key] for key in keys]
    by_query = list(Path(lake.paths.folder, "evaluation-against-r0/queries").glob("*.parquet"))
    assert sum(pq.read_metadata(path).num_rows for path in by_query) == 55


@pytest.mark.spark
@pytest.mark.nightly
def test_the_command_starts_a_spark_of_its_own(lake, tmp_path):
    lake.evaluated("r0")
    here = figures(lake)
    tables = {name: getattr(lake.tables, name) for name in ("documents", "queries", "candidates", "qrels")}
    settings = [f"lake.{name}={address}" for name, address in (tables | {"output": lake.paths.output}).items()]
    settings.append("spark.conf={spark.master: 'local[2]', spark.ui.enabled: false}")
    command = [sys.executable, str(ROOT / "jobs/evaluate.py"), "--config", str(ROOT / "conf/demo.yaml")]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        [*command, "--run-id", "r1", "--against", "r0", "--set", "spark.local_pairs=0"],
        capture_output=True, text=True, cwd=tmp_path, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "starting Spark" in done.stderr
    there = figures(lake)
    assert there.pop("models") == ["embedded, dtype auto"]
    assert there.pop("checksum") != here.pop("checksum"), "of all of a file"
    assert there == {name: value for name, value in here.items() if name != "models"}
