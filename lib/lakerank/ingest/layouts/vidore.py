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

from lakerank.ingest.items import Item, SourceReject
from lakerank.ingest.jsonl import LineFault, read_each, record_id, record_text
from lakerank.ingest.layouts.benchmark import Benchmark, DocumentColumns, Part, Pool, QueryColumns, Wanted, gathered
from lakerank.ingest.layouts.published import Published
from lakerank.ingest.layouts.tables import IMAGE_ROWS, image_bytes, table_columns, table_qrels
from lakerank.lake.storage import join
from lakerank.records import Qrel

EXPECTS = "DATASET/data/SPLIT-*.parquet with query, image and image_filename"
EXPECTS_TABLES = "corpus/, queries/ and qrels/ with SPLIT-*.parquet in a folder for each dataset"

_CORPUS_ID = ("corpus-id", "corpus_id")
_QUERY_ID = ("query-id", "query_id")


def is_vidore_tables(folder: Published) -> bool:
    """Whether a dataset of version 2 or 3 lies here or directly below."""
    return any(_has_tables(folder, path) for path in ("", *folder.folders()))


def is_vidore(folder: Published) -> bool:
    """Whether a dataset of version 1 lies here or directly below."""
    return any(_has_pages(folder, path, "test") for path in ("", *folder.folders()))


def _has_tables(folder: Published, path: str) -> bool:
    return {"corpus", "queries", "qrels"} <= set(folder.folders(path))


def _has_pages(folder: Published, path: str, split: str) -> bool:
    shards = folder.parquet(join(path, "data"), split) if "data" in folder.folders(path) else []
    return bool(shards) and {"query", "image", "image_filename"} <= set(folder.columns(shards[0]))


def _named(folder: Published, paths: Sequence[str]) -> list[tuple[str, str]]:
    """Path and name of datasets: the folder itself if it is one, else its folders."""
    return [("", folder.name)] if "" in paths else [(path, path) for path in paths]


def read_vidore(folder: Published, split: str | None) -> Benchmark:
    """Every dataset of version 1; `split` is `test` by default.

    Raises:
        StorageError: no dataset is there.
    """
    split = split or "test"
    found = [path for path in ("", *folder.folders()) if _has_pages(folder, path, split)]
    if not found:
        raise folder.missing(f"DATASET/data/{split}-*.parquet")
    return Benchmark("vidore_v1", tuple(_pages(folder, path, name, split) for path, name in _named(folder, found)))


def _pages(folder: Published, path: str, name: str, split: str) -> Part:
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
    folder: Published, shards: Sequence[str], prefix: str, columns: DocumentColumns, wanted: Wanted
) -> Iterator[Item | SourceReject]:
    seen = set()

    def page(_line: int, row: Mapping[str, Any]) -> Iterator[Item]:
        doc_id = prefix + record_id(row, ("image_filename",))
        if doc_id not in seen and wanted(doc_id):
            yield Item(doc_id, image=image_bytes(row, "image"), kept=tuple(columns))
            seen.add(doc_id)

    for shard in shards:
        yield from read_each(shard, folder.rows(shard, ("image", "image_filename"), IMAGE_ROWS), page)


def _page_names(folder: Published, shards: Sequence[str], prefix: str) -> Iterator[tuple[str, str]]:
    names = dict.fromkeys(name for _, name in _questions(folder, shards) if name)
    return ((prefix + name, "") for name in names)


def _questions(folder: Published, shards: Sequence[str]) -> Iterator[tuple[str | None, str | None]]:
    """Question and page of each row, in the order of rows; what cannot be read is None."""
    for shard in shards:
        for record in folder.rows(shard, ("query", "image_filename")):
            row = {} if isinstance(record, SourceReject) else record[1]
            yield row.get("query"), row.get("image_filename")


def _query_ids(folder: Published, shards: Sequence[str], prefix: str) -> dict[str, str]:
    """The id of each question: the number, from 0, of the first row that asks it."""
    ids: dict[str, str] = {}
    for number, (question, _) in enumerate(_questions(folder, shards)):
        if question is not None:
            ids.setdefault(question, f"{prefix}q{number}")
    return ids


def _page_queries(
    folder: Published, shards: Sequence[str], prefix: str, columns: QueryColumns
) -> Iterator[Item | SourceReject]:
    for question, query_id in _query_ids(folder, shards, prefix).items():
        yield Item(query_id, question, kept=tuple(columns))


def _page_judgements(folder: Published, shards: Sequence[str], prefix: str) -> Iterator[Qrel | SourceReject]:
    ids = _query_ids(folder, shards, prefix)
    right = {question: page for question, page in _questions(folder, shards) if question is not None and page}
    for question, query_id in ids.items():
        if question in right:
            yield Qrel(query_id, prefix + right[question], 1)


