"""`jobs/clean.py`: list, and with --apply delete, what no kept run of a lake needs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from lakerank.cli.job import EPILOG, config_option, run_job, set_option, storage_of, verbose_option
from lakerank.config import Config, load_config
from lakerank.errors import CheckpointError

logger = logging.getLogger(__name__)


@click.command(epilog=EPILOG)
@config_option
@set_option
@click.option(
    "--keep-runs",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Published runs to keep: the current one and the latest.",
)
@click.option("--keep-days", type=click.FloatRange(min=0), default=0, help="Keep younger published runs as well.")
@click.option(
    "--grace-hours",
    type=click.FloatRange(min=1),
    default=48,
    show_default=True,
    help="A run without a manifest that wrote something within this time may be running: it is kept. Longer than the "
    "longest time in which a job writes nothing.",
)
@click.option("--apply", is_flag=True, help="Delete. Without it files are only listed.")
@verbose_option
def clean(
    config_path: Path,
    overrides: tuple[str, ...],
    keep_runs: int,
    keep_days: float,
    grace_hours: float,
    apply: bool,
    verbose: bool,
) -> None:
    """List, and with --apply delete, what no kept run needs in the output folder.

    That is: published runs beyond the retention; runs that were given up; attempts at a plan and ranked files that no
    manifest names; temporary files; scores of models that no kept run and not this config uses; unit files whose
    scores all stand in another; the index of table files that are gone. Scores that a next run could use again are
    kept, and so is every file that lakerank did not write.

    May run beside a job: it stops when one starts meanwhile. The last line of standard output is a JSON object:
    applied, listed and deleted (files and bytes), by_reason, kept_runs, complete, seconds.
    """

    def work() -> dict[str, Any]:
        from lakerank.lake.retention import Retention

        config = load_config(config_path, overrides)
        return _clean(config, Retention(keep_runs, keep_days * 86400, grace_hours * 3600), apply)

    run_job(work, verbose)


def _clean(config: Config, retention: Any, apply: bool) -> dict[str, Any]:
    from lakerank.lake.clean import delete, describe, survey

    started, storage, output = time.monotonic(), storage_of(config), config.lake.output
    tables = {"documents": config.lake.documents, "queries": config.lake.queries}
    found = survey(storage, output, retention, _scorers(config), tables, time.time())
    for line in describe(output, found.garbage):
        click.echo(line)
    gone: list[Any] = []
    complete = delete(storage, output, found, gone.append) if apply else True
    if not complete:
        logger.warning("a job has started meanwhile and may need what is left: run this again when it has ended")
    reasons = Counter(item.why for item in found.garbage)
    return {
        "applied": apply,
        "listed": _counted(found.garbage),
        "deleted": _counted(gone),
        "by_reason": dict(sorted(reasons.items())),
        "kept_runs": [run.run_id for run in found.runs if run.kept],
        "complete": complete,
        "seconds": round(time.monotonic() - started, 3),
    }


def _counted(garbage: Iterable[Any]) -> dict[str, int]:
    sizes = [item.file.size for item in garbage]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _scorers(config: Config) -> list[str] | None:
    """The scorers that the config makes; None, and every scorer's scores are kept, when a model of it is not here."""
    from lakerank.limits import Limits
    from lakerank.model.spec import model_spec

    limits = Limits(**config.scoring.limits())
    try:
        return [model_spec(model.source()).identify(limits).fingerprint for model in config.rerankers]
    except CheckpointError as error:
        logger.warning("scores of all models are kept, since this config's cannot be told from the others: %s", error)
        return None
