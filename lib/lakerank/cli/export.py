"""`lakerank export`: a published run, or its changes since another run, in the format of an index or a tool."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakerank.cli.job import EPILOG, config_option, run_job, set_option, spark_session, verbose_option
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


@dataclass(frozen=True, slots=True)
class Options:
    """The run, the format and the destination, as the command line has them."""

    run_id: str
    format_name: str
    to: str
    since: str | None
    depth: int | None
    name: str | None
    field: str
    pairs: int | None
    part_rows: int
    part_bytes: int

    def check(self) -> None:
        """Raises ConfigError with everything wrong that click cannot see."""
        from lakerank.lake.runs import check_run_id

        faults: list[str] = []
        for run_id in (self.run_id, self.since):
            try:
                check_run_id(run_id or "none")
            except ConfigError as error:
                faults += error.faults
        if self.format_name == GOLDEN_PAIRS and self.since:
            faults.append("--since: golden pairs are a sample of one run")
        if self.format_name != GOLDEN_PAIRS and self.pairs:
            faults.append(f"--pairs: only golden-pairs is a sample, {self.format_name} is the whole run")
        if self.format_name.startswith("vespa") and self.name and not all(self.name.partition(":")):
            faults.append(f"--name {self.name}: expected namespace:document type, as in mine:product")
        if faults:
            raise ConfigError(faults)


@click.command(epilog=EPILOG)
@config_option
@set_option
@click.option("--run-id", required=True, help="The published run, or `current`.")
@click.option("--format", "format_name", required=True, type=click.Choice(FORMATS), help="See docs/export.md.")
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
    run_job(lambda: _export(load_config(config_path, overrides), Options(**options)), verbose)


def _export(config: Config, options: Options) -> dict[str, Any]:
    from lakerank.cli.resolve import storage as storage_of
    from lakerank.export.job import finished, resolve, summary
    from lakerank.spark.export import export_run

    started = time.monotonic()
    storage = storage_of(config.lake.storage)
    job = resolve(storage, _job(config, options))
    manifest = finished(storage, job)
    if manifest is not None:
        logger.info("export: %s holds this export already: nothing to do", job.to)
        return summary(job, manifest, started)
    storage.check_writable(job.to)
    with spark_session(config.spark) as spark:
        return summary(job, export_run(spark, storage, job), started)


def _job(config: Config, options: Options) -> Export:
    from lakerank.export.format import PartLimits, Target
    from lakerank.export.job import Export

    options.check()
    lake = config.lake.located()
    return Export(
        output=lake.output,
        run_id=options.run_id,
        since=options.since,
        format=options.format_name,
        target=Target(options.name, options.field),
        to=options.to,
        depth=options.depth,
        limits=PartLimits(options.part_rows, options.part_bytes),
        pairs=(options.pairs or 256) if options.format_name == GOLDEN_PAIRS else None,
        queries=lake.queries,
        candidates=lake.candidates,
    )
