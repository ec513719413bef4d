"""`lakerank rerank`: plan, score, rank, audit and publish."""

from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from lakerank.cli import resolve
from lakerank.cli.job import Job, job_runner, on_cluster, when_interrupted
from lakerank.config import Config
from lakerank.errors import ConfigError, InputError
from lakerank.lake.runs import RunPaths, check_run_id
from lakerank.lake.scores import finished_units
from lakerank.lake.storage import join
from lakerank.lake.tables import fragments
from lakerank.plan.plan import load_plan, planned_units

STEPS = ("plan", "score", "publish")
#: Stands alone: it counts rows, and neither needs a run nor makes one.
CHECK = "check"


@click.command(cls=Job)
@click.option(
    "--run-id",
    help="Name of the run. The same name resumes an earlier attempt; a published run is not changed.  [default: the "
    "next of run-1, run-2, …]",
)  # fmt: skip
@click.option(
    "--stage", "steps", default=",".join(STEPS), metavar="STAGES",
    help="Which of plan, score and publish to run. plan prints a cost estimate; only score needs a GPU. check, alone, "
    "counts rows.",
)  # fmt: skip
@click.option(
    "--min-rows", multiple=True, metavar="TABLE=ROWS",
    help="With --stage check: the fewest rows that documents, queries or candidates may have. May be repeated.  "
    "[default: 1 each]",
)  # fmt: skip
@click.option(
    "--publish-anyway", "reason", metavar="REASON",
    help="Publish despite a failed audit. The manifest records the reason, who gave it and what failed; without a "
    "failure it records nothing.",
)  # fmt: skip
@click.option("--by", help="Who decided to publish anyway.  [default: the user who runs the job]")
def rerank(
    given: resolve.CommandLine, run_id: str | None, steps: str, min_rows: Sequence[str], **override: str | None
) -> dict[str, Any]:
    """Rerank the candidates of a lake: plan, score, rank, audit, publish.

    Reads documents, queries and candidates, scores every pair that has no score yet, and publishes ranked, labelled
    lists together with every pair that could not be scored and the reason.
    """

    config = given.config
    if steps.strip() == CHECK:
        return _check_rows(config, _row_bounds(min_rows))
    if min_rows:
        raise ConfigError([f"--min-rows needs --stage {CHECK}"])
    name = run_id or _next_run_id(config)
    when_interrupted(lambda: _finished(config, name))
    return rerank_lake(config, name, steps, **override)


def _row_bounds(given: Sequence[str]) -> dict[str, int]:
    """The fewest rows of each table.

    Raises:
        ConfigError: everything that is no TABLE=ROWS.
    """
    pairs = {text: text.partition("=")[::2] for text in given}
    faults = [
        f"--min-rows {text}: expected TABLE=ROWS, as in candidates=1000; tables are {', '.join(resolve.INPUTS)}"
        for text, (table, rows) in pairs.items()
        if table not in resolve.INPUTS or not re.fullmatch(r"[0-9]{1,18}", rows)
    ]
    if faults:
        raise ConfigError(faults)
    return dict.fromkeys(resolve.INPUTS, 1) | {table: int(rows) for table, rows in pairs.values()}


def _check_rows(config: Config, bounds: dict[str, int]) -> dict[str, Any]:
    """Rows of each table, by the footers of its files.

    Raises:
        InputError: every table that has too few.
        StorageError, SchemaError: a table cannot be read.
    """
    storage, tables = resolve.storage(config.lake), resolve.input_tables(config)
    rows = {
        name: sum(file.live_rows for file in fragments(storage, address, schema))
        for name, (address, schema) in tables.items()
    }
    few = [
        f"lake.{name}: {tables[name][0]} has {rows[name]} rows, expected at least {least}"
        for name, least in bounds.items()
        if rows[name] < least
    ]
    if few:
        raise InputError("\n".join(few))
    return {"rows": rows, "min_rows": bounds}


def _next_run_id(config: Config) -> str:
    names = resolve.storage(config.lake).list_names(join(config.lake.output, "runs"))
    numbers = [int(match[1]) for name in names if (match := re.fullmatch(r"run-(\d{1,9})", name))]
    return f"run-{max(numbers, default=0) + 1}"


def _finished(config: Config, run_id: str) -> dict[str, Any]:
    """What the first stage of a run that was interrupted has: its units, and how many of them have scores."""
    storage, paths = resolve.storage(config.lake), RunPaths(config.lake.output, run_id)
    plan = load_plan(storage, paths)
    if plan is None:
        return {"run_id": run_id, "units": None, "finished_units": 0}
    finished = finished_units(storage, config.lake.output, plan.scorer)
    count = len(finished.intersection(planned_units(storage, paths, plan)))
    return {"run_id": run_id, "units": plan.units, "finished_units": count}


def rerank_lake(
    config: Config, run_id: str, steps: str = ",".join(STEPS), reason: str | None = None, by: str | None = None
) -> dict[str, Any]:
    """Run the steps of a run; returns the job's summary."""
    from lakerank.rerank.run import already_published, check_start, run, table_rows
    from lakerank.spark.runtime.crash import check_tables_are_read

    check_run_id(run_id)
    chosen = _parse_steps(steps)
    override = _override(reason, by)
    storage = resolve.storage(config.lake)
    starts = "plan" in chosen and not storage.exists(RunPaths(config.lake.output, run_id).manifest)
    faults = resolve.input_faults(config, storage, on_cluster(config.spark)) if starts else []
    job = resolve.without_faults(faults, lambda: resolve.rerank_job(config, run_id, storage))
    job = replace(job, audit=replace(job.audit, override=override))
    summary = already_published(storage, job)
    if summary is None:
        if "plan" not in chosen:
            check_start(storage, job, chosen)  # before Spark starts
        with job_runner(config.spark, lambda: table_rows(storage, job) <= config.spark.local_pairs) as runner:
            try:
                summary = run(runner, storage, job, chosen)
            except Exception as error:
                check_tables_are_read(error, storage, resolve.input_tables(config))
                raise
    # has_qrels tells a scheduler, which reads no config, whether the run can be evaluated.
    return summary | {"has_qrels": config.lake.qrels is not None}


def _override(reason: str | None, by: str | None) -> Any:
    """The decision to publish despite failed audits; None without one."""
    from lakerank.rerank.publish import Override

    if reason is None:
        return None
    if not reason.strip():
        raise ConfigError(["--publish-anyway: say why; the manifest keeps the reason"])
    try:
        return Override(reason.strip(), by or getpass.getuser())
    except (KeyError, OSError) as error:  # a container's user may have no name; OSError from Python 3.13
        raise ConfigError(["--publish-anyway: the user who runs the job has no name; say --by NAME"]) from error


def _parse_steps(steps: str) -> list[str]:
    names = [step.strip() for step in steps.split(",") if step.strip()]
    if not names or not set(names) <= set(STEPS):
        expected = f"any of {', '.join(STEPS)}, separated by commas, or {CHECK} alone"
        raise ConfigError([f"--stage {steps}: expected {expected}"])
    return [step for step in STEPS if step in names]
