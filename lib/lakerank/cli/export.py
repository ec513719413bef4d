"""`jobs/export.py`: a published run, or what changed since another, as a search index or a tool takes it."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakerank.cli.job import EPILOG, config_option, run_job, set_option, storage_of, verbose_option
from lakerank.config import Config, load_config
from lakerank.errors import ConfigError

if TYPE_CHECKING:
    from lakerank.spark.export import Export

logger = logging.getLogger(__name__)

#: The names of lakerank.export.formats; --help must not wait for pyarrow.
FORMATS = (
    "trec-run", "trec-qrels", "quepid-csv", "ltr-judgements", "svmrank", "opensearch-lists", "opensearch-documents",
    "vespa-lists", "vespa-documents", "parquet", "csv", "golden-pairs",
)  # fmt: skip
GOLDEN_PAIRS = "golden-pairs"


@click.command(epilog=EPILOG)
@config_option
@set_option
@click.option("--run-id", required=True, help="The published run, or `current`.")
@click.option("--format", "format_name", required=True, type=click.Choice(FORMATS), help="See docs/export.md.")
@click.option("--to", required=True, metavar="URI", help="An empty folder, local or in an object store.")
@click.option("--since", metavar="RUN", help="Only the lists that changed since this run; removed ones are deleted.")
@click.option("--depth", type=click.IntRange(min=1), help="Documents kept a query.  [default: all that are ranked]")
@click.option("--name", help="Index of a bulk request, tag of a TREC run, or Vespa's namespace:document type.")
@click.option("--field", default="lakerank", show_default=True, help="Field that an update of a document sets.")
@click.option("--pairs", type=click.IntRange(min=1), help="Pairs in golden-pairs.  [default: 256]")
@click.option(
    "--part-rows", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Rows of a file at most."
)
@click.option(
    "--part-bytes", type=click.IntRange(min=1), default=64 * 2**20, show_default=True,
    help="Bytes of a file at most, before compression. A list is never split.",
)  # fmt: skip
@verbose_option
def export(config_path: Path, overrides: tuple[str, ...], verbose: bool, **options: Any) -> None:
    """Write a published run in the format of an index or a tool.

    Files named part-… and, last of all, _manifest.json, which names them: what it does not name is not part of the
    export. The same command again does nothing; into another folder it writes the same bytes.
    """

    def work() -> dict[str, Any]:
        return _export(load_config(config_path, overrides), options)

    run_job(work, verbose)


def _export(config: Config, options: dict[str, Any]) -> dict[str, Any]:
    from lakerank.spark.export import export_run, finished, resolve, summary
    from lakerank.spark.runtime import session

    started = time.monotonic()
    storage = storage_of(config)
    wanted = resolve(storage, _plain(config, options))
    found = finished(storage, wanted)
    if found is not None:
        logger.info("export: %s holds this export already: nothing to do", wanted.to)
        return summary(wanted, found, started)
    storage.check_writable(wanted.to)
    logger.info("starting Spark")
    spark = session.start(config.spark.app_name, config.spark.conf, config.spark.partitions)
    try:
        return summary(wanted, export_run(spark, storage, wanted), started)
    finally:
        spark.stop()


def _plain(config: Config, options: dict[str, Any]) -> Export:
    from lakerank.export.format import Target
    from lakerank.export.parts import PartLimits
    from lakerank.spark.export import Export

    faults = _faults(options)
    if faults:
        raise ConfigError(faults)
    return Export(
        output=config.lake.output,
        run_id=options["run_id"],
        since=options["since"],
        format=options["format_name"],
        target=Target(options["name"], options["field"]),
        to=options["to"],
        depth=options["depth"],
        limits=PartLimits(options["part_rows"], options["part_bytes"]),
        pairs=(options["pairs"] or 256) if options["format_name"] == GOLDEN_PAIRS else None,
        queries=config.lake.queries,
        candidates=config.lake.candidates,
    )


def _faults(options: dict[str, Any]) -> list[str]:
    """Everything wrong with the options that click cannot see."""
    from lakerank.lake.runs import check_run_id

    faults: list[str] = []
    for run_id in (options["run_id"], options["since"]):
        try:
            check_run_id(run_id or "none")
        except ConfigError as error:
            faults += error.faults
    form, name = options["format_name"], options["name"]
    if form == GOLDEN_PAIRS and options["since"]:
        faults.append("--since: golden pairs are a sample of one run")
    if form != GOLDEN_PAIRS and options["pairs"]:
        faults.append(f"--pairs: only golden-pairs is a sample, {form} is the whole run")
    if form.startswith("vespa") and name and not all(name.partition(":")):
        faults.append(f"--name {name}: expected namespace:document type, as in mine:product")
    return faults
