"""ViDoRe: pages as images. Version 1 has a row a page with its question, versions 2 and 3 three tables as in BEIR.

Source: `src/vidore_benchmark/evaluation/vidore_evaluators/` and `pipeline_evaluation/dataset_loader.py` in
github.com/illuin-tech/vidore-benchmark, and the cards of the hub's `vidore/…` repositories, each in a folder of its own
name. Version 1: `data/SPLIT-*.parquet` with `query`, `image`, `image_filename`. As in the publisher's evaluator, pages
of one file name are one document, questions of one text are one query, and the last row of a question says which page
is right. Versions 2 and 3: `corpus/`, `queries/` and `qrels/` with `SPLIT-*.parquet`, where version 2 writes
`corpus-id`, `query-id` and version 3 `corpus_id`, `query_id`, and gives each page's text as `markdown`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from lakerank.ingest.layouts.benchmark import (
    Benchmark,
    ContentRows,
    DocumentColumns,
    DocumentFilter,
    Part,
    Pool,
    Qrels,
    QueryColumns,
    call_all,
)
from lakerank.ingest.layouts.benchmark_folder import (
    IMAGE_ROWS,
    BenchmarkFolder,
    image_bytes,
    table_columns,
    table_qrels,
    without_rejects,
)
from lakerank.ingest.lines import record_id, record_text
from lakerank.ingest.tables import ContentRow, SourceReject
from lakerank.lake.storage import join
from lakerank.records import Qrel

EXPECTS = "DATASET/data/SPLIT-*.parquet with query, image and image_filename"
EXPECTS_TABLES = "corpus/, queries/ and qrels/ with SPLIT-*.parquet in a folder for each dataset"

_CORPUS_ID = ("corpus-id", "corpus_id")
_QUERY_ID = ("query-id", "query_id")


def is_vidore_tables(folder: BenchmarkFolder) -> bool:
    """Whether a dataset of version 2 or 3 lies here or directly below."""
    return any(_has_tables(folder, path) for path in ("", *folder.folders()))


def is_vidore(folder: BenchmarkFolder) -> bool:
    """Whether a dataset of version 1 lies here or directly below."""
    return any(_has_pages(folder, path, "test") for path in ("", *folder.folders()))


def _has_tables(folder: BenchmarkFolder, path: str) -> bool:
    return {"corpus", "queries", "qrels"} <= set(folder.folders(path))


def _has_pages(folder: BenchmarkFolder, path: str, split: str) -> bool:
    shards = folder.parquet(join(path, "data"), split) if "data" in folder.folders(path) else []
    return bool(shards) and {"query", "image", "image_filename"} <= set(folder.columns(shards[0]))


def _named(folder: BenchmarkFolder, paths: Sequence[str]) -> list[tuple[str, str]]:
    """Path and name of datasets: the folder itself if it is one, else its folders."""
    return [("", folder.name)] if "" in paths else [(path, path) for path in paths]


def read_vidore(folder: BenchmarkFolder, split: str | None) -> Benchmark:
    """Every dataset of version 1; `split` is `test` by default.

    Raises:
        StorageError: no dataset is there.
    """
    split = split or "test"
    paths = [path for path in ("", *folder.folders()) if _has_pages(folder, path, split)]
    if not paths:
        raise folder.missing(f"DATASET/data/{split}-*.parquet")
    return Benchmark("vidore_v1", tuple(_pages(folder, path, name, split) for path, name in _named(folder, paths)))


def _pages(folder: BenchmarkFolder, path: str, name: str, split: str) -> Part:
    shards, prefix = folder.parquet(join(path, "data"), split), f"{name}/"
    columns = QueryColumns("vidore_v1", name)
    pool = Pool(
        name,
        partial(_page_images, folder, shards, prefix, DocumentColumns(name)),
        partial(_page_names, folder, shards, prefix),
        is_searchable=False,
        prefix=prefix,
    )
    queries = partial(_page_queries, folder, shards, prefix, columns)
    return Part(name, pool, columns, queries, partial(_page_judgements, folder, shards, prefix), prefix=prefix)


def _page_images(
    folder: BenchmarkFolder, shards: Sequence[str], prefix: str, columns: DocumentColumns, is_included: DocumentFilter
) -> ContentRows:
    seen = set()

    def page(_line: int, row: Mapping[str, Any]) -> Iterator[ContentRow]:
        doc_id = prefix + record_id(row, ("image_filename",))
        if doc_id not in seen and is_included(doc_id):
            yield ContentRow(doc_id, image=image_bytes(row, "image"), extra=tuple(columns))
            seen.add(doc_id)

    return folder.read_tables(shards, ("image", "image_filename"), page, IMAGE_ROWS)


def _page_names(folder: BenchmarkFolder, shards: Sequence[str], prefix: str) -> Iterator[tuple[str, str]]:
    names = dict.fromkeys(name for _, name in _questions(folder, shards) if name)
    return ((prefix + name, "") for name in names)


def _questions(folder: BenchmarkFolder, shards: Sequence[str]) -> Iterator[tuple[str | None, str | None]]:
    """Question and page of each row, in the order of rows; what cannot be read is None."""
    for shard in shards:
        for record in folder.rows(shard, ("query", "image_filename")):
            row = {} if isinstance(record, SourceReject) else record[1]
            yield row.get("query"), row.get("image_filename")


def _query_ids(folder: BenchmarkFolder, shards: Sequence[str], prefix: str) -> dict[str, str]:
    """The id of each question: the number, from 0, of the first row that asks it."""
    ids: dict[str, str] = {}
    for number, (question, _) in enumerate(_questions(folder, shards)):
        if question is not None:
            ids.setdefault(question, f"{prefix}q{number}")
    return ids


def _page_queries(folder: BenchmarkFolder, shards: Sequence[str], prefix: str, columns: QueryColumns) -> ContentRows:
    for question, query_id in _query_ids(folder, shards, prefix).items():
        yield ContentRow(query_id, question, extra=tuple(columns))


def _page_judgements(folder: BenchmarkFolder, shards: Sequence[str], prefix: str) -> Qrels:
    ids = _query_ids(folder, shards, prefix)
    relevant = {question: page for question, page in _questions(folder, shards) if question is not None and page}
    for question, query_id in ids.items():
        if question in relevant:
            yield Qrel(query_id, prefix + relevant[question], 1)


def read_vidore_tables(folder: BenchmarkFolder, split: str | None) -> Benchmark:
    """Every dataset of version 2 or 3; `split` is `test` by default.

    Raises:
        StorageError: no dataset is there, or one lacks a file or a column.
    """
    paths = [path for path in ("", *folder.folders()) if _has_tables(folder, path)]
    if not paths:
        raise folder.missing("DATASET/corpus")
    datasets = call_all(partial(_tables, folder, path, name, split or "test") for path, name in _named(folder, paths))
    parts = [part for dataset in datasets for part in dataset]
    return Benchmark(parts[0].columns.benchmark, tuple(parts))


def _tables(folder: BenchmarkFolder, path: str, name: str, split: str) -> list[Part]:
    """A part for each language of the queries."""
    corpus, queries, qrels = (
        folder.require_parquet(join(path, table), split) for table in ("corpus", "queries", "qrels")
    )
    table_columns(folder, corpus, _CORPUS_ID, ("image",))
    table_columns(folder, qrels, _QUERY_ID, _CORPUS_ID, ("score",))
    query_columns = table_columns(folder, queries, _QUERY_ID, ("query",))
    prefix, version = f"{name}/", "vidore_v3" if "query_id" in query_columns else "vidore_v2"
    pool = Pool(
        name,
        partial(_table_images, folder, corpus, prefix, DocumentColumns(name)),
        partial(_table_texts, folder, corpus, prefix),
        is_searchable="markdown" in folder.columns(corpus[0]),
        prefix=prefix,
    )
    language_of = _languages(folder, queries, prefix) if "language" in query_columns else {}
    languages = sorted(set(language_of.values()), key=lambda language: language or "") or [None]
    parts = []
    for language in languages:
        subset = language if len(languages) > 1 else None
        columns = QueryColumns(version, name, subset, language)
        query_rows = partial(_table_queries, folder, queries, prefix, columns)
        qrel_rows = partial(_table_judgements, folder, qrels, prefix, language_of, language, languages[0])
        parts.append(Part(join(name, subset or ""), pool, columns, query_rows, qrel_rows, prefix=prefix))
    return parts


def _languages(folder: BenchmarkFolder, shards: Sequence[str], prefix: str) -> dict[str, str | None]:
    """The language of each query that can be read."""

    def language(_line: int, row: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
        yield prefix + record_id(row, _QUERY_ID), record_text(row, "language")

    return dict(without_rejects(folder.read_tables(shards, (*_QUERY_ID, "language"), language)))


def _table_judgements(
    folder: BenchmarkFolder,
    shards: Sequence[str],
    prefix: str,
    language_of: Mapping[str, str | None],
    language: str | None,
    default: str | None,
) -> Qrels:
    """The judgements of one language's queries; what belongs to no query is left to the `default` language."""
    for judgement in table_qrels(folder, shards, prefix, prefix):
        if isinstance(judgement, SourceReject):
            if language == default:
                yield judgement
        elif language_of.get(judgement.query_id, default) == language:
            yield judgement


