"""BEIR: `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv` in a folder for each dataset.

Source: `beir/datasets/data_loader.py` in github.com/beir-cellar/beir, and the archives and hub repositories that it
loads. A corpus line is `{"_id", "title", "text"}`, a query line `{"_id", "text"}`; qrels have a line of names, then
query-id, corpus-id, score apart by tabs. Only queries with judgements in the split count. CQADupStack is a folder of
folders: twelve forums whose mean is one figure. On the hub qrels lie in a repository beside, `NAME-qrels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from lakerank.ingest.layouts.benchmark import (
    Benchmark,
    ContentRows,
    DocumentColumns,
    DocumentFilter,
    Part,
    Qrels,
    QueryColumns,
    call_all,
    text_pool,
    titled,
)
from lakerank.ingest.layouts.benchmark_folder import BenchmarkFolder
from lakerank.ingest.lines import read_each, record_id, record_text, tsv_qrels
from lakerank.ingest.tables import ContentRow
from lakerank.lake.storage import join

EXPECTS = "a dataset's corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, or a folder of such datasets"

#: MS MARCO has no judgements for its test queries in BEIR: its figures are of the development queries.
_SPLITS = {"msmarco": "dev"}


def is_beir(folder: BenchmarkFolder) -> bool:
    """Whether a dataset lies in the folder or directly below it."""
    return any(_is_dataset(folder, path) for path in ("", *folder.folders()))


def read_beir(folder: BenchmarkFolder, split: str | None) -> Benchmark:
    """Every dataset of the folder; `split` is `test` by default (`dev` of MS MARCO).

    Raises:
        StorageError: no dataset is there, or one lacks a file.
    """
    datasets = list(_datasets(folder))
    if not datasets:
        raise folder.missing("corpus.jsonl")
    parts = call_all(partial(_part, folder, path, *names, split) for path, names in datasets)
    return Benchmark("beir", tuple(parts))


def _is_dataset(folder: BenchmarkFolder, path: str) -> bool:
    return folder.find(join(path, "corpus.jsonl")) is not None


def _datasets(folder: BenchmarkFolder) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Path of each dataset, and its name and subset."""
    if _is_dataset(folder, ""):
        yield "", (folder.name, None)
        return
    for name in folder.folders():
        if _is_dataset(folder, name):
            yield name, (name, None)
        elif not name.endswith("-qrels"):
            subsets = [subset for subset in folder.folders(name) if _is_dataset(folder, join(name, subset))]
            yield from ((join(name, subset), (name, subset)) for subset in subsets)


def _part(folder: BenchmarkFolder, path: str, dataset: str, subset: str | None, split: str | None) -> Part:
    name = join(dataset, subset or "")
    split = split or _SPLITS.get(dataset, "test")
    corpus = folder.require(join(path, "corpus.jsonl"))
    queries = folder.require(join(path, "queries.jsonl"))
    tables = (join(path, "qrels", f"{split}.tsv"), join(f"{path}-qrels", f"{split}.tsv"))
    qrels = folder.require(*(tables if path else tables[:1]))
    columns = QueryColumns("beir", dataset, subset)

    def judgements() -> Qrels:
        return tsv_qrels(qrels, folder.fields(qrels), f"{name}/", f"{name}/")

    return passage_part(
        folder, name, columns, [corpus], lambda: _queries(folder, queries, columns, f"{name}/"), judgements
    )


def passage_part(
    folder: BenchmarkFolder,
    name: str,
    columns: QueryColumns,
    corpus: Sequence[str],
    queries: Callable[[], ContentRows],
    judgements: Callable[[], Qrels],
) -> Part:
    """A part with a pool of its own: the passages of some JSON Lines files, in the queries' language."""
    prefix, document_columns = f"{name}/", DocumentColumns(columns.dataset, columns.language)

    def documents(is_included: DocumentFilter) -> ContentRows:
        for path in corpus:
            yield from passages(folder, path, prefix, document_columns, is_included)

    return Part(name, text_pool(name, prefix, documents), columns, queries, judgements, prefix=prefix)


def passages(
    folder: BenchmarkFolder, path: str, prefix: str, columns: DocumentColumns, is_included: DocumentFilter
) -> ContentRows:
    """The passages of a corpus in JSON Lines, under `_id`, `docid` or `id`, with their titles in front."""

    def passage(_line: int, fields: Mapping[str, Any]) -> Iterator[ContentRow]:
        doc_id = prefix + record_id(fields, ("_id", "docid", "id"))
        if is_included(doc_id):
            yield ContentRow(
                doc_id, titled(record_text(fields, "title"), record_text(fields, "text")), extra=tuple(columns)
            )

    return read_each(path, folder.records(path), passage)


def _queries(folder: BenchmarkFolder, path: str, columns: QueryColumns, prefix: str) -> ContentRows:
    def query(_line: int, fields: Mapping[str, Any]) -> Iterator[ContentRow]:
        yield ContentRow(prefix + record_id(fields, ("_id",)), record_text(fields, "text") or "", extra=tuple(columns))

    return read_each(path, folder.records(path), query)
