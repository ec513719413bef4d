"""A published benchmark: pools of documents, and parts, each with the queries for one pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from lakerank.errors import SchemaError, StorageError
from lakerank.ingest.tables import ContentRow, SourceReject
from lakerank.records import Candidate, Qrel

#: Whether to read the document of an id; images of others are not read.
DocumentFilter = Callable[[str], bool]

ContentRows = Iterator[ContentRow | SourceReject]
Qrels = Iterator[Qrel | SourceReject]


class QueryColumns(NamedTuple):
    """The extra columns of `queries`, in their order; `answers` is a JSON array of strings."""

    benchmark: str
    dataset: str
    subset: str | None = None
    language: str | None = None
    task: str | None = None
    instruction: str | None = None
    answers: str | None = None


class DocumentColumns(NamedTuple):
    """The extra columns of `documents`, in their order."""

    dataset: str
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """Documents that queries are ranked against.

    `index` yields (id, text to search in) without reading images; the text is "" where there is none. `is_searchable`
    says whether a search in these texts makes a first stage. `prefix` stands before the publisher's document ids.
    """

    name: str
    documents: Callable[[DocumentFilter], ContentRows]
    index: Callable[[], Iterator[tuple[str, str]]]
    is_searchable: bool
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Queries of one dataset, subset and language, for one pool.

    Without `judgements` it has every query, else only those that are judged, as benchmark code does. `candidates` is
    given where the benchmark itself defines what is compared with what.
    `prefix` stands before the publisher's query ids.
    """

    name: str
    pool: Pool
    columns: QueryColumns
    queries: Callable[[], ContentRows]
    judgements: Callable[[], Qrels] | None
    candidates: Callable[[], Iterator[Candidate]] | None = None
    is_text: bool = True
    judged_by_answers: bool = False
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A published benchmark, or as much of it as the source holds."""

    name: str
    parts: tuple[Part, ...]

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Each pool once, in the order of the parts."""
        return tuple({part.pool.name: part.pool for part in self.parts}.values())


T = TypeVar("T")


def call_all(functions: Iterable[Callable[[], T]]) -> list[T]:
    """The results of some functions, once all have been tried.

    Raises:
        StorageError: the errors of all that failed.
    """
    results, faults = [], []
    for function in functions:
        try:
            results.append(function())
        except (StorageError, SchemaError) as error:
            faults.append(str(error))
    if faults:
        raise StorageError("\n".join(faults))
    return results


def text_pool(name: str, prefix: str, documents: Callable[[DocumentFilter], ContentRows]) -> Pool:
    """A searchable pool of texts, indexed by its documents' texts."""

    def index() -> Iterator[tuple[str, str]]:
        for document in documents(lambda doc_id: True):
            if isinstance(document, ContentRow):
                yield document.id, document.text or ""

    return Pool(name, documents, index, is_searchable=True, prefix=prefix)


def titled(title: str | None, text: str | None) -> str:
    """A passage with its title in front, as BEIR joins them: one space between, none around."""
    return f"{title or ''} {text or ''}".strip()
