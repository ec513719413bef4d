"""`lakerank export`: a published run, or its changes since another run, in the format of an index or a tool."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakerank.cli.job import EPILOG, Job, config_option, job_runner, run_job, set_option, verbose_option
from lakerank.config import Config, load_config
from lakerank.errors import ConfigError

if TYPE_CHECKING:
    from lakerank.export.job import Export

logger = logging.getLogger(__name__)

#: The names of lakerank.export.job, without an import of pyarrow for --help.
FORMATS = (
    "trec-run", "trec-qrels", "quepid-csv", "ltr-judgements", "svmrank", "opensearch-lists", "opensearch-documents",
    "vespa-lists", "vespa-documents", "parquet", "csv", "golden-pairs",
)  # fmt: skip
GOLDEN_PAIRS = "golden-pairs"


@click.command(cls=Job, epilog=EPILOG)
@config_option
@set_option
@click.option("--run-id", required=True, help="The published run, or `current`.")
@click.option("--format", required=True, type=click.Choice(FORMATS), help="See docs/export.md.")
@click.option("--to", required=True, metavar="URI", help="An empty folder, local or in an object store.")
@click.option("--since", metavar="RUN", help="Export only lists that changed since this run; delete removed ones.")
@click.option("--depth", type=click.IntRange(min=1), help="Documents of each query.  [default: all ranked ones]")
@click.option("--name", help="Index of a bulk request, tag of a TREC run, or Vespa's namespace:document type.")
@click.option("--field", default="lakerank", show_default=True, help="Field that a document update sets.")
@click.option("--pairs", type=click.IntRange(min=1), help="Pairs in golden-pairs.  [default: 256]")
@click.option(
    "--part-rows", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Most rows of a file."
)
@click.option(
    "--part-bytes", type=click.IntRange(min=1), default=64 * 2**20, show_default=True,
    help="Most bytes of a file, before compression. A list is never split.",
)  # fmt: skip
@verbose_option
def export(config_path: Path, overrides: tuple[str, ...], verbose: bool, **options: Any) -> None:
    """Write a published run in the format of an index or a tool.

    Writes files named part-… and finally _manifest.json, which lists them: a file that it does not list is not part of
    the export. Repeating the command does nothing; into another folder it writes the same bytes.
    """
    run_job(lambda: _export(load_config(config_path, overrides), **options), verbose)


def _export(config: Config, **options: Any) -> dict[str, Any]:
    from lakerank.cli.resolve import storage as storage_of
    from lakerank.export.job import finished, resolve, row_count, summary
    from lakerank.export.write import export_run

    started = time.monotonic()
    storage = storage_of(config.lake.storage)
    job = resolve(storage, _job(config, **options))
    manifest = finished(storage, job)
    if manifest is not None:
        logger.info("export: %s holds this export already: nothing to do", job.to)
        return summary(job, manifest, started)
    storage.check_writable(job.to)
    with job_runner(config.spark, lambda: row_count(storage, job)) as runner:
        return summary(job, export_run(runner, storage, job), started)


def _job(config: Config, name: str | None, field: str, part_rows: int, part_bytes: int, **options: Any) -> Export:
    """The export that the options describe.

    Raises:
        ConfigError: everything wrong that click cannot see.
    """
    from lakerank.export.format import PartLimits, Target
    from lakerank.export.job import Export
    from lakerank.lake.runs import check_run_id

    lake, target, limits = config.lake.located(), Target(name, field), PartLimits(part_rows, part_bytes)
    job = Export(
        output=lake.output, queries=lake.queries, candidates=lake.candidates, target=target, limits=limits, **options
    )
    faults: list[str] = []
    for run_id in (job.run_id, job.since):
        try:
            check_run_id(run_id or "none")
        except ConfigError as error:
            faults += error.faults
    if job.format == GOLDEN_PAIRS and job.since:
        faults.append("--since: golden pairs are a sample of one run")
    if job.format != GOLDEN_PAIRS and job.pairs:
        faults.append(f"--pairs: only golden-pairs is a sample, {job.format} is the whole run")
    if job.format.startswith("vespa") and name and not all(name.partition(":")):
        faults.append(f"--name {name}: expected namespace:document type, as in mine:product")
    if faults:
        raise ConfigError(faults)
    return replace(job, pairs=job.pairs or 256) if job.format == GOLDEN_PAIRS else job


if __name__ == "__main__":
    export()
