"""`jobs/ingest.py`: files, folders and published benchmarks into lake tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lakerank.cli.job import EPILOG, run_job, set_option, storage_of, verbose_option
from lakerank.config import load_config
from lakerank.errors import ConfigError

#: `lakerank.ingest.layouts.catalog` has the same, and is only imported when it is needed.
LAYOUT_NAMES = [
    *("auto", "beir", "coir", "miracl", "mldr", "mkqa"),
    *("vidore_v1", "vidore_v2", "vidore_v3", "mbeir", "winoground"),
]


@click.command(epilog=EPILOG)
@click.argument("source")
@click.option("--output", required=True, metavar="FOLDER", help="Folder for the tables: FOLDER/documents/ and so on.")
@click.option(
    "--as",
    "table",
    type=click.Choice(["documents", "queries", "candidates", "qrels"]),
    default="documents",
    show_default=True,
    help="The table to write. candidates and qrels are read from JSON Lines alone.",
)
@click.option(
    "--kind",
    type=click.Choice(["auto", "folder", "jsonl", "pdf"]),
    default="auto",
    show_default=True,
    help="What to look at in a folder: everything (auto, folder), JSON Lines alone, or PDFs alone.",
)
@click.option(
    "--pdf-content",
    type=click.Choice(["image", "text", "both"]),
    default="image",
    show_default=True,
    help="What a PDF page becomes: an image of it, its text layer, or both.",
)
@click.option(
    "--page-pixels",
    type=click.IntRange(min=784),
    default=602_112,
    show_default=True,
    help="Pixels of a page image, width × height. The default is the most that the model looks at.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="FIELD",
    help="Carry this JSON field as a text column; may be given any number of times. Of queries, language, task and "
    "slice become slices of the report; a document's name is shown in it.",
)
@click.option(
    "--max-file-bytes",
    type=click.IntRange(min=1),
    default=2**28,
    show_default=True,
    help="A larger file, or longer line of JSON, is not read but listed as rejected.",
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUT_NAMES),
    help="Read SOURCE as a published benchmark and write all its tables; auto recognises it.",
)
@click.option("--split", help="With --layout: the benchmark's split. [default: the one that its figures are given for]")
@click.option(
    "--run",
    "runs",
    multiple=True,
    metavar="[PART=]FILE",
    help="With --layout: the first stage, a run as trec_eval reads it. {part} and {language} in FILE stand for those "
    "of each part. May be given any number of times.  [default: BM25 where there are texts, else all documents of "
    "a small pool]",
)
@click.option(
    "--depth",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="With --layout: candidates kept a query.",
)
@click.option(
    "--all-pairs",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    metavar="DOCUMENTS",
    help="With --layout: the largest pool of images that is ranked whole when there is no run.",
)
@click.option(
    "--documents",
    "which_documents",
    type=click.Choice(["all", "candidates"]),
    default="all",
    show_default=True,
    help="With --layout: write all documents, or only those that are candidates.",
)
@click.option("--follow-links", is_flag=True, help="Follow symbolic links, even out of SOURCE.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Config file (YAML); only its lake.storage is used.",
)
@set_option
@verbose_option
@click.pass_context
def ingest(
    context: click.Context,
    source: str,
    output: str,
    table: Any,
    kind: Any,
    pdf_content: Any,
    page_pixels: int,
    keep: tuple[str, ...],
    max_file_bytes: int,
    layout: str | None,
    split: str | None,
    runs: tuple[str, ...],
    depth: int,
    all_pairs: int,
    which_documents: str,
    follow_links: bool,
    config_path: Path | None,
    overrides: Sequence[str],
    verbose: bool,
) -> None:
    """Make lake tables of SOURCE, at any URI: a table of texts, images, PDFs and JSON Lines, or a whole benchmark.

    \b
    .txt .md                       a text in UTF-8
    .png .jpg .webp .tif .gif .bmp an image, its bytes untouched
    .pdf                           a row a page: name.pdf#page=1 and on
    .jsonl .ndjson (also .gz)      a row a line: doc_id (or id, _id), text, and image:
                                   base64, or a path relative to the JSON file

    Ids are paths relative to SOURCE, rows are in the order of paths: the same source gives the same bytes. An earlier
    table in FOLDER is replaced. Files, pages and lines that cannot be read do not stop the job: they are counted in
    the summary and listed with the reason in FOLDER/rejects/TABLE.jsonl.

    The summary has table, output, rows, texts, images, files, bytes, rejected, rejected_by_fault, rejects and seconds.

    With --layout, SOURCE is a benchmark in the files that its publisher ships, and FOLDER gets documents, queries,
    candidates and qrels. docs/benchmarks.md says which files to fetch. The summary has layout, output, parts,
    first_stage, tables (each as above), rejected, rejected_by_fault, rejects and seconds.
    """

    def work() -> dict[str, Any]:
        from lakerank.ingest.benchmark_lake import LayoutOptions, ingest_benchmark
        from lakerank.ingest.folder import ReadOptions
        from lakerank.ingest.ingestion import ingest as ingest_source
        from lakerank.lake.storage import Storage

        faults = _misplaced(context, layout)
        if overrides and config_path is None:
            faults.append("--set changes a config: give one with --config")
        if faults:
            raise ConfigError(faults)
        storage = storage_of(load_config(config_path, overrides)) if config_path else Storage()
        if layout is not None:
            how = LayoutOptions(layout, split, runs, depth, all_pairs, which_documents == "all")
            return ingest_benchmark(storage, source, output, how, follow_links, _progress(verbose)).summary()
        options = ReadOptions(kind, table, keep, pdf_content, page_pixels, max_file_bytes)
        return ingest_source(storage, source, output, options, follow_links, _progress(verbose)).summary()

    run_job(work, verbose)


def _misplaced(context: click.Context, layout: str | None) -> list[str]:
    """Options of a benchmark without one, and options of a table with a benchmark."""
    own = ("split", "runs", "depth", "all_pairs", "which_documents")
    others = ("table", "kind", "pdf_content", "page_pixels", "keep", "max_file_bytes")
    wrong, reason = (own, "needs --layout") if layout is None else (others, "has no meaning with --layout")
    given = {name for name in wrong if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    return [f"{option.opts[0]} {reason}" for option in context.command.params if option.name in given]


def _progress(verbose: bool) -> Any:
    """A row counter on standard error, when that is a terminal."""
    from tqdm import tqdm

    bar = tqdm(unit=" rows", disable=None, leave=False)
    return lambda rows: bar.update(rows - bar.n)
