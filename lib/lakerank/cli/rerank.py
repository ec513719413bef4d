"""`jobs/rerank.py`: plan, score, rank, audit and publish."""

from __future__ import annotations

import getpass
import logging
from collections.abc import Sequence
from dataclasses import replace
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
@click.option(
    "--publish-anyway",
    "reason",
    metavar="REASON",
    help="Publish although an audit fails, because you know better. The manifest keeps the reason, who gave it, and "
    "what failed; where everything passes it says nothing.",
)
@click.option("--by", default=None, help="Who knows better.  [default: the user who runs the job]")
@verbose_option
def rerank(
    config_path: Path,
    overrides: Sequence[str],
    run_id: str,
    stages: str,
    reason: str | None,
    by: str | None,
    verbose: bool,
) -> None:
    """Rerank the candidates of a lake: plan, score, rank, audit, publish.

    Reads documents, queries and candidates, scores every pair that has no score yet, and publishes ranked, labelled
    lists together with every pair that could not be scored and why.
    """

    def work() -> dict[str, Any]:
        from lakerank.lake.runs import check_run_id

        config = load_config(config_path, overrides)
        check_run_id(run_id)
        summary = _rerank(config, run_id, _parse_stages(stages), _override(reason, by))
        # has_qrels tells a scheduler, which reads no config, whether there is anything to evaluate by.
        return summary | {"has_qrels": config.lake.qrels is not None}

    run_job(work, verbose)


def _override(reason: str | None, by: str | None) -> tuple[str, str] | None:
    """Why to publish whatever the audit says, and who says so; None when nobody does."""
    if reason is None:
        return None
    if not reason.strip():
        raise ConfigError(["--publish-anyway: say why; the manifest keeps the reason"])
    try:
        return reason.strip(), by or getpass.getuser()
    except (KeyError, OSError) as error:  # a container's user may have no name; OSError from Python 3.13
        raise ConfigError(["--publish-anyway: the user who runs the job has no name; say --by NAME"]) from error


def _parse_stages(stages: str) -> list[str]:
    known = ("plan", "score", "publish")
    wanted = [stage.strip() for stage in stages.split(",") if stage.strip()]
    unknown = [stage for stage in wanted if stage not in known]
    if unknown or not wanted:
        raise ConfigError([f"--stage {stages}: expected any of {', '.join(known)}, separated by commas"])
    return [stage for stage in known if stage in wanted]


def _rerank(config: Config, run_id: str, stages: Sequence[str], override: tuple[str, str] | None) -> dict[str, Any]:
    from lakerank.spark.job import rerank_job
    from lakerank.spark.publish import Override
    from lakerank.spark.run import already_published, run
    from lakerank.spark.runtime import session

    job = rerank_job(config, run_id)
    if override is not None:
        job = replace(job, rules=replace(job.rules, override=Override(*override)))
    published = already_published(storage_of(config), job)
    if published is not None:
        return published
    logger.info("starting Spark")
    spark = session.start(config.spark.app_name, config.spark.conf, config.spark.partitions)
    try:
        return run(spark, storage_of(config), job, stages)
    finally:
        spark.stop()
