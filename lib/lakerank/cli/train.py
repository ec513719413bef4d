"""`jobs/train.py`: lake tables into a checkpoint or an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lakerank.cli.job import CONFIG_FILE, EPILOG, Job, run_job, set_option, spark_session, verbose_option
from lakerank.config import SparkConfig
from lakerank.errors import DependencyError


@click.command(cls=Job, epilog=EPILOG)
@click.option(
    "--config", "config_path", required=True, type=CONFIG_FILE, metavar="FILE",
    help="Config file (YAML) of a training, such as conf/train-clicks.yaml.",
)  # fmt: skip
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
    command resumes after a kill), metrics.jsonl, progress.png and config.yaml. The summary has steps, resumed_at,
    seconds and the last held-out figures.
    """

    def work() -> dict[str, Any]:
        try:
            from lakerank.training.config import load_train_config
            from lakerank.training.run import run_training
        except ImportError as error:
            raise DependencyError(f"{error}: pip install 'lakerank[train]'") from error

        config = load_train_config(config_path, overrides)
        if processes is None:
            result = run_training(config)
        else:
            from lakerank.spark.train import train_on

            with spark_session(SparkConfig(app_name="lakerank-train")) as spark:
                result = train_on(spark, run_training, config, processes)
        return {**asdict(result), "output": config.output}

    run_job(work, verbose)


if __name__ == "__main__":
    train()
