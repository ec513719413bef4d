"""`lakerank export`: a published run, or its changes since another run, in the format of an index or a tool."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

import click

from lakerank.cli import resolve
from lakerank.cli.job import Job, job_runner, other_tables_option
from lakerank.config import Config
from lakerank.credentials import redacted
from lakerank.errors import ConfigError
from lakerank.export.format import PartLimits, Target
from lakerank.export.job import FORMATS, TABLES, Export, export_table, finished, row_count, summary
from lakerank.export.write import export_run
from lakerank.lake.publication import find_run
from lakerank.lake.runs import check_run_id

logger = logging.getLogger(__name__)

GOLDEN_PAIRS = "golden-pairs"


@click.command(cls=Job)
@click.option("--run-id", default="current", help="The published run.")
@click.option("--format", required=True, type=click.Choice([*FORMATS, *TABLES]), help="See docs/export.md.")
@click.option(
    "--to", required=True, metavar="URI", help="An empty folder, local or in an object store; a table's address."
)
@click.option("--since", metavar="RUN", help="Export only lists that changed since this run; delete removed ones.")
@click.option("--depth", type=click.IntRange(min=1), help="Documents of each query.  [default: all ranked ones]")
@click.option("--name", help="Index of a bulk request, tag of a TREC run, or Vespa's namespace:document type.")
@click.option("--field", default="lakerank", help="Field that a document update sets.")
@click.option("--pairs", type=click.IntRange(min=1), help="Pairs in golden-pairs.  [default: 256]")
@click.option("--part-rows", type=click.IntRange(min=1), default=1_000_000, help="Most rows of a file.")
@click.option(
    "--part-bytes", type=click.IntRange(min=1), default=64 * 2**20,
    help="Most bytes of a file, before compression. A list is never split.",
)  # fmt: skip
@other_tables_option
def export(
    given: resolve.CommandLine, run_id: str, since: str | None, other_tables: bool, **options: Any
) -> dict[str, Any]:
    """Write a published run in the format of an index or a tool.

    Texts of queries and scores of the first stage are from the tables that the run was made from, as its folder says:
    --config says where the output is.

    Writes files named part-… and finally _manifest.json, which lists them: a file that it does not list is not part of
    the export. Repeating the command does nothing; into another folder it writes the same bytes.
    """

    started, output = time.monotonic(), given.config.lake.output
    _check(run_id, since, **options)
    storage = resolve.storage(given.config.lake)
    run_id, since = find_run(storage, output, run_id), since and find_run(storage, output, since)
    config = resolve.run_config(storage, given, run_id, other_tables)
    storage = resolve.storage(config.lake, storage.pins)
    job = _job(config, run_id=run_id, since=since, **options)
    if job.format in TABLES:
        return export_table(storage, job, started)
    manifest = finished(storage, job)
    if manifest is not None:
        logger.info("export: %s holds this export already: nothing to do", job.to)
        return summary(job, manifest, started)
    storage.check_writable(job.to)
    with job_runner(config.spark, lambda: row_count(storage, job) <= config.spark.local_pairs) as runner:
        return summary(job, export_run(runner, storage, job), started)


def _job(config: Config, name: str | None, field: str, part_rows: int, part_bytes: int, **options: Any) -> Export:
    """The export that the options describe."""
    lake, target, limits = config.lake.located(), Target(name, field), PartLimits(part_rows, part_bytes)
    job = Export(
        output=lake.output, queries=lake.queries, candidates=lake.candidates, target=target, limits=limits, **options
    )
    return replace(job, pairs=job.pairs or 256) if job.format == GOLDEN_PAIRS else job


def _check(run_id: str, since: str | None, **options: Any) -> None:
    """Check what click cannot see.

    Raises:
        ConfigError: everything wrong.
    """
    faults: list[str] = []
    for given in (run_id, since):
        try:
            check_run_id(given or "none")
        except ConfigError as error:
            faults += error.faults
    form, name = options["format"], options["name"]
    if form in TABLES and since:
        faults.append(f"--since: {form} replaces a whole table in one commit; leave it out")
    if form in TABLES and not options["to"].startswith(TABLES[form]):
        faults.append(f"--to {redacted(options['to'])}: expected a table's address, {TABLES[form]}…")
    if form == GOLDEN_PAIRS and since:
        faults.append("--since: golden pairs are a sample of one run")
    if form != GOLDEN_PAIRS and options["pairs"]:
        faults.append(f"--pairs: only golden-pairs is a sample, {form} is the whole run")
    if form.startswith("vespa") and name and not all(name.partition(":")):
        faults.append(f"--name {name}: expected namespace:document type, as in mine:product")
    if faults:
        raise ConfigError(faults)
