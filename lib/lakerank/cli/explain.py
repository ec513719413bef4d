"""`lakerank explain`: a run into the parts of its documents that carried their scores."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from lakerank.cli import resolve
from lakerank.cli.job import Job, job_runner
from lakerank.config import EnsembleConfig
from lakerank.errors import ConfigError
from lakerank.lake.publication import find_run
from lakerank.lake.runs import RunPaths


@click.command(cls=Job)
@click.option("--run-id", default="current", show_default=True, help="The published run.")
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="Documents of each list.")
@click.option(
    "--queries", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="The ids of the queries whose lists to explain, one a line.  [default: all]",
)  # fmt: skip
def explain(given: resolve.CommandLine, run_id: str, top: int, queries: Path | None) -> dict[str, Any]:
    """Say which parts of documents carried their scores: passages of texts, boxes of images.

    Tables, settings and rerankers are those that the run was made with: --config says where the output is. Writes
    explanations/run_id=…/ beside ranked/; called again it goes on, and explains only pairs that are not explained yet.
    docs/explanations.md has the columns, the method, and what it is worth.

    The last line of standard output is a JSON object: run_id, pairs (asked for), found (explained before), explained,
    faithful (those that passed their own deletion test), rows, not_explained (by reason), unknown_queries (ids of
    --queries without a list in the run), explanations, seconds.
    """
    from lakerank.explain.job import Request, explain_run

    started, output = time.monotonic(), given.config.lake.output
    storage = resolve.storage(given.config.lake)
    paths = RunPaths(output, find_run(storage, output, run_id))
    config = resolve.run_config(storage, given, paths.run_id)
    storage = resolve.storage(config.lake, storage.pins)
    if isinstance(config.model, EnsembleConfig):
        raise ConfigError([f"run {paths.run_id!r}: several rerankers made each of its scores, and none explains them"])
    job = resolve.rerank_job(config, paths.run_id, storage)
    request = Request(paths, job.tables, job.stages, top, None if queries is None else _query_ids(queries))
    with job_runner(config.spark, lambda: True) as runner:
        summary = explain_run(runner, storage, request)
    return {"run_id": paths.run_id, **summary, "seconds": round(time.monotonic() - started, 3)}


def _query_ids(file: Path) -> frozenset[str]:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        fault = f"--queries {file}: not UTF-8 ({error}); name a text file with the id of a query a line"
        raise ConfigError([fault]) from error
    ids = frozenset(line for line in lines if line.strip())
    if not ids:
        raise ConfigError([f"--queries {file}: empty; write the id of a query a line, or leave it out for all"])
    return ids
