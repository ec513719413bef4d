"""`jobs/train.py`: lake tables into a checkpoint or an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lakerank.cli.job import EPILOG, config_option, run_job, set_option, verbose_option


@click.command(epilog=EPILOG)
@config_option
@set_option
@verbose_option
def train(config_path: Path, overrides: Sequence[str], verbose: bool) -> None:
    """Train a reranker on lake tables: documents, queries and qrels.

    Leaves in the config's `output`: checkpoint/ (loadable by every job), state/ (from which the same command goes on
    after a kill), metrics.jsonl and config.yaml. The summary has steps, resumed_at, seconds and the last held-out
    figures.
    """

    def work() -> dict[str, Any]:
        from lakerank.training.config import load_train_config
        from lakerank.training.run import run_training

        config = load_train_config(config_path, overrides)
        outcome = run_training(config)
        return {**asdict(outcome), "output": config.output}

    run_job(work, verbose)