def _table_images(
    folder: BenchmarkFolder, shards: Sequence[str], prefix: str, columns: DocumentColumns, is_included: DocumentFilter
) -> ContentRows:
    def page(_line: int, row: Mapping[str, Any]) -> Iterator[ContentRow]:
        doc_id = prefix + record_id(row, _CORPUS_ID)
        if is_included(doc_id):
            yield ContentRow(doc_id, image=image_bytes(row, "image"), extra=tuple(columns))

    return folder.read_tables(shards, (*_CORPUS_ID, "image"), page, IMAGE_ROWS)


def _table_texts(folder: BenchmarkFolder, shards: Sequence[str], prefix: str) -> Iterator[tuple[str, str]]:
    def text(_line: int, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield prefix + record_id(row, _CORPUS_ID), record_text(row, "markdown") or ""

    return without_rejects(folder.read_tables(shards, (*_CORPUS_ID, "markdown"), text))


def _table_queries(folder: BenchmarkFolder, shards: Sequence[str], prefix: str, columns: QueryColumns) -> ContentRows:
    def query(_line: int, row: Mapping[str, Any]) -> Iterator[ContentRow]:
        if row.get("language") == columns.language:
            yield ContentRow(prefix + record_id(row, _QUERY_ID), record_text(row, "query") or "", extra=tuple(columns))

    return folder.read_tables(shards, (*_QUERY_ID, "query", "language"), query)
