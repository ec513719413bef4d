"""`lakerank clean`: list, and with --apply delete, what no kept run of a lake needs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import click

from lakerank.cli import resolve
from lakerank.cli.job import Job
from lakerank.config import Config
from lakerank.errors import CheckpointError
from lakerank.lake.clean import Retention, delete, describe, plan_cleaning

logger = logging.getLogger(__name__)


@click.command(cls=Job)
@click.option(
    "--keep-runs", type=click.IntRange(min=1), default=3, show_default=True,
    help="Published runs to keep: the current one and the latest.",
)  # fmt: skip
@click.option(
    "--keep-days", type=click.FloatRange(min=0), default=0, help="Also keep published runs younger than this."
)
@click.option(
    "--grace-hours", type=click.FloatRange(min=1), default=48, show_default=True,
    help="Keep an unpublished run that wrote a file within this time: it may still be running. Must exceed the longest "
    "time in which a job writes nothing.",
)  # fmt: skip
@click.option("--apply", is_flag=True, help="Delete the files. Without it they are only listed.")
def clean(
    given: resolve.CommandLine, keep_runs: int, keep_days: float, grace_hours: float, apply: bool
) -> dict[str, Any]:
    """List, and with --apply delete, files of the output folder that no kept run needs.

    These are: published runs beyond the retention; abandoned runs; plans and ranked files that no manifest names;
    temporary files; scores of models that neither a kept run nor this config uses; score files whose content is also
    in another file; the index of table files that no longer exist. Scores that a later run could reuse are kept, and
    so is every file that lakerank did not write.

    Safe to run next to a job: it stops when one starts. The last line of standard output is a JSON object: applied,
    listed and deleted (files and bytes), by_reason, kept_runs, complete, seconds.
    """
    started, config, lake = time.monotonic(), given.config, given.config.lake.located()
    storage = resolve.storage(lake.storage)
    retention = Retention(keep_runs, keep_days * 86400, grace_hours * 3600)
    tables = {"documents": lake.documents, "queries": lake.queries}
    plan = plan_cleaning(storage, lake.output, retention, _scorers(config), tables, time.time())
    for line in describe(lake.output, plan.deletions):
        click.echo(line)
    deleted: list[Any] = []
    complete = delete(storage, lake.output, plan, deleted.append) if apply else True
    if not complete:
        logger.warning("stopped: a job has started and may need the remaining files; run this again when it has ended")
    return {
        "applied": apply,
        "listed": _size(plan.deletions),
        "deleted": _size(deleted),
        "by_reason": dict(sorted(Counter(deletion.why for deletion in plan.deletions).items())),
        "kept_runs": list(plan.kept),
        "complete": complete,
        "seconds": round(time.monotonic() - started, 3),
    }


def _size(deletions: Iterable[Any]) -> dict[str, int]:
    sizes = [deletion.file.size for deletion in deletions]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _scorers(config: Config) -> list[str] | None:
    """Fingerprints of the config's scorers; None, which keeps all scores, if a model's checkpoint is not there."""
    limits = resolve.limits(config.scoring)
    try:
        return [resolve.model_spec(model).identify(limits).fingerprint for model in config.rerankers]
    except CheckpointError as error:
        logger.warning("scores of all models are kept, because this config's model cannot be identified: %s", error)
        return None
