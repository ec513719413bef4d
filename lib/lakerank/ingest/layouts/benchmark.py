"""What a published benchmark is made of: pools of documents, and parts that ask queries of a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from lakerank.errors import SchemaError, StorageError
from lakerank.ingest.items import Item, SourceReject
from lakerank.records import Candidate, Qrel

#: Says whether the document of an id is to be read at all; the others cost no image.
Wanted = Callable[[str], bool]

Documents = Iterator[Item | SourceReject]
Queries = Iterator[Item | SourceReject]
Judgements = Iterator[Qrel | SourceReject]


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
    documents: Callable[[Wanted], Documents]
    index: Callable[[], Iterator[tuple[str, str]]]
    is_searchable: bool
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Queries of one dataset, subset and language, asked of one pool.

    Without `judgements` every query belongs to it, else only those that are judged, as benchmark code does.
    `candidates` is given where the benchmark itself says what is compared with what.
    `prefix` stands before the publisher's query ids.
    """

    name: str
    pool: Pool
    columns: QueryColumns
    queries: Callable[[], Queries]
    judgements: Callable[[], Judgements] | None
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


def gathered(makers: Iterable[Callable[[], T]]) -> list[T]:
    """What each of some functions makes, once all have been tried.

    Raises:
        StorageError: what any of them could not find, all together.
    """
    made, faults = [], []
    for make in makers:
        try:
            made.append(make())
        except (StorageError, SchemaError) as error:
            faults.append(str(error))
    if faults:
        raise StorageError("\n".join(faults))
    return made


def text_pool(name: str, prefix: str, documents: Callable[[Wanted], Documents]) -> Pool:
    """A pool of texts: searchable, and its index is what its documents say."""

    def index() -> Iterator[tuple[str, str]]:
        for document in documents(lambda doc_id: True):
            if isinstance(document, Item):
                yield document.id, document.text or ""

    return Pool(name, documents, index, is_searchable=True, prefix=prefix)


def titled(title: str | None, text: str | None) -> str:
    """A passage under its title, as BEIR joins them: one space between, none around."""
    return f"{title or ''} {text or ''}".strip()
