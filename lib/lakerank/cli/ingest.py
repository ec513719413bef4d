"""`lakerank ingest`: files and folders into lake tables, and from a clone published benchmarks."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import click
from click.core import ParameterSource

from lakerank.cli import resolve
from lakerank.cli.job import SHARED, Job
from lakerank.config import Config
from lakerank.errors import ConfigError
from lakerank.ingest import DATASETS, datasets
from lakerank.ingest.folder import ingest as ingest_source
from lakerank.ingest.readers.reader import ReadOptions
from lakerank.lake import is_local, local_path
from lakerank.lake.storage import Storage

BENCHMARKS = datasets("command")

#: Parameters of a published benchmark, and those of a single table.
_LAYOUT = frozenset(option.name for option in BENCHMARKS.OPTIONS) if BENCHMARKS else frozenset()
_TABLE = frozenset(field.name for field in fields(ReadOptions))


class _Ingest(Job):
    """Names the way to the options of benchmarks, where they are missing."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        named = any(word.partition("=")[0] == "--layout" for word in args)
        if named and BENCHMARKS is None and not context.resilient_parsing:
            raise click.UsageError(
                f"--layout: {DATASETS}, which reads published benchmarks, is not installed with lakerank; run "
                "`python jobs/ingest.py` with the same words from a clone of the repository (its docs/benchmarks.md)",
                context,
            )
        return super().parse_args(context, args)


@click.command(cls=_Ingest, config="optional")
@click.argument("source", required=False)
@click.option(
    "--output", metavar="FOLDER",
    help="Folder for the tables: FOLDER/documents/ and so on.  [default for queries and qrels: where the config's are]",
)  # fmt: skip
@click.option(
    "--as", "table", type=click.Choice(["documents", "queries", "candidates", "qrels"]), default="documents",
    help="The table to write. candidates and qrels are read from JSON and CSV, qrels also from TREC's files.",
)  # fmt: skip
@click.option(
    "--kind", type=click.Choice(["auto", "folder", "jsonl", "pdf"]), default="auto",
    help="Which files of a folder to read: all (auto, folder), JSON Lines only, or PDFs only.",
)  # fmt: skip
@click.option(
    "--pdf-content", type=click.Choice(["image", "text", "both"]), default="image",
    help="What a PDF page becomes: an image of it, its text layer, or both.",
)  # fmt: skip
@click.option(
    "--page-pixels", type=click.IntRange(min=784), default=602_112,
    help="Pixels of a page image, width × height. The default is the most that the model sees.",
)  # fmt: skip
@click.option(
    "--keep", multiple=True, metavar="FIELD",
    help="Copy this field of JSON or CSV to a text column; may be repeated. Of queries, language (kept anyway), task "
    "and slice become slices of the report; a document's name is shown in it.",
)  # fmt: skip
@click.option(
    "--max-file-bytes", type=click.IntRange(min=1), default=2**28,
    help="Reject larger files, and longer lines of JSON, without reading them. An archive may unpack to 16 times that.",
)  # fmt: skip
@click.option(
    "--encoding", metavar="NAME",
    help="Encoding of texts that are not UTF-8 and have no byte order mark, such as cp1252.  [default: guessed]",
)  # fmt: skip
@click.option(
    "--chunk", type=click.IntRange(min=100), metavar="N",
    help="Cut texts of more than N characters into chunks, where paragraphs, sentences or words end.",
)  # fmt: skip
@click.option(
    "--chunk-overlap", type=click.IntRange(min=0), default=0, metavar="N",
    help="With --chunk: characters that a chunk repeats of the one before; at most half a chunk.",
)  # fmt: skip
@click.option(
    "--office-pages", is_flag=True,
    help="Print Office files as pages with LibreOffice, where it is installed, and read these as PDF.",
)  # fmt: skip
@click.option("--follow-links", is_flag=True, help="Follow symbolic links, also out of SOURCE.")
@click.pass_context
def ingest(
    context: click.Context, given: resolve.CommandLine, /, source: str | None, output: str | None, **options: Any
) -> dict[str, Any]:
    """Write lake tables from SOURCE, at any URI: a table of files of many kinds, or a whole benchmark.

    \b
    .txt .log .md .rst .org        a text
    .html .htm .xhtml              a page's main part, its title in front
    .png .jpg .webp .tif .gif .bmp an image, its bytes unchanged
    .pdf .pptx .odp                a row a page or slide: name.pdf#page=1 and so on
    .docx .odt                     a text
    .xlsx .ods .epub               a row a sheet or chapter: name.xlsx#sheet=NAME
    .jsonl .ndjson .json .csv .tsv a row a record: doc_id (or id, _id), title, text, and image:
                                   base64, or a path relative to the file
    .zip, and .gz of any of these  what is in them

    With --as queries, a .txt has a query a line: q1, q2 and so on, by the number of the line.

    Ids are paths relative to SOURCE and rows are sorted by path: the same source gives the same bytes. An earlier
    table in FOLDER is replaced, but never by an empty one. docs/ingest.md has all kinds, columns and limits.
    Files, pages and lines that cannot be read do not stop the job: they are counted in the summary and listed with the
    reason in FOLDER/rejects/TABLE.jsonl.

    The summary has table, output, rows, texts, images, files, bytes, duplicates, rejected, rejected_by_fault, rejects,
    fields_not_kept, encodings_guessed and seconds.

    Without SOURCE, the config's `source` is read, both tables, into the folders lake.documents and lake.queries; the
    summary has tables (each as above), rejected and seconds.

    With --layout (in a clone of the repository), SOURCE is a benchmark in its publisher's files, and FOLDER gets
    documents, queries, candidates and qrels. docs/benchmarks.md lists the files to download. The summary has layout,
    output, parts, first_stage, tables (each as above), rejected, rejected_by_fault, rejects and seconds.
    """

    config, layout = given.config, options.get("layout")
    faults = _misplaced(context, layout)
    target = output or (_beside(config, options["table"]) if layout is None else None)
    if source is not None and target is None:
        faults.append("--output: name the folder for the tables")
    if faults:
        raise ConfigError(faults)
    storage = resolve.storage(config.lake)
    if source is None or target is None:
        return _both_tables(storage, config, context)
    if layout is not None:
        summary: dict[str, Any] = BENCHMARKS.ingest(storage, source, target, options, _progress())
        return summary
    table = ReadOptions(**{name: options[name] for name in _TABLE & options.keys()})
    return ingest_source(storage, source, target, table, options["follow_links"], _progress()).summary()