def read_vidore_tables(folder: Published, split: str | None) -> Benchmark:
    """Every dataset of version 2 or 3; `split` is `test` by default.

    Raises:
        StorageError: no dataset is there, or one lacks a file or a column.
    """
    found = [path for path in ("", *folder.folders()) if _has_tables(folder, path)]
    if not found:
        raise folder.missing("DATASET/corpus")
    made = gathered(partial(_tables, folder, path, name, split or "test") for path, name in _named(folder, found))
    parts = [part for parts in made for part in parts]
    return Benchmark(parts[0].columns.benchmark, tuple(parts))


def _tables(folder: Published, path: str, name: str, split: str) -> list[Part]:
    """A part for each language of the queries."""
    corpus, queries, qrels = (_shards(folder, join(path, table), split) for table in ("corpus", "queries", "qrels"))
    table_columns(folder, corpus, _CORPUS_ID, ("image",))
    table_columns(folder, qrels, _QUERY_ID, _CORPUS_ID, ("score",))
    found = table_columns(folder, queries, _QUERY_ID, ("query",))
    prefix, version = f"{name}/", "vidore_v3" if "query_id" in found else "vidore_v2"
    pool = Pool(
        name,
        partial(_table_images, folder, corpus, prefix, DocumentColumns(name)),
        partial(_table_texts, folder, corpus, prefix),
        is_searchable="markdown" in folder.columns(corpus[0]),
        prefix=prefix,
    )
    spoken = _languages(folder, queries, prefix) if "language" in found else {}
    languages = sorted(set(spoken.values()), key=lambda language: language or "") or [None]
    parts = []
    for language in languages:
        subset = language if len(languages) > 1 else None
        columns = QueryColumns(version, name, subset, language)
        asked = partial(_table_queries, folder, queries, prefix, columns)
        judged = partial(_table_judgements, folder, qrels, prefix, spoken, language, languages[0])
        parts.append(Part(join(name, subset or ""), pool, columns, asked, judged, prefix=prefix))
    return parts


def _shards(folder: Published, path: str, split: str) -> list[str]:
    found = folder.parquet(path, split)
    if not found:
        raise folder.missing(f"{path}/{split}-*.parquet")
    return found


def _languages(folder: Published, shards: Sequence[str], prefix: str) -> dict[str, str | None]:
    """The language of each query that can be read."""
    found: dict[str, str | None] = {}
    for shard in shards:
        for record in folder.rows(shard, (*_QUERY_ID, "language")):
            if isinstance(record, tuple):
                try:
                    found[prefix + record_id(record[1], _QUERY_ID)] = record_text(record[1], "language")
                except LineFault:  # a reject of the queries
                    continue
    return found


def _table_judgements(
    folder: Published,
    shards: Sequence[str],
    prefix: str,
    spoken: Mapping[str, str | None],
    language: str | None,
    default: str | None,
) -> Iterator[Qrel | SourceReject]:
    """The judgements of one language's queries; what belongs to no query is left to the `default` language."""
    for judgement in table_qrels(folder, shards, prefix, prefix):
        if isinstance(judgement, SourceReject):
            if language == default:
                yield judgement
        elif spoken.get(judgement.query_id, default) == language:
            yield judgement


def _table_images(
    folder: Published, shards: Sequence[str], prefix: str, columns: DocumentColumns, wanted: Wanted
) -> Iterator[Item | SourceReject]:
    def page(_line: int, row: Mapping[str, Any]) -> Iterator[Item]:
        doc_id = prefix + record_id(row, _CORPUS_ID)
        if wanted(doc_id):
            yield Item(doc_id, image=image_bytes(row, "image"), kept=tuple(columns))

    for shard in shards:
        yield from read_each(shard, folder.rows(shard, (*_CORPUS_ID, "image"), IMAGE_ROWS), page)


def _table_texts(folder: Published, shards: Sequence[str], prefix: str) -> Iterator[tuple[str, str]]:
    for shard in shards:
        for record in folder.rows(shard, (*_CORPUS_ID, "markdown")):
            if isinstance(record, tuple):
                try:
                    yield prefix + record_id(record[1], _CORPUS_ID), record_text(record[1], "markdown") or ""
                except LineFault:  # a reject of the documents
                    continue


def _table_queries(
    folder: Published, shards: Sequence[str], prefix: str, columns: QueryColumns
) -> Iterator[Item | SourceReject]:
    def query(_line: int, row: Mapping[str, Any]) -> Iterator[Item]:
        if row.get("language") == columns.language:
            yield Item(prefix + record_id(row, _QUERY_ID), record_text(row, "query") or "", kept=tuple(columns))

    for shard in shards:
        yield from read_each(shard, folder.rows(shard, (*_QUERY_ID, "query", "language")), query)
