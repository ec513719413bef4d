"""`jobs/evaluate.py`: a run and judgements into figures and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lakerank.cli.job import EPILOG, config_option, run_job, set_option, storage_of, verbose_option
from lakerank.config import load_config
from lakerank.errors import ConfigError, DependencyError


@click.command(epilog=EPILOG)
@config_option
@set_option
@click.option("--run-id", required=True, help="The published run to judge.")
@click.option(
    "--examples",
    type=click.IntRange(min=0, max=12),
    default=8,
    show_default=True,
    help="Queries printed with the tops of their lists before and after reranking.",
)
@verbose_option
def evaluate(config_path: Path, overrides: tuple[str, ...], run_id: str, examples: int, verbose: bool) -> None:
    """Judge a run by the lake's qrels: metrics, and a report to look at.

    Compares the reranked lists with the first stage's order and with chance, over all queries and by the columns
    `task`, `slice` and `language` of the queries table where it has them. Writes into the run's folder:

    \b
    report.html       one page that needs nothing else: figures, plots, examples with thumbnails
    evaluation.json   the figures

    and prints a few queries before and after, with nDCG@10 and Recall@10 by task. The last line of standard output is
    a JSON object: run_id, queries, chance, first_stage (null when the candidates have no order), reranked,
    report, evaluation, seconds.
    """

    def work() -> dict[str, Any]:
        config = load_config(config_path, overrides)
        lake = config.lake
        if lake.qrels is None:
            raise ConfigError(["lake.qrels is not set: a run is judged by relevance judgements"])
        try:
            from lakerank.evaluation.inputs import LakeTables, find_inputs
            from lakerank.evaluation.job import evaluate_run
            from lakerank.evaluation.terminal import terminal_table
        except ImportError as error:
            raise DependencyError(f"{error}: pip install 'lakerank[report]'") from error
        from lakerank.lake.runs import RunPaths, check_run_id

        check_run_id(run_id)
        tables = LakeTables(lake.documents, lake.queries, lake.candidates, lake.qrels)
        storage = storage_of(config)
        done = evaluate_run(storage, find_inputs(storage, tables, RunPaths(lake.output, run_id)))
        click.echo(terminal_table(done.evaluation, done.examples[:examples]))
        click.echo(f"Report: {done.report}\n")
        return done.summary()

    run_job(work, verbose)
