"""`jobs/rerank.py`: plan, score, rank, audit and publish."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lakerank.cli.job import EPILOG, config_option, run_job, set_option, storage_of, verbose_option
from lakerank.config import Config, load_config
from lakerank.errors import ConfigError

logger = logging.getLogger(__name__)


@click.command(epilog=EPILOG)
@config_option
@set_option
@click.option(
    "--run-id",
    required=True,
    help="Names the run. The same id goes on where an earlier attempt stopped; a published run is left as it is.",
)
@click.option(
    "--stage",
    "stages",
    default="plan,score,publish",
    show_default=True,
    metavar="STAGES",
    help="Which of plan, score and publish to run. plan says what the run will cost; only score needs a GPU.",
)
@verbose_option
def rerank(config_path: Path, overrides: Sequence[str], run_id: str, stages: str, verbose: bool) -> None:
    """Rerank the candidates of a lake: plan, score, rank, audit, publish.

    Reads documents, queries and candidates, scores every pair that has no score yet, and publishes ranked, labelled
    lists together with every pair that could not be scored and why.
    """

    def work() -> dict[str, Any]:
        from lakerank.lake.runs import check_run_id

        config = load_config(config_path, overrides)
        check_run_id(run_id)
        # has_qrels tells a scheduler, which reads no config, whether there is anything to evaluate by.
        return _rerank(config, run_id, _parse_stages(stages)) | {"has_qrels": config.lake.qrels is not None}

    run_job(work, verbose)


def _parse_stages(stages: str) -> list[str]:
    known = ("plan", "score", "publish")
    wanted = [stage.strip() for stage in stages.split(",") if stage.strip()]
    unknown = [stage for stage in wanted if stage not in known]
    if unknown or not wanted:
        raise ConfigError([f"--stage {stages}: expected any of {', '.join(known)}, separated by commas"])
    return [stage for stage in known if stage in wanted]


def _rerank(config: Config, run_id: str, stages: Sequence[str]) -> dict[str, Any]:
    from lakerank.spark import session
    from lakerank.spark.job import rerank_job
    from lakerank.spark.rerank import already_published, run

    job = rerank_job(config, run_id)
    published = already_published(storage_of(config), job)
    if published is not None:
        return published
    logger.info("starting Spark")
    spark = session.start(config.spark.app_name, config.spark.conf, config.spark.partitions)
    try:
        return run(spark, storage_of(config), job, stages)
    finally:
        spark.stop()
