"""The options of `lakerank ingest` that read a published benchmark, and what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import click

from lakerank.lake.storage import Storage
from lakerank_datasets.benchmark_lake import LayoutOptions, ingest_benchmark
from lakerank_datasets.layouts import LAYOUTS

#: All but --layout mean nothing without it.
OPTIONS = [
    click.Option(
        ["--layout"], type=click.Choice(["auto", *LAYOUTS]),
        help="Read SOURCE as a published benchmark and write all its tables; auto detects the layout.",
    ),
    click.Option(
        ["--split"], help="With --layout: the benchmark's split.  [default: the one with published figures]"
    ),
    click.Option(
        ["--run", "runs"], multiple=True, metavar="[PART=]FILE",
        help="With --layout: a first-stage run in trec_eval's format. {part} and {language} in FILE stand for those of "
        "each part. May be repeated.  [default: BM25 where there are texts, else all documents of a small pool]",
    ),
    click.Option(
        ["--depth"], type=click.IntRange(min=1), default=100,
        help="With --layout: candidates of each query.",
    ),
    click.Option(
        ["--all-pairs"], type=click.IntRange(min=0), default=1000, metavar="DOCUMENTS",
        help="With --layout: the largest pool of images that is ranked whole when there is no run.",
    ),
    click.Option(
        ["--documents", "all_documents"], type=click.Choice(["all", "candidates"]), default="all",
        callback=lambda _context, _option, which: which == "all",
        help="With --layout: write all documents, or only those that are candidates.",
    ),
    click.Option(
        ["--plain-ids"], is_flag=True,
        help="With --layout: keep the publisher's ids, without DATASET/ in front; for a single dataset.",
    ),
]  # fmt: skip


def ingest(
    storage: Storage, source: str, output: str, options: Mapping[str, Any], progress: Callable[[int], object]
) -> dict[str, Any]:
    """Write the tables of the benchmark at `source`, as the command line's `options` say; returns the summary."""
    layout = LayoutOptions(**{field.name: options[field.name] for field in fields(LayoutOptions)})
    return ingest_benchmark(storage, source, output, layout, options["follow_links"], progress).summary()
