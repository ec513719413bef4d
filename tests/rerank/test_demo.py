"""conf/demo.yaml unchanged: the whole bundled lake through the bundled checkpoint, and what README says of it."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lakerank.cli.resolve import rerank_job
from lakerank.config import load_config
from lakerank.lake.storage import Storage
from lakerank.rerank.run import run
from lakerank.runner import LocalRunner, Runner
from lakerank_evaluation.inputs import LakeTables, find_inputs
from lakerank_evaluation.job import evaluate_run

ROOT = Path(__file__).parents[2]


def test_the_demo_has_the_figures_of_readme(runner: Runner, storage: Storage, tmp_path: Path) -> None:
    config = load_config(ROOT / "conf" / "demo.yaml", [f"lake.output={tmp_path}"])
    job = rerank_job(config, "demo", storage)
    summary = run(runner, storage, job)
    assert (summary["published"], summary["rejected"], summary["warnings"]) == (True, 0, [])
    ranked = pq.read_table(tmp_path / "ranked" / "run_id=demo", partitioning=None)
    assert ranked.num_rows == summary["scored"] + summary["reused"] == summary["candidates"] > 10_000

    lake = config.lake.located()
    tables = LakeTables(lake.documents, lake.queries, lake.candidates, str(lake.qrels))
    overall = evaluate_run(LocalRunner(), storage, find_inputs(storage, tables, job.paths)).evaluation.overall
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^all +(\d+) +(.*)$", readme, re.MULTILINE)
    assert overall.queries == int(line[0])
    stages = (overall.random, overall.first_stage, overall.reranked)
    figures = [stage[metric] for metric in ("nDCG@10", "Recall@10") for stage in stages]
    assert figures == pytest.approx([float(figure) for figure in line[1].split()], abs=0.002)
    assert Path(job.paths.report).stat().st_size > 10_000
