"""`jobs/train.py`: lake tables into a checkpoint or an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakerank.cli.job import EPILOG, config_option, run_job, set_option, verbose_option
from lakerank.errors import DependencyError

if TYPE_CHECKING:
    from lakerank.training.config import TrainConfig
    from lakerank.training.trainer import TrainingResult


@click.command(epilog=EPILOG)
@config_option
@set_option
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Train in so many processes on Spark (its TorchDistributor). Under torchrun this is not needed.",
)
@verbose_option
def train(config_path: Path, overrides: Sequence[str], processes: int | None, verbose: bool) -> None:
    """Train a reranker on lake tables: documents, queries and qrels.

    Leaves in the config's `output`: checkpoint/ (loadable by every job) or adapter/, state/ (from which the same
    command goes on after a kill), metrics.jsonl, progress.png and config.yaml. The summary has steps, resumed_at,
    seconds and the last held-out figures.
    """

    def work() -> dict[str, Any]:
        try:
            from lakerank.training.config import load_train_config
            from lakerank.training.run import run_training
        except ImportError as error:
            raise DependencyError(f"{error}: pip install 'lakerank[train]'") from error

        config = load_train_config(config_path, overrides)
        result = run_training(config) if processes is None else _on_spark(config, processes)
        return {**asdict(result), "output": config.output}

    run_job(work, verbose)


def _on_spark(config: TrainConfig, processes: int) -> TrainingResult:
    from lakerank.spark.runtime import session
    from lakerank.spark.train import train_on
    from lakerank.training.run import run_training

    spark = session.start("lakerank-train", {}, None)
    try:
        result: TrainingResult = train_on(spark, run_training, config, processes)
        return result
    finally:
        spark.stop()
