"""ViDoRe: pages as images. Version 1 has a row a page with its question, versions 2 and 3 three tables as in BEIR.

Source: `src/vidore_benchmark/evaluation/vidore_evaluators/` and `pipeline_evaluation/dataset_loader.py` in
github.com/illuin-tech/vidore-benchmark, and the cards of the hub's `vidore/…`. As in the publisher's evaluator of
version 1, pages of one file name are one document, questions of one text are one query, and the last row of a question
says which page is right. Version 2 writes `corpus-id`, version 3 `corpus_id`, and gives each page's text as `markdown`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

from lakerank.ingest.rejects import SourceReject
from lakerank.ingest.tables import ContentRow
from lakerank.lake.storage import join
from lakerank.records import Qrel
from lakerank_datasets.layouts.benchmark import (
    ContentRows,
    DocumentColumns,
    DocumentFilter,
    Layout,
    Part,
    Pool,
    Qrels,
    QueryColumns,
    Table,
    table_rows,
)
from lakerank_datasets.layouts.benchmark_folder import CORPUS_ID, QUERY_ID, BenchmarkFolder

T = TypeVar("T")


def _named(folder: BenchmarkFolder, paths: Sequence[str]) -> list[tuple[str, str]]:
    """Path and name of datasets: the folder itself if it is one, else its folders."""
    return [("", folder.name)] if "" in paths else [(path, path) for path in paths]


def _page_datasets(folder: BenchmarkFolder, split: str) -> list[tuple[str, str]]:
    """The datasets of version 1, here or directly below."""

    def has_pages(path: str) -> bool:
        shards = folder.parquet(join(path, "data"), split) if "data" in folder.folders(path) else []
        return bool(shards) and {"query", "image", "image_filename"} <= set(folder.columns(shards[0]))

    return _named(folder, [path for path in ("", *folder.folders()) if has_pages(path)])


def _page_parts(folder: BenchmarkFolder, split: str, path: str, name: str) -> list[Part]:
    shards, columns = folder.parquet(join(path, "data"), split), QueryColumns("vidore_v1", name)
    pages = Table(shards, ("image_filename",), image="image")

    def documents(is_included: DocumentFilter, images: bool) -> ContentRows:
        seen: set[str] = set()
        columns = DocumentColumns(name)
        for page in table_rows(folder, pages, columns, lambda page: page not in seen and is_included(page), images):
            if isinstance(page, ContentRow):
                seen.add(page.id)
            yield page

    def queries() -> ContentRows:
        for question, (query_id, _) in _questions(folder, shards).items():
            yield ContentRow(query_id, question, extra=columns)

    def judgements() -> Qrels:
        return (Qrel(query_id, page, 1) for query_id, page in _questions(folder, shards).values() if page)

    pool = Pool(name, documents, f"{name}/")
    return [Part(name, pool, columns, queries, judgements, pool.prefix, is_searchable=False)]


def _questions(folder: BenchmarkFolder, shards: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """Id and page of each question: the number, from 0, of the first row that asks it, and the page of the last one."""
    questions: dict[str, tuple[str, str | None]] = {}
    rows = itertools.chain.from_iterable(folder.rows(shard, ("query", "image_filename")) for shard in shards)
    for number, row in enumerate(rows):
        if not isinstance(row, SourceReject) and (question := row[1].get("query")) is not None:
            query_id, page = questions.get(question, (f"q{number}", None))
            questions[question] = query_id, row[1].get("image_filename") or page
    return questions


def _table_datasets(folder: BenchmarkFolder, _split: str) -> list[tuple[str, str]]:
    """The datasets of version 2 or 3, here or directly below."""
    tables = {"corpus", "queries", "qrels"}
    return _named(folder, [path for path in ("", *folder.folders()) if tables <= set(folder.folders(path))])


def _table_parts(folder: BenchmarkFolder, split: str, path: str, name: str) -> list[Part]:
    """A part for each language of the queries."""
    corpus, queries, qrels = (
        folder.require_parquet(join(path, table), split) for table in ("corpus", "queries", "qrels")
    )
    folder.require_columns(corpus, CORPUS_ID, ("image",))
    folder.require_columns(qrels, QUERY_ID, CORPUS_ID, ("score",))
    query_columns = folder.require_columns(queries, QUERY_ID, ("query",))
    pages = Table(corpus, CORPUS_ID, image="image", search_text="markdown")
    documents = partial(table_rows, folder, pages, DocumentColumns(name))
    pool = Pool(name, documents, f"{name}/")
    version = "vidore_v3" if "query_id" in query_columns else "vidore_v2"
    questions = Table(queries, QUERY_ID, ("query",), "language")
    rows = partial(table_rows, folder, questions, QueryColumns(version, name))
    language_of = {row.id: cast("QueryColumns", row.extra).language for row in rows() if isinstance(row, ContentRow)}
    languages = sorted(set(language_of.values()), key=lambda language: language or "") or [None]
    parts = []
    for language in languages:
        subset = language if len(languages) > 1 else None
        columns = QueryColumns(version, name, subset, language)
        of_language = partial(_of_language, language_of, language, languages[0])
        query_rows = partial(of_language, partial(table_rows, folder, questions, columns))
        judgements = partial(of_language, partial(folder.table_qrels, qrels))
        part = Part(join(name, subset or ""), pool, columns, query_rows, judgements, pool.prefix)
        parts.append(replace(part, is_searchable="markdown" in folder.columns(corpus[0])))
    return parts


def _of_language(
    language_of: Mapping[str, str | None], language: str | None, default: str | None, read: Callable[[], Iterator[T]]
) -> Iterator[T]:
    """The queries, or the judgements, of one language; what belongs to no query is left to the `default` language."""
    for row in read():
        query_id = row.id if isinstance(row, ContentRow) else getattr(row, "query_id", "")
        if language_of.get(query_id, default) == language:
            yield row


PAGES = Layout(
    expects="DATASET/data/SPLIT-*.parquet with query, image and image_filename",
    split="test",
    datasets=_page_datasets,
    parts=_page_parts,
)

TABLES = Layout(
    expects="corpus/, queries/ and qrels/ with SPLIT-*.parquet in a folder for each dataset",
    split="test",
    datasets=_table_datasets,
    parts=_table_parts,
)
