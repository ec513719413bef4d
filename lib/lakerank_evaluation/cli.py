"""`lakerank evaluate`: a run and relevance judgements into metrics and a report."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from lakerank.cli import resolve
from lakerank.cli.job import Job, job_runner, other_tables_option
from lakerank.config import Config
from lakerank.errors import ConfigError, requires
from lakerank.lake.publication import find_run
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage

if TYPE_CHECKING:
    from lakerank_evaluation.inputs import Inputs

logger = logging.getLogger(__name__)

#: With more rows of queries, qrels, candidates and ranked lists together, Spark reads them; otherwise this process.
IN_PROCESS_ROWS = 2_000_000


@click.command(cls=Job)
@click.option("--run-id", default="current", help="The run to evaluate; `current` is published.")
@click.option("--against", metavar="RUN", help="A baseline run of the same output folder to compare with.")
@other_tables_option
@click.option(
    "--fit-labels", is_flag=True,
    help="Fit ranking.label_thresholds to the judgements, print the agreement of the labels with them, and write a "
    "config with the fitted thresholds.",
)  # fmt: skip
@click.option(
    "--fit-calibration", is_flag=True,
    help="Fit the calibration of two rerankers (model.text, model.image) to the judgements, and write a config with "
    "it: for pairs of texts and for pairs with an image, the scale and bias that make relevance a probability.",
)  # fmt: skip
@click.option(
    "--examples", type=click.IntRange(min=0, max=12), default=8,
    help="Queries printed with the tops of their lists before and after reranking.",
)  # fmt: skip
@click.option(
    "--position-bias", "lists", type=click.IntRange(min=1), metavar="LISTS",
    help="Where the last model scores lists: score so many again as they were given, reversed and shuffled.",
)  # fmt: skip
def evaluate(
    given: resolve.CommandLine, run_id: str, against: str | None, other_tables: bool, **more: Any
) -> dict[str, Any]:
    """Evaluate a run against the lake's qrels: metrics and a report.

    The tables are those that the run was made from, as its folder says: --config says where the output is. Other
    judgements are named with --set lake.qrels=….

    Compares the reranked lists with the first-stage lists and with a random baseline, over all queries, by the columns
    `dataset`, `task`, `slice` and `language` of the queries table where it has them, and by the modality of queries and
    candidates. Writes into the run's folder, replacing an earlier evaluation:

    \b
    report.html       one self-contained page: figures, plots, examples with thumbnails
    evaluation.json   the figures
    evaluation/       the figures as CSV, query by query as Parquet; the plots as PNG
    evaluation/fitted.yaml   with --fit-labels or --fit-calibration: the config with the fitted values

    With --against RUN their names end in -against-RUN, and an evaluation without it stays. Prints a few queries before
    and after, nDCG@10 and Recall@10 by task, and whether reranking helps. The last line of standard output is a JSON
    object: run_id, models, verdict (better, no difference shown, worse, …), queries, chance,
    ceiling, first_stage (null when the candidates have no order), reranked, gain, against, benchmarks, modality_gap,
    position_bias, labels, calibration, report, evaluation, seconds.
    """
    if more["fit_labels"] and more["fit_calibration"]:
        raise ConfigError(["--fit-labels: labels are fitted to calibrated relevance; fit them after the calibration"])
    with requires("report"):
        from lakerank_evaluation.job import evaluate_run
        from lakerank_evaluation.report.terminal import terminal_table
    storage, output = resolve.storage(given.config.lake.storage), given.config.lake.output
    baseline = RunPaths(output, find_run(storage, output, against)) if against else None
    paths = RunPaths(output, find_run(storage, output, run_id))
    config = resolve.run_config(storage, given, paths.run_id, other_tables)
    storage = resolve.storage(config.lake, storage.pins)
    if baseline and (names := resolve.other_tables(storage, config, baseline.run_id)):
        logger.warning("run %s was made from other tables than run %s: %s", baseline.run_id, paths.run_id, names)
    inputs = _inputs(storage, config, paths, baseline)
    if more["lists"]:
        from lakerank_evaluation.position_bias import position_bias

        job = resolve.rerank_job(config, paths.run_id, storage)
        inputs = replace(inputs, position_bias=position_bias(storage, job, inputs.tables.qrels, more["lists"]))
    with job_runner(config.spark, lambda: inputs.rows <= IN_PROCESS_ROWS) as runner:
        result = evaluate_run(runner, storage, inputs)
    click.echo(terminal_table(result.evaluation, result.examples[: more["examples"]]))
    fitted = {"labels": None, "calibration": None}
    fits = {name: more[name] for name in ("fit_labels", "fit_calibration")}
    if any(fits.values()):  # what learns is in the package above this one
        fitted |= import_module("lakerank_training.fits.configs").fit(storage, result, config, **fits)
    click.echo(f"Report: {result.report}\n")
    return result.summary() | fitted


def _inputs(storage: Storage, config: Config, paths: RunPaths, baseline: RunPaths | None) -> Inputs:
    from lakerank_evaluation.inputs import LakeTables, find_inputs

    lake = config.lake.located()
    if lake.qrels is None:
        raise ConfigError(
            [f"run {paths.run_id!r} was made without judgements, which an evaluation needs: --set lake.qrels=…"]
        )
    tables = LakeTables(lake.documents, lake.queries, lake.candidates, lake.qrels)
    return find_inputs(storage, tables, paths, baseline, [resolve.model_details(model) for model in config.rerankers])
