"""Every layout from its publisher's files to a report: ingested, reranked, evaluated.

The figures are held against each benchmark's own way of counting, written down here from the judgements that the
miniature files hold and from the authors' evaluation code, and applied to the ranked lists that the run published.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet as pq
import pytest
from click import Command
from click.testing import CliRunner

from lakerank.cli.ingest import ingest
from lakerank.cli.resolve import rerank_job
from lakerank.config import load_config
from lakerank.lake.storage import Storage
from lakerank.rerank.run import run as rerank
from lakerank.runner import Runner
from lakerank_evaluation.cli import evaluate

ROOT = Path(__file__).parents[2]
LAYOUTS = ["beir", "coir", "miracl", "mldr", "mkqa", "vidore_v1", "vidore_v2", "vidore_v3", "mbeir", "winoground"]

DOCVQA, TATDQA = "docvqa_test_subsampled", "tatdqa_test"

#: What the files say is right, by hand: dataset → subset → query → document → relevance.
JUDGED: dict[str, dict[str, dict[str, dict[str, dict[str, int]]]]] = {
    "beir": {
        "scifact": {"": {"scifact/1": {"scifact/d1": 2, "scifact/d2": 1}, "scifact/2": {"scifact/d2": 1}}},
        "cqadupstack": {
            "android": {"cqadupstack/android/7": {"cqadupstack/android/0": 1}},
            "unix": {"cqadupstack/unix/7": {"cqadupstack/unix/1": 1}},
        },
    },
    "coir": {
        "cosqa": {"": {"cosqa/q0": {"cosqa/d0": 1}}},
        "codesearchnet": {"go": {"codesearchnet-go/q0": {"codesearchnet-go/d0": 1}}},
    },
    "miracl": {f"miracl-{k}": {"": {f"miracl-{k}/9#0": {f"miracl-{k}/7#0": 1}}} for k in ("de", "th")},
    "mldr": {f"mldr-{k}": {"": {f"mldr-{k}/q-{k}-1": {f"mldr-{k}/doc-{k}-1": 1}}} for k in ("de", "ja")},
    "mkqa": {
        f"mkqa-{k}": {
            "": {f"mkqa-{k}/0": {"mkqa/doc0": 1}, f"mkqa-{k}/1": {"mkqa/doc2": 1}, f"mkqa-{k}/2": {}},
        }
        for k in ("de", "ja")
    },
    "vidore_v1": {
        DOCVQA: {
            "": {
                f"{DOCVQA}/q{number}": {f"{DOCVQA}/images/{page}.jpg": 1}
                for number, page in ((0, "d"), (1, "b"), (2, "a"))
            }
        },
        TATDQA: {"": {f"{TATDQA}/q{k}": {f"{TATDQA}/images/{page}.jpg": 1} for k, page in ((0, "a"), (1, "b"))}},
    },
    "vidore_v2": {
        "esg_reports_v2": {
            "english": {
                "esg_reports_v2/0": {"esg_reports_v2/0": 1},
                "esg_reports_v2/2": {"esg_reports_v2/1": 2, "esg_reports_v2/2": 1},
            },
            "french": {"esg_reports_v2/1": {"esg_reports_v2/0": 1}},
        }
    },
    "vidore_v3": {
        "vidore_v3_energy": {
            "": {
                "vidore_v3_energy/0": {"vidore_v3_energy/0": 2},
                "vidore_v3_energy/1": {"vidore_v3_energy/1": 1, "vidore_v3_energy/2": 2},
            }
        }
    },
    "mbeir": {
        name: {"": {f"{number}:77": {f"{number}:1": 1}}}
        for name, number in {
            "visualnews_task0": 0, "webqa_task1": 2, "edis_task2": 3, "mscoco_task3": 9,
            "nights_task4": 4, "oven_task6": 5, "cirr_task7": 8, "infoseek_task8": 6,
        }.items()
    },
}  # fmt: skip


def ndcg(depth: int) -> Callable[[list[str], Mapping[str, int]], float]:
    """trec_eval's ndcg_cut: gains as they are, discounted by log2(rank + 1), over the ideal order of the judgements."""

    def of(ranking: list[str], judged: Mapping[str, int]) -> float:
        ideal = dcg(sorted(judged.values(), reverse=True)[:depth])
        return dcg([judged.get(doc, 0) for doc in ranking[:depth]]) / ideal

    return of


