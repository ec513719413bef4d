"""CoIR: code and text, in Parquet, `NAME-queries-corpus/` and `NAME-qrels/` for each dataset.

Source: `coir/data_loader.py` and the README of github.com/CoIR-team/coir. The first repository has the splits `corpus`
and `queries` with `_id`, `title` and `text`, the second `query_id`, `corpus_id` and `score` in the split `test`. Only
queries with judgements in the split count; all of the corpus does. CodeSearchNet and CodeSearchNet-CCR are one figure
each, the mean over six programming languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from lakerank.ingest.layouts.benchmark import (
    Benchmark,
    ContentRows,
    DocumentColumns,
    DocumentFilter,
    Part,
    QueryColumns,
    call_all,
    text_pool,
    titled,
)
from lakerank.ingest.layouts.benchmark_folder import BenchmarkFolder, table_columns, table_qrels
from lakerank.ingest.lines import record_id, record_text
from lakerank.ingest.tables import ContentRow

EXPECTS = (
    "NAME-queries-corpus/ with Parquet files corpus-* and queries-*, and NAME-qrels/ with SPLIT-*, of each dataset"
)

#: The four main tasks of the benchmark's own table.
TASKS = {
    "apps": "text-to-code",
    "cosqa": "text-to-code",
    "synthetic-text2sql": "text-to-code",
    "codesearchnet": "code-to-text",
    "codesearchnet-ccr": "code-to-code",
    "codetrans-dl": "code-to-code",
    "codetrans-contest": "code-to-code",
    "stackoverflow-qa": "hybrid",
    "codefeedback-st": "hybrid",
    "codefeedback-mt": "hybrid",
}

_SUFFIX = "-queries-corpus"
_LANGUAGES = re.compile(r"(codesearchnet(?:-ccr)?)-(\w+)", re.IGNORECASE)
_FIELDS = ("_id", "title", "text")


def is_coir(folder: BenchmarkFolder) -> bool:
    """Whether a dataset's queries and corpus lie here."""
    return any(name.endswith(_SUFFIX) for name in folder.folders())


def read_coir(folder: BenchmarkFolder, split: str | None) -> Benchmark:
    """Every dataset of the folder; `split` is `test` by default.

    Raises:
        StorageError: no dataset is there, or one lacks a file or a column.
    """
    names = [name.removesuffix(_SUFFIX) for name in folder.folders() if name.endswith(_SUFFIX)]
    if not names:
        raise folder.missing(f"NAME{_SUFFIX}")
    parts = call_all(partial(_part, folder, name, split or "test") for name in names)
    return Benchmark("coir", tuple(parts))


def _part(folder: BenchmarkFolder, name: str, split: str) -> Part:
    corpus = folder.require_parquet(f"{name}{_SUFFIX}", "corpus", "data")
    queries = folder.require_parquet(f"{name}{_SUFFIX}", "queries", "data")
    qrels = folder.require_parquet(f"{name}-qrels", split, "data")
    table_columns(folder, corpus, ("_id",), ("text",))
    table_columns(folder, queries, ("_id",), ("text",))
    table_columns(folder, qrels, ("query_id", "query-id"), ("corpus_id", "corpus-id"), ("score",))
    match = _LANGUAGES.fullmatch(name)
    dataset, subset = (match[1].lower(), match[2].lower()) if match else (name.lower(), None)
    columns = QueryColumns("coir", dataset, subset, task=TASKS.get(dataset))
    prefix = f"{name.lower()}/"

    def documents(is_included: DocumentFilter) -> ContentRows:
        return _rows(folder, corpus, prefix, tuple(DocumentColumns(dataset)), is_included)

    pool = text_pool(name.lower(), prefix, documents)
    query_rows = partial(_rows, folder, queries, prefix, tuple(columns), lambda query_id: True)
    return Part(
        name.lower(), pool, columns, query_rows, partial(table_qrels, folder, qrels, prefix, prefix), prefix=prefix
    )


def _rows(
    folder: BenchmarkFolder,
    paths: Sequence[str],
    prefix: str,
    columns: tuple[str | None, ...],
    is_included: DocumentFilter,
) -> ContentRows:
    def content_row(_line: int, row: Mapping[str, Any]) -> Iterator[ContentRow]:
        row_id = prefix + record_id(row, ("_id",))
        if is_included(row_id):
            yield ContentRow(row_id, titled(record_text(row, "title"), record_text(row, "text")), extra=columns)

    return folder.read_tables(paths, _FIELDS, content_row)
