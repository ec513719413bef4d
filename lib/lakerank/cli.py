"""The command lines: arguments, logging, exit status and the last line of standard output. Heavy imports wait."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakerank.config import Config, load_config
from lakerank.errors import ConfigError, LakerankError

if TYPE_CHECKING:
    from lakerank.lake.storage import Storage

logger = logging.getLogger(__name__)

#: Exit statuses, as a scheduler reads them.
DONE, FAILED, WRONG_ARGUMENTS, NOT_PUBLISHED = 0, 1, 2, 3

EPILOG = (
    "Exit status: 0 done, 1 failed, 2 wrong arguments or config, 3 done but not published because an audit failed. "
    "Logs go to standard error; the last line of standard output is one JSON object."
)

config_option = click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Config file (YAML).",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one setting of the config; the value is read as YAML. May be given any number of times.",
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Log more, libraries included.")


def run_job(work: Callable[[], dict[str, Any]], verbose: bool = False) -> None:
    """Run a job's work, print its summary as the last line of standard output, and exit with its status."""
    _start_logging(verbose)
    try:
        summary, status = work(), DONE
        if summary.get("published") is False and "failed_audits" in summary:
            status = NOT_PUBLISHED
    except ConfigError as error:
        summary, status = _failure(error), WRONG_ARGUMENTS
    except LakerankError as error:
        summary, status = _failure(error), FAILED
    except KeyboardInterrupt:
        summary, status = {"error": "interrupted", "message": "stopped from the keyboard"}, FAILED
    except Exception as error:  # the last line must be JSON whatever happens; the log has the whole story
        traceback.print_exc(file=sys.stderr)
        summary, status = _failure(error), FAILED
    sys.stdout.flush()
    click.echo(json.dumps(summary, ensure_ascii=False, allow_nan=False))
    sys.exit(status)


def _failure(error: Exception) -> dict[str, Any]:
    name, message = type(error).__name__, _root_message(error)
    click.echo(f"{name}: {message}", err=True)
    return {"error": name, "message": message}


def _root_message(error: Exception) -> str:
    """A worker's LakerankError arrives wrapped in Spark's; its own last line is what a person needs."""
    lines = [line for line in str(error).splitlines() if line.startswith("lakerank.errors.")]
    return lines[-1].split(": ", 1)[-1] if lines else str(error)


def _start_logging(verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("lakerank").setLevel(logging.DEBUG if verbose else logging.INFO)
    if verbose:
        logging.getLogger().setLevel(logging.INFO)


def storage_of(config: Config) -> Storage:
    """The object storage that the config describes."""
    from lakerank.lake.storage import Storage, StorageOptions

    return Storage(StorageOptions(**config.lake.storage.model_dump()))


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
        return _rerank(config, run_id, _parse_stages(stages))

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
    from lakerank.spark.rerank import run

    job = rerank_job(config, run_id)
    spark = session.start(config.spark.app_name, config.spark.conf, config.spark.partitions)
    try:
        return run(spark, storage_of(config), job, stages)
    finally:
        spark.stop()
