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
from dataclasses import dataclass
from functools import partial
from typing import Any

from lakerank.ingest.layouts.benchmark import (
    ContentRows,
    DocumentColumns,
    DocumentFilter,
    Layout,
    Part,
    Pool,
    Qrels,
    QueryColumns,
)
from lakerank.ingest.layouts.benchmark_folder import (
    CORPUS_ID,
    IMAGE_ROWS,
    QUERY_ID,
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
    pages = _Pages(folder, folder.parquet(join(path, "data"), split), name)
    pool = Pool(name, pages.documents, pages.index, is_searchable=False, prefix=f"{name}/")
    columns = QueryColumns("vidore_v1", name)
    return [Part(name, pool, columns, partial(pages.queries, columns), pages.judgements, prefix=f"{name}/")]


@dataclass(frozen=True, slots=True)
class _Pages:
    """A dataset of version 1. A question's id is the number, from 0, of the first row that asks it."""

    folder: BenchmarkFolder
    shards: Sequence[str]
    name: str

    def documents(self, is_included: DocumentFilter) -> ContentRows:
        seen = set()

        def page(_line: int, row: Mapping[str, Any]) -> Iterator[ContentRow]:
            doc_id = f"{self.name}/{record_id(row, ('image_filename',))}"
            if doc_id not in seen and is_included(doc_id):
                yield ContentRow(doc_id, image=image_bytes(row, "image"), extra=DocumentColumns(self.name))
                seen.add(doc_id)

        return self.folder.read(self.shards, page, ("image", "image_filename"), IMAGE_ROWS)

    def index(self) -> Iterator[tuple[str, str]]:
        names = dict.fromkeys(name for _, name in self._questions() if name)
        return ((f"{self.name}/{name}", "") for name in names)

    def queries(self, columns: QueryColumns) -> ContentRows:
        return (ContentRow(query_id, question, extra=columns) for question, query_id in self._query_ids().items())

    def judgements(self) -> Qrels:
        relevant = {question: page for question, page in self._questions() if question is not None and page}
        for question, query_id in self._query_ids().items():
            if question in relevant:
                yield Qrel(query_id, f"{self.name}/{relevant[question]}", 1)

    def _questions(self) -> Iterator[tuple[str | None, str | None]]:
        """Question and page of each row, in the order of rows; what cannot be read is None."""
        for shard in self.shards:
            for record in self.folder.rows(shard, ("query", "image_filename")):
                row = {} if isinstance(record, SourceReject) else record[1]
                yield row.get("query"), row.get("image_filename")

    def _query_ids(self) -> dict[str, str]:
        ids: dict[str, str] = {}
        for number, (question, _) in enumerate(self._questions()):
            if question is not None:
                ids.setdefault(question, f"{self.name}/q{number}")
        return ids


def _table_datasets(folder: BenchmarkFolder, _split: str) -> list[tuple[str, str]]:
    """The datasets of version 2 or 3, here or directly below."""
    tables = {"corpus", "queries", "qrels"}
    return _named(folder, [path for path in ("", *folder.folders()) if tables <= set(folder.folders(path))])


def _table_parts(folder: BenchmarkFolder, split: str, path: str, name: str) -> list[Part]:
    """A part for each language of the queries."""
    corpus, queries, qrels = (
        folder.require_parquet(join(path, table), split) for table in ("corpus", "queries", "qrels")
    )
    table_columns(folder, corpus, CORPUS_ID, ("image",))
    table_columns(folder, qrels, QUERY_ID, CORPUS_ID, ("score",))
    query_columns = table_columns(folder, queries, QUERY_ID, ("query",))
    tables = _Tables(folder, name, corpus, queries, qrels)
    is_searchable = "markdown" in folder.columns(corpus[0])
    pool = Pool(name, tables.documents, tables.index, is_searchable, prefix=f"{name}/")
    language_of = tables.languages() if "language" in query_columns else {}
    languages = sorted(set(language_of.values()), key=lambda language: language or "") or [None]
    parts = []
    for language in languages:
        subset = language if len(languages) > 1 else None
        version = "vidore_v3" if "query_id" in query_columns else "vidore_v2"
        columns = QueryColumns(version, name, subset, language)
        judgements = partial(tables.judgements, language_of, language, languages[0])
        query_rows = partial(tables.query_rows, columns)
        parts.append(Part(join(name, subset or ""), pool, columns, query_rows, judgements, prefix=f"{name}/"))
    return parts


@dataclass(frozen=True, slots=True)
class _Tables:
    """A dataset of version 2 or 3, by the files of its tables."""

    folder: BenchmarkFolder
    name: str
    corpus: Sequence[str]
    queries: Sequence[str]
    qrels: Sequence[str]

    def documents(self, is_included: DocumentFilter) -> ContentRows:
        def page(_line: int, row: Mapping[str, Any]) -> Iterator[ContentRow]:
            doc_id = f"{self.name}/{record_id(row, CORPUS_ID)}"
            if is_included(doc_id):
                columns = DocumentColumns(self.name, search_text=record_text(row, "markdown"))
                yield ContentRow(doc_id, image=image_bytes(row, "image"), extra=columns)

        return self.folder.read(self.corpus, page, (*CORPUS_ID, "image", "markdown"), IMAGE_ROWS)

    def index(self) -> Iterator[tuple[str, str]]:
        def text(_line: int, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
            yield f"{self.name}/{record_id(row, CORPUS_ID)}", record_text(row, "markdown") or ""

        return without_rejects(self.folder.read(self.corpus, text, (*CORPUS_ID, "markdown")))

    def query_rows(self, columns: QueryColumns) -> ContentRows:
        """The queries in the language of some columns."""

        def query(_line: int, row: Mapping[str, Any]) -> Iterator[ContentRow]:
            if row.get("language") == columns.language:
                query_id = f"{self.name}/{record_id(row, QUERY_ID)}"
                yield ContentRow(query_id, record_text(row, "query") or "", extra=columns)

        return self.folder.read(self.queries, query, (*QUERY_ID, "query", "language"))

    def languages(self) -> dict[str, str | None]:
        """The language of each query that can be read."""

        def language(_line: int, row: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
            yield f"{self.name}/{record_id(row, QUERY_ID)}", record_text(row, "language")

        return dict(without_rejects(self.folder.read(self.queries, language, (*QUERY_ID, "language"))))

    def judgements(self, language_of: Mapping[str, str | None], language: str | None, default: str | None) -> Qrels:
        """The judgements of one language's queries; what belongs to no query is left to the `default` language."""
        for judgement in table_qrels(self.folder, self.qrels, f"{self.name}/"):
            owner = default if isinstance(judgement, SourceReject) else language_of.get(judgement.query_id, default)
            if owner == language:
                yield judgement


PAGES = Layout(
    expects="DATASET/data/SPLIT-*.parquet with query, image and image_filename",
    example="DATASET/data/{split}-*.parquet",
    split="test",
    datasets=_page_datasets,
    parts=_page_parts,
)

TABLES = Layout(
    expects="corpus/, queries/ and qrels/ with SPLIT-*.parquet in a folder for each dataset",
    example="DATASET/corpus",
    split="test",
    datasets=_table_datasets,
    parts=_table_parts,
)
