"""A published benchmark: pools of documents, and parts, each with the queries for one pool; what all layouts share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

from lakerank.ingest.lines import record_id, record_text
from lakerank.ingest.rejects import SourceReject
from lakerank.ingest.tables import ContentRow
from lakerank.records import Candidate, Qrel
from lakerank_datasets.layouts.benchmark_folder import IMAGE_ROWS, BenchmarkFolder, image_bytes

ContentRows = Iterator[ContentRow | SourceReject]
Qrels = Iterator[Qrel | SourceReject]

#: Whether to read the document of an id; images of others are not read.
DocumentFilter = Callable[[str], bool]

#: Reads the documents that a filter includes, with their images or without.
ReadDocuments = Callable[[DocumentFilter, bool], ContentRows]


class QueryColumns(NamedTuple):
    """The extra columns of `queries`, in their order; `answers` is a JSON array of strings."""

    benchmark: str
    dataset: str
    subset: str | None = None
    language: str | None = None
    task: str | None = None
    text_prefix: str | None = None
    answers: str | None = None


class DocumentColumns(NamedTuple):
    """The extra columns of `documents`, in their order; `search_text` is a page image's text, for search only."""

    dataset: str
    language: str | None = None
    search_text: str | None = None


class Table(NamedTuple):
    """A published table: its files, and the names of its fields.

    The first of `ids` that is there is the id, `texts` are joined by a space. `image` is one as `datasets` stores it.
    `language` is that of a row, where the dataset has not one for all.
    """

    paths: Sequence[str]
    ids: tuple[str, ...]
    texts: tuple[str, ...] = ()
    language: str = ""
    image: str = ""
    search_text: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """Documents that queries are ranked against, under the publisher's ids; `prefix` precedes them in the lake."""

    name: str
    documents: ReadDocuments
    prefix: str = ""

    def index(self) -> Iterator[tuple[str, str]]:
        """Id and text to search in of each document, "" where there is none; images are not read."""
        for document in self.documents(every_id, False):
            if isinstance(document, ContentRow):
                yield document.id, document.text or cast("DocumentColumns", document.extra).search_text or ""


@dataclass(frozen=True, slots=True)
class Part:
    """Queries of one dataset, subset and language, for one pool; `prefix` precedes their ids in the lake.

    Only judged queries count, as in benchmark code; without `judgements` all do, and a document is relevant where it
    contains one of the query's answers. `candidates` is given where the benchmark itself defines what is compared with
    what; `is_searchable` says whether a search in the pool's texts makes a first stage. Where `excludes_itself`, a
    document under a query's own id is the query, and no candidate of it, as BEIR's evaluation has it.
    """

    name: str
    pool: Pool
    columns: QueryColumns
    queries: Callable[[], ContentRows]
    judgements: Callable[[], Qrels] | None
    prefix: str = ""
    candidates: Callable[[], Iterator[Candidate]] | None = None
    is_searchable: bool = True
    excludes_itself: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """How a benchmark is published, and in words what the folder has to hold.

    `datasets` lists what the folder holds of a split, from listings and headers alone; `parts` reads one of these. The
    default `split` is the one that figures are given for. A folder with a dataset is recognised as of this layout,
    unless `recognises` decides.
    """

    expects: str
    split: str
    datasets: Callable[[BenchmarkFolder, str], Sequence[tuple[Any, ...]]]
    parts: Callable[..., Sequence[Part]]
    recognises: Callable[[BenchmarkFolder], bool] | None = None


def passage_part(
    folder: BenchmarkFolder,
    name: str,
    columns: QueryColumns,
    corpus: Table,
    queries: Table,
    judgements: Callable[[], Qrels],
) -> Part:
    """A part with a pool of its own: passages in the queries' language."""
    documents = partial(table_rows, folder, corpus, DocumentColumns(columns.dataset, columns.language))
    pool, query_rows = Pool(name, documents, f"{name}/"), partial(table_rows, folder, queries, columns)
    return Part(name, pool, columns, query_rows, judgements, f"{name}/")


def passages(*paths: str) -> Table:
    """A corpus of passages with their titles in front, as BEIR joins them."""
    return Table(paths, ("_id", "docid", "id"), ("title", "text"), "language")


def every_id(_id: str) -> bool:
    """The filter that leaves nothing out."""
    return True


def table_rows(
    folder: BenchmarkFolder,
    table: Table,
    columns: QueryColumns | DocumentColumns,
    is_included: DocumentFilter = every_id,
    images: bool = True,
) -> ContentRows:
    """The documents or queries of a table, with one value for each extra column."""
    image = table.image if images else ""

    def row(_line: int, record: Mapping[str, Any]) -> Iterator[ContentRow]:
        row_id = record_id(record, *table.ids)
        if is_included(row_id):
            texts = [record_text(record, name) or "" for name in table.texts]
            text = " ".join(texts).strip() if len(texts) > 1 else "".join(texts)
            content = image_bytes(record, image) if image else None
            own: dict[str, Any] = {"language": columns.language or record_text(record, table.language) or None}
            if table.search_text:
                own["search_text"] = record_text(record, table.search_text)
            yield ContentRow(row_id, text if texts else None, content, columns._replace(**own))

    names = [*table.ids, *table.texts, *filter(None, (table.language, image, table.search_text))]
    return folder.read(table.paths, row, names, IMAGE_ROWS if image else 4096)