if BENCHMARKS:
    ingest.params += BENCHMARKS.OPTIONS


def _beside(config: Config, table: str) -> str | None:
    """The folder of the config's tables, for a table of queries or judgements that is named without --output."""
    lake = config.lake
    tables = {"queries": lake.queries, "qrels": lake.qrels or f"{_parent(lake.queries)}/qrels"}
    return _parent(tables[table]) if tables.get(table, "").rstrip("/").endswith(f"/{table}") else None


def _both_tables(storage: Storage, config: Config, context: click.Context) -> dict[str, Any]:
    shared = {"config", "overrides", *SHARED}
    if names := [option.opts[0] for option in _named(context) if option.name not in shared]:
        raise ConfigError([f"{', '.join(names)}: of a SOURCE, and none is named"])
    started = time.monotonic()
    tables = ingest_both(storage, config)
    rejected = sum(table["rejected"] for table in tables.values())
    return {"tables": tables, "rejected": rejected, "seconds": round(time.monotonic() - started, 3)}


def ingest_both(storage: Storage, config: Config) -> dict[str, dict[str, Any]]:
    """Write the tables of documents and of queries that the config's `source` names; returns their summaries.

    Raises:
        ConfigError: `source` names nothing, or the tables are not in folders of their names.
    """
    source, lake = config.source, config.lake
    faults = [f"source.{name}: not set; `lakerank init FOLDER --queries FILE` writes a config that sets it"
              for name in ("folder", "queries") if getattr(source, name) is None]  # fmt: skip
    faults = faults or [f"lake.{name}: {address} should be a folder named {name}, to be written"
                        for name in ("documents", "queries")
                        if (address := getattr(lake, name)).rstrip("/").rpartition("/")[2] != name]  # fmt: skip
    if faults or source.folder is None or source.queries is None:
        raise ConfigError(faults)
    skip: tuple[str, ...] = ()
    if is_local(source.folder) and is_local(source.queries):
        folder, queries = local_path(source.folder).resolve(), local_path(source.queries).resolve()
        skip = (queries.relative_to(folder).as_posix(),) if queries.is_relative_to(folder) else ()
    documents = ReadOptions(
        pdf_content=source.pdf_content, chunk=source.chunk, chunk_overlap=source.chunk_overlap, skip=skip,
        file_in_ids=True,
    )  # fmt: skip
    options = {
        "documents": (source.folder, documents),
        "queries": (source.queries, ReadOptions(table="queries", file_in_ids=True)),
    }
    return {
        name: ingest_source(storage, address, _parent(getattr(lake, name)), how, progress=_progress()).summary()
        for name, (address, how) in options.items()
    }


def _parent(address: str) -> str:
    return address.rstrip("/").rpartition("/")[0] or "."


def _misplaced(context: click.Context, layout: str | None) -> list[str]:
    """Options of a benchmark without --layout, and options of a single table with it."""
    wrong, reason = (_LAYOUT, "needs --layout") if layout is None else (_TABLE, "has no meaning with --layout")
    return [f"{option.opts[0]} {reason}" for option in _named(context) if option.name in wrong]


def _named(context: click.Context) -> list[click.Parameter]:
    """The options that are on the command line."""
    source = context.get_parameter_source
    return [option for option in context.command.params if source(str(option.name)) is ParameterSource.COMMANDLINE]


def _progress() -> Any:
    """A row counter on standard error, when that is a terminal."""
    from tqdm import tqdm

    return tqdm(unit=" rows", disable=None, leave=False).update
