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

from lakerank.ingest.items import Item, SourceReject
from lakerank.ingest.jsonl import read_each, record_id, record_text
from lakerank.ingest.layouts.benchmark import (
    Benchmark,
    DocumentColumns,
    Part,
    QueryColumns,
    Wanted,
    gathered,
    text_pool,
    titled,
)
from lakerank.ingest.layouts.published import Published
from lakerank.ingest.layouts.tables import table_columns, table_qrels

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


def is_coir(folder: Published) -> bool:
    """Whether a dataset's queries and corpus lie here."""
    return any(name.endswith(_SUFFIX) for name in folder.folders())


def read_coir(folder: Published, split: str | None) -> Benchmark:
    """Every dataset of the folder; `split` is `test` by default.

    Raises:
        StorageError: no dataset is there, or one lacks a file or a column.
    """
    names = [name.removesuffix(_SUFFIX) for name in folder.folders() if name.endswith(_SUFFIX)]
    if not names:
        raise folder.missing(f"NAME{_SUFFIX}")
    parts = gathered(partial(_part, folder, name, split or "test") for name in names)
    return Benchmark("coir", tuple(parts))


def _part(folder: Published, name: str, split: str) -> Part:
    corpus = _shards(folder, f"{name}{_SUFFIX}", "corpus")
    queries = _shards(folder, f"{name}{_SUFFIX}", "queries")
    qrels = _shards(folder, f"{name}-qrels", split)
    table_columns(folder, corpus, ("_id",), ("text",))
    table_columns(folder, queries, ("_id",), ("text",))
    table_columns(folder, qrels, ("query_id", "query-id"), ("corpus_id", "corpus-id"), ("score",))
    match = _LANGUAGES.fullmatch(name)
    dataset, subset = (match[1].lower(), match[2].lower()) if match else (name.lower(), None)
    columns = QueryColumns("coir", dataset, subset, task=TASKS.get(dataset))
    prefix = f"{name.lower()}/"

    def documents(wanted: Wanted) -> Iterator[Item | SourceReject]:
        return _items(folder, corpus, prefix, tuple(DocumentColumns(dataset)), wanted)

    pool = text_pool(name.lower(), prefix, documents)
    asked = partial(_items, folder, queries, prefix, tuple(columns), lambda query_id: True)
    return Part(name.lower(), pool, columns, asked, partial(table_qrels, folder, qrels, prefix, prefix), prefix=prefix)


def _shards(folder: Published, path: str, stem: str) -> list[str]:
    found = folder.parquet(path, stem)
    if not found:
        raise folder.missing(f"{path}/data/{stem}-*.parquet")
    return found


def _items(
    folder: Published, paths: Sequence[str], prefix: str, columns: tuple[str | None, ...], wanted: Wanted
) -> Iterator[Item | SourceReject]:
    def item(_line: int, row: Mapping[str, Any]) -> Iterator[Item]:
        item_id = prefix + record_id(row, ("_id",))
        if wanted(item_id):
            yield Item(item_id, titled(record_text(row, "title"), record_text(row, "text")), kept=columns)

    for path in paths:
        yield from read_each(path, folder.rows(path, _FIELDS), item)
