"""A published benchmark: pools of documents, and parts, each with the queries for one pool; what all layouts share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from lakerank.errors import SchemaError, StorageError
from lakerank.ingest.layouts.benchmark_folder import BenchmarkFolder
from lakerank.ingest.lines import record_id, record_text
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
    """The extra columns of `documents`, in their order; `search_text` is a page image's text, for search only."""

    dataset: str
    language: str | None = None
    search_text: str | None = None


class TextFields(NamedTuple):
    """Names of fields: the first of `ids` that is there is the id, `texts` are joined by a space.

    `language` is that of a row, where the dataset has not one for all.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    language: str = ""


#: A passage with its title in front, as BEIR joins them.
PASSAGE = TextFields(("_id", "docid", "id"), ("title", "text"), "language")


@dataclass(frozen=True, slots=True)
class Pool:
    """Documents that queries are ranked against.

    `index` yields (id, text to search in) without reading images; the text is "" where there is none. `is_searchable`
    says whether a search in these texts makes a first stage. `prefix` precedes the publisher's document ids.
    """

    name: str
    documents: Callable[[DocumentFilter], ContentRows]
    index: Callable[[], Iterator[tuple[str, str]]]
    is_searchable: bool
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Queries of one dataset, subset and language, for one pool.

    Without `judgements` it has every query, else only the judged ones, as benchmark code does. `candidates` is
    given where the benchmark itself defines what is compared with what.
    `prefix` precedes the publisher's query ids. Where `excludes_itself`, a document under a query's own id is the
    query, and no candidate of it, as BEIR's evaluation has it.
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
    excludes_itself: bool = False


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A published benchmark, or as much of it as the source holds."""

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """The layout's name; ViDoRe's with the version."""
        return self.parts[0].columns.benchmark

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Each pool once, in the order of the parts."""
        return tuple({part.pool.name: part.pool for part in self.parts}.values())


@dataclass(frozen=True, slots=True)
class Layout:
    """How a benchmark is published: what the folder has to hold, in words, and one name that says what is missing.

    `datasets` lists what the folder holds of a split, from listings and headers alone; `parts` reads one of these. The
    default `split` is the one that figures are given for. A folder with a dataset is recognised as of this layout,
    unless `recognises` decides.
    """

    expects: str
    example: str
    split: str
    datasets: Callable[[BenchmarkFolder, str], Sequence[tuple[Any, ...]]]
    parts: Callable[..., Sequence[Part]]
    recognises: Callable[[BenchmarkFolder], bool] | None = None

    def is_layout_of(self, folder: BenchmarkFolder) -> bool:
        """Whether the folder has a benchmark in this layout."""
        return self.recognises(folder) if self.recognises else bool(self.datasets(folder, self.split))

    def read(self, folder: BenchmarkFolder, split: str | None) -> Benchmark:
        """Every dataset of the folder.

        Raises:
            StorageError: no dataset is there, or some lack a file or a column; all faults at once.
        """
        split = split or self.split
        datasets = self.datasets(folder, split)
        if not datasets:
            raise folder.missing(self.example.format(split=split))
        parts: list[Part] = []
        faults = []
        for dataset in datasets:
            try:
                parts += self.parts(folder, split, *dataset)
            except (StorageError, SchemaError) as error:
                faults.append(str(error))
        if faults:
            raise StorageError("\n".join(faults))
        return Benchmark(tuple(parts))


def text_pool(name: str, prefix: str, documents: Callable[[DocumentFilter], ContentRows]) -> Pool:
    """A searchable pool of texts, indexed by its documents' texts."""

    def index() -> Iterator[tuple[str, str]]:
        for document in documents(every_id):
            if isinstance(document, ContentRow):
                yield document.id, document.text or ""

    return Pool(name, documents, index, is_searchable=True, prefix=prefix)


def passage_part(
    folder: BenchmarkFolder,
    columns: QueryColumns,
    name: str,
    corpus: Sequence[str],
    queries: Callable[[], ContentRows],
    judgements: Callable[[], Qrels],
) -> Part:
    """A part with its own pool: the passages of some JSON Lines files, in the queries' language."""
    document_columns = DocumentColumns(columns.dataset, columns.language)
    documents = partial(text_rows, folder, corpus, PASSAGE, f"{name}/", document_columns)
    return Part(name, text_pool(name, f"{name}/", documents), columns, queries, judgements, prefix=f"{name}/")


def every_id(_id: str) -> bool:
    """The filter that leaves nothing out."""
    return True


def text_rows(
    folder: BenchmarkFolder,
    paths: Sequence[str],
    fields: TextFields,
    prefix: str,
    columns: QueryColumns | DocumentColumns,
    is_included: DocumentFilter = every_id,
) -> ContentRows:
    """Rows of text from JSON Lines or Parquet files, with one value for each extra column."""

    def text_row(_line: int, record: Mapping[str, Any]) -> Iterator[ContentRow]:
        row_id = prefix + record_id(record, fields.ids)
        if is_included(row_id):
            texts = [record_text(record, name) or "" for name in fields.texts]
            language = columns.language or (record_text(record, fields.language) or None if fields.language else None)
            text = " ".join(texts).strip() if len(texts) > 1 else texts[0]
            yield ContentRow(row_id, text, extra=columns._replace(language=language))

    return folder.read(paths, text_row, (*fields.ids, *fields.texts, fields.language))
