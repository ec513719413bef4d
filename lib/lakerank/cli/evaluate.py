"""`jobs/evaluate.py`: a run and judgements into figures and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakerank.cli.job import EPILOG, config_option, run_job, set_option, storage_of, verbose_option
from lakerank.config import Config, RoutedConfig, load_config
from lakerank.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from lakerank.evaluation.inputs import Inputs
    from lakerank.evaluation.job import Evaluated
    from lakerank.lake.storage import Storage

#: Above so many rows of queries, qrels, candidates and ranked lists together, Spark judges; below, this process does.
IN_PROCESS_ROWS = 2_000_000


@click.command(epilog=EPILOG)
@config_option
@set_option
@click.option("--run-id", required=True, help="The published run to judge.")
@click.option("--against", metavar="RUN", help="Another run of the same output folder, to hold this one against.")
@click.option(
    "--fit-labels",
    is_flag=True,
    help="Fit ranking.label_thresholds to the judgements, say how far such labels agree with them, and write the "
    "config with them.",
)
@click.option(
    "--fit-calibration",
    is_flag=True,
    help="Fit the calibration of two rerankers (model.text, model.image) to the judgements, and write the config with "
    "it: for pairs of texts and for pairs with an image, the scale and bias that make relevance a probability.",
)
@click.option(
    "--spark/--no-spark",
    "in_spark",
    default=None,
    help=f"Where to judge. The figures are the same.  [default: in Spark above {IN_PROCESS_ROWS:,} rows]",
)
@click.option(
    "--examples",
    type=click.IntRange(min=0, max=12),
    default=8,
    show_default=True,
    help="Queries printed with the tops of their lists before and after reranking.",
)
@verbose_option
def evaluate(
    config_path: Path,
    overrides: tuple[str, ...],
    run_id: str,
    against: str | None,
    fit_labels: bool,
    fit_calibration: bool,
    in_spark: bool | None,
    examples: int,
    verbose: bool,
) -> None:
    """Judge a run by the lake's qrels: metrics, and a report to look at.

    Compares the reranked lists with the first stage's order and with chance, over all queries, by the columns
    `dataset`, `task`, `slice` and `language` of the queries table where it has them, and by what queries and candidates
    hold. Writes into the run's folder, over what an earlier evaluation wrote:

    \b
    report.html       one page that needs nothing else: figures, plots, examples with thumbnails
    evaluation.json   the figures
    evaluation/       the figures as CSV, query by query as Parquet; the plots as PNG
    evaluation/fitted.yaml   with --fit-labels or --fit-calibration: the whole config with what was fitted

    and prints a few queries before and after, with nDCG@10 and Recall@10 by task. The last line of standard output is
    a JSON object: run_id, queries, chance, first_stage (null when the candidates have no order), reranked, gain,
    against, benchmarks, modality_gap, labels, calibration, report, evaluation, seconds.
    """

    def work() -> dict[str, Any]:
        config = load_config(config_path, overrides)
        if fit_labels and fit_calibration:
            raise ConfigError(["--fit-labels: labels are fitted to a run whose relevance is calibrated; do that later"])
        try:
            from lakerank.evaluation.job import evaluate_run
            from lakerank.evaluation.report.terminal import fit_lines, scale_lines, terminal_table
        except ImportError as error:
            raise DependencyError(f"{error}: pip install 'lakerank[report]'") from error

        storage = storage_of(config)
        inputs = _inputs(storage, config, run_id, against)
        if inputs.rows > IN_PROCESS_ROWS if in_spark is None else in_spark:
            done = _in_spark(storage, inputs, config)
        else:
            done = evaluate_run(storage, inputs)
        click.echo(terminal_table(done.evaluation, done.examples[:examples]))
        fitted = _fit_labels(storage, done, config) if fit_labels else None
        if fitted is not None:
            click.echo(fit_lines(fitted))
        scales = _fit_calibration(storage, done, config) if fit_calibration else None
        if scales is not None:
            click.echo(scale_lines(scales))
        click.echo(f"Report: {done.report}\n")
        return done.summary() | {"labels": fitted, "calibration": scales}

    run_job(work, verbose)


def _inputs(storage: Storage, config: Config, run_id: str, against: str | None) -> Inputs:
    from lakerank.evaluation.inputs import LakeTables, find_inputs
    from lakerank.lake.runs import RunPaths, check_run_id

    lake = config.lake
    if lake.qrels is None:
        raise ConfigError(["lake.qrels is not set: a run is judged by relevance judgements"])
    for one in (run_id, against):
        if one is not None:
            check_run_id(one)
    tables = LakeTables(lake.documents, lake.queries, lake.candidates, lake.qrels)
    other = RunPaths(lake.output, against) if against else None
    return find_inputs(storage, tables, RunPaths(lake.output, run_id), other)


def _in_spark(storage: Storage, inputs: Inputs, config: Config) -> Evaluated:
    from lakerank.evaluation.job import evaluate_run
    from lakerank.spark.evaluate import judge_in_spark
    from lakerank.spark.runtime import session

    spark = session.start(config.spark.app_name, config.spark.conf, config.spark.partitions)
    try:
        return evaluate_run(storage, inputs, judge_in_spark(spark))
    finally:
        spark.stop()


def _fit_labels(storage: Storage, done: Evaluated, config: Config) -> dict[str, Any]:
    """Fit thresholds, write the config that has them, and say how they do."""
    from lakerank.evaluation.analysis.labels import fit, judged_pairs
    from lakerank.evaluation.report.query_figures import folder
    from lakerank.lake.storage import join

    fitted = fit(judged_pairs(done.evaluation.samples))
    ranking = config.ranking.model_copy(update={"label_thresholds": fitted.thresholds})
    address = join(folder(done.evaluation.inputs.paths), "fitted.yaml")
    storage.replace(address, config.model_copy(update={"ranking": ranking}).to_yaml().encode())
    return {**fitted.as_dict(), "config": address}


def _fit_calibration(storage: Storage, done: Evaluated, config: Config) -> dict[str, Any]:
    """Fit scales, write the config that has them (where it names two rerankers), and say how they do."""
    from lakerank.evaluation.analysis.calibration import fit_scales
    from lakerank.evaluation.report.query_figures import folder
    from lakerank.lake.storage import join

    fits = fit_scales(done.evaluation.samples)
    address = None
    if isinstance(config.model, RoutedConfig):
        model = config.model.rescaled({name: (fit.scale, fit.bias) for name, fit in fits.items() if fit})
        address = join(folder(done.evaluation.inputs.paths), "fitted.yaml")
        storage.replace(address, config.model_copy(update={"model": model}).to_yaml().encode())
    return {**{name: fit and fit.as_dict() for name, fit in fits.items()}, "config": address}
