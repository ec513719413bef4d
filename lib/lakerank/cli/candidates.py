"""`lakerank candidates`: documents and queries into first-stage candidates."""

from __future__ import annotations

from typing import Any

import click

from lakerank.candidates.job import ADVICE, Addresses, find_candidates
from lakerank.candidates.search import Options
from lakerank.cli import resolve
from lakerank.cli.job import Job, job_runner
from lakerank.config import EMBEDDED, Config
from lakerank.errors import ConfigError

#: With more bytes of text, Spark searches; otherwise this process.
IN_PROCESS_BYTES = 2**29


@click.command(cls=Job)
@click.option(
    "--method", type=click.Choice(["bm25", "all-pairs", "none"]), default="bm25",
    help="Search texts by BM25, take all documents of a small lake, or only read run files.",
)  # fmt: skip
@click.option(
    "--run", "runs", multiple=True, metavar="FILE",
    help="A run of another system in trec_eval's format (also .gz), fused with the other lists. May be repeated.",
)  # fmt: skip
@click.option("--depth", type=click.IntRange(min=1), default=100, help="Candidates of each query.")
@click.option(
    "--rrf-k", type=click.FloatRange(min=0), default=60,
    help="The constant k of reciprocal rank fusion, by which several lists become one.",
)  # fmt: skip
@click.option("--k1", type=click.FloatRange(min=0), default=0.9, help="BM25's k1.")
@click.option("--b", type=click.FloatRange(0, 1), default=0.4, help="BM25's b.")
@click.option(
    "--max-pairs", type=click.IntRange(min=1), default=1_000_000, help="The most pairs that all-pairs may write.",
)  # fmt: skip
@click.option("--output", metavar="FOLDER", help="Folder of the table.  [default: lake.candidates of the config]")
def candidates(given: resolve.CommandLine, **options: Any) -> dict[str, Any]:
    """Find the candidates of every query: BM25 over the documents' texts, run files of other systems, or both, fused.

    BM25 searches the column search_text of documents where it is not null, else text. Documents and queries without
    text are counted; only runs or all-pairs give them candidates. Replaces the table in the folder that lake.candidates
    names, unless no query has a candidate. Lines of run files that give none are listed in rejects/candidates.jsonl
    beside the folder. docs/candidates.md has the details.

    The summary has method, runs, depth, queries, candidates, queries_without_candidates, such_queries (the first ids),
    queries_without_text, documents, documents_without_text, rejected, rejected_by_fault, rejects, output and seconds.
    """
    return find_candidates_of(given.config, **options)


def find_candidates_of(
    config: Config, output: str | None = None, advice: str = ADVICE, **options: Any
) -> dict[str, Any]:
    """Write the candidates of a lake; returns the job's summary. `advice`: see `find_candidates`."""
    if output is None and config.lake.candidates == EMBEDDED:
        raise ConfigError(["lake.candidates: the bundled lake's table is not overwritten; name a folder with --output"])
    lake = config.lake.located()
    addresses = Addresses(lake.documents, lake.queries, output or lake.candidates)
    return find_candidates(
        resolve.storage(config.lake), addresses, Options(**options),
        lambda text_bytes: job_runner(config.spark, lambda: text_bytes <= IN_PROCESS_BYTES), advice,
    )  # fmt: skip