def dcg(gains: Iterable[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def hit(depth: int) -> Callable[[list[str], Mapping[str, int]], float]:
    """Recall as M-BEIR's and MKQA's authors compute it: 1 when anything right is among the first documents."""
    return lambda ranking, judged: float(any(judged.get(doc, 0) > 0 for doc in ranking[:depth]))


MEASURES = {
    **dict.fromkeys(("beir", "coir", "miracl", "mldr"), ndcg(10)),
    **dict.fromkeys(("vidore_v1", "vidore_v2", "vidore_v3"), ndcg(5)),
    "mkqa": hit(10),
    "mbeir": hit(5),
}


@dataclass(frozen=True)
class Run:
    """What the three steps left."""

    ingested: dict[str, dict[str, Any]]
    reranked: dict[str, Any]
    evaluated: dict[str, Any]
    rankings: dict[str, list[tuple[str, float]]]
    report: str

    def benchmark(self, name: str) -> dict[str, Any]:
        return next(entry for entry in self.evaluated["benchmarks"] if entry["name"] == name)


def invoke(command: Command, *arguments: str) -> dict[str, Any]:
    """The last line of a command's standard output."""
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return summary


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, builders: Mapping[str, Any], tiny_checkpoint: Path, runner: Runner
) -> Run:
    """Each benchmark ingested by one command; then all lakes reranked and evaluated together."""
    folder = tmp_path_factory.mktemp("benchmarks")
    ingested = {}
    for layout in LAYOUTS:
        source, output = folder / "published" / layout, folder / "lakes" / layout
        builders[layout](source)
        ingested[layout] = invoke(ingest, str(source), "--layout", "auto", "--output", str(output))
    tables = {name: folder / "lakes" / "*" / name for name in ("documents", "queries", "candidates", "qrels")}
    settings = [f"lake.{name}={address}" for name, address in tables.items()]
    settings += [f"lake.output={folder / 'out'}", f"model.path={tiny_checkpoint}"]
    config = ROOT / "conf" / "demo.yaml"
    reranked = rerank(runner, Storage(), rerank_job(load_config(config, settings), "r", Storage()))
    words = [word for setting in settings for word in ("--set", setting)]
    invoke(evaluate, "--config", str(config), "--run-id", "r", *words)
    left = folder / "out" / "runs" / "r"
    rankings: dict[str, list[tuple[str, float]]] = {}
    for row in pq.read_table(folder / "out" / "ranked" / "run_id=r", partitioning=None).to_pylist():
        rankings.setdefault(row["query_id"], []).append((row["doc_id"], row["logit"]))
    evaluated = json.loads((left / "evaluation.json").read_text("utf-8"))
    return Run(ingested, reranked, evaluated, rankings, (left / "report.html").read_text("utf-8"))


def test_every_candidate_of_every_benchmark_is_ranked(run: Run):
    candidates = sum(summary["tables"]["candidates"]["rows"] for summary in run.ingested.values())
    assert run.reranked["published"] is True
    assert (run.reranked["rejected"], run.reranked["candidates"]) == (0, candidates)
    assert run.reranked["scored"] + run.reranked["reused"] == candidates, "some benchmarks have a text twice"
    assert {layout: one["layout"] for layout, one in run.ingested.items()} == {layout: layout for layout in LAYOUTS}


@pytest.mark.parametrize("name", MEASURES)
def test_the_headline_is_what_the_benchmark_itself_counts(run: Run, name: str):
    measure, datasets = MEASURES[name], JUDGED[name]
    expected = {
        dataset: mean(
            mean(measure([doc for doc, _ in run.rankings.get(query, [])], judged) for query, judged in queries.items())
            for queries in subsets.values()
        )
        for dataset, subsets in datasets.items()
    }
    result = run.benchmark(name)
    assert {dataset["name"]: dataset["reranked"] for dataset in result["datasets"]} == pytest.approx(expected, abs=1e-6)
    assert result["reranked"] == pytest.approx(mean(expected.values()), abs=1e-6)
    queries = sum(len(queries) for subsets in datasets.values() for queries in subsets.values())
    assert result["queries"] == queries, "queries that find nothing count"


def test_winoground_is_scored_as_its_authors_do(run: Run):
    def score(query: str, document: str) -> float:
        return dict(run.rankings[query])[document]

    text, image = [], []
    for k in "01":
        text.append(
            score(f"{k}:i0", f"{k}:c0") > score(f"{k}:i0", f"{k}:c1")
            and score(f"{k}:i1", f"{k}:c1") > score(f"{k}:i1", f"{k}:c0")
        )
        image.append(
            score(f"{k}:c0", f"{k}:i0") > score(f"{k}:c0", f"{k}:i1")
            and score(f"{k}:c1", f"{k}:i1") > score(f"{k}:c1", f"{k}:i0")
        )
    group = [both == (True, True) for both in zip(text, image, strict=True)]
    result = run.benchmark("winoground")
    assert result["details"] == {"text": mean(text), "image": mean(image), "group": mean(group)}
    assert result["reranked"] == pytest.approx(mean([mean(text), mean(image), mean(group)]))


def test_the_rankings_differ_enough_for_the_figures_to_tell_something(run: Run):
    figures = {dataset["reranked"] for name in MEASURES for dataset in run.benchmark(name)["datasets"]}
    assert len(figures) > 5
    assert not figures <= {0.0, 1.0}


def test_the_report_shows_every_benchmark(run: Run):
    for title in (
        "BEIR",
        "CoIR",
        "MIRACL",
        "MLDR",
        "MKQA",
        "ViDoRe v1",
        "ViDoRe v2",
        "ViDoRe v3",
        "M-BEIR",
        "Winoground",
    ):
        assert title in run.report
