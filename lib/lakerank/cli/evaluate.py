"""`lakerank evaluate`: a run and relevance judgements into metrics and a report."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from lakerank.cli import resolve
from lakerank.cli.job import Job, job_runner, other_tables_option
from lakerank.config import Config, RoutedConfig
from lakerank.errors import ConfigError, DependencyError
from lakerank.lake.publication import find_run
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, join

if TYPE_CHECKING:
    from lakerank.evaluation.inputs import Inputs
    from lakerank.evaluation.job import Evaluated

logger = logging.getLogger(__name__)

#: With more rows of queries, qrels, candidates and ranked lists together, Spark reads them; otherwise this process.
IN_PROCESS_ROWS = 2_000_000


@dataclass(frozen=True, slots=True)
class Options:
    """What to evaluate and what to fit."""

    run_id: str
    against: str | None
    fit_labels: bool
    fit_calibration: bool
    other_tables: bool
    examples: int


@click.command(cls=Job)
@click.option("--run-id", default="current", show_default=True, help="The run to evaluate; `current` is published.")
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
    "--examples", type=click.IntRange(min=0, max=12), default=8, show_default=True,
    help="Queries printed with the tops of their lists before and after reranking.",
)  # fmt: skip
def evaluate(given: resolve.CommandLine, **options: Any) -> dict[str, Any]:
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
    labels, calibration, report, evaluation, seconds.
    """
    return _evaluate(given, Options(**options))


def _evaluate(given: resolve.CommandLine, options: Options) -> dict[str, Any]:
    if options.fit_labels and options.fit_calibration:
        raise ConfigError(["--fit-labels: labels are fitted to calibrated relevance; fit them after the calibration"])
    try:
        from lakerank.evaluation.job import evaluate_run
        from lakerank.evaluation.report.terminal import fit_lines, scale_lines, terminal_table
    except ImportError as error:
        raise DependencyError(f"{error}: pip install 'lakerank[report]'") from error
    storage = resolve.storage(given.config.lake.storage)
    options = _existing(storage, given.config.lake.output, options)
    config = resolve.run_config(storage, given, options.run_id, options.other_tables)
    storage = resolve.storage(config.lake)
    if options.against and (names := resolve.other_tables(storage, config, options.against)):
        logger.warning("run %s was made from other tables than run %s: %s", options.against, options.run_id, names)
    inputs = _inputs(storage, config, options)
    with job_runner(config.spark, lambda: inputs.rows <= IN_PROCESS_ROWS) as runner:
        result = evaluate_run(runner, storage, inputs)
    click.echo(terminal_table(result.evaluation, result.examples[: options.examples]))
    labels = calibration = None
    if options.fit_labels:
        labels = _fit_labels(storage, result, config)
        click.echo(fit_lines(labels))
    if options.fit_calibration:
        calibration = _fit_calibration(storage, result, config)
        click.echo(scale_lines(calibration))
    click.echo(f"Report: {result.report}\n")
    return result.summary() | {"labels": labels, "calibration": calibration}


def _inputs(storage: Storage, config: Config, options: Options) -> Inputs:
    from lakerank.evaluation.inputs import LakeTables, find_inputs

    lake = config.lake.located()
    if lake.qrels is None:
        raise ConfigError(
            [f"run {options.run_id!r} was made without judgements, which an evaluation needs: --set lake.qrels=…"]
        )
    tables = LakeTables(lake.documents, lake.queries, lake.candidates, lake.qrels)
    baseline = RunPaths(lake.output, options.against) if options.against else None
    models = [resolve.model_details(model) for model in config.rerankers]
    return find_inputs(storage, tables, RunPaths(lake.output, options.run_id), baseline, models)


def _existing(storage: Storage, output: str, options: Options) -> Options:
    """The options with the ids of runs that exist, `current` resolved."""
    against = options.against and find_run(storage, output, options.against)
    return replace(options, run_id=find_run(storage, output, options.run_id), against=against)


def _fit_labels(storage: Storage, result: Evaluated, config: Config) -> dict[str, Any]:
    """Fit label thresholds and write the config with them."""
    from lakerank.evaluation.analysis.calibration import fit

    thresholds = fit(result.evaluation.pairs)
    ranking = config.ranking.model_copy(update={"label_thresholds": thresholds.thresholds})
    return {**thresholds.as_dict(), "config": _write_fitted(storage, result, config, {"ranking": ranking})}


def _fit_calibration(storage: Storage, result: Evaluated, config: Config) -> dict[str, Any]:
    """Fit logit scales and, if the config names two rerankers, write it with them."""
    from lakerank.evaluation.analysis.calibration import fit_scales

    fits = fit_scales(result.evaluation.pairs)
    address = None
    if isinstance(config.model, RoutedConfig):
        model = config.model.rescaled({name: (fit.scale, fit.bias) for name, fit in fits.items() if fit})
        address = _write_fitted(storage, result, config, {"model": model})
    return {**{name: fit and asdict(fit) for name, fit in fits.items()}, "config": address}


def _write_fitted(storage: Storage, result: Evaluated, config: Config, fitted: dict[str, Any]) -> str:
    """Write fitted.yaml, the config with fitted sections; returns its address."""
    from lakerank.evaluation.job import folder

    address = join(folder(result.evaluation.inputs.paths), "fitted.yaml")
    storage.replace(address, config.model_copy(update=fitted).to_yaml().encode())
    return address
