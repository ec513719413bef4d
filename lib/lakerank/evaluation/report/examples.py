"""Example queries: which ones the report shows, and the contents of the top of their lists, fetched by reference."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image, ImageOps

from lakerank import schemas
from lakerank.evaluation.inputs import NAME, LakeTables
from lakerank.evaluation.metrics.bootstrap import Hashes
from lakerank.evaluation.metrics.measures import NAMES, QueryFigures
from lakerank.evaluation.pairs import Ints, Pairs
from lakerank.evaluation.rows import Attributes, fetch_rows, read_attributes
from lakerank.lake.blobs import Blob
from lakerank.lake.storage import Storage
from lakerank.limits import Limits
from lakerank.model.preprocess.images import open_header, to_rgb

#: Queries kept as the largest gains and as the largest losses; queries kept of each task to choose examples from.
EXTREMES, PER_TASK = 6, 48

#: Documents kept of each list.
DEPTH = 5

#: Characters of a text that are shown.
SNIPPET = 240

#: The longer side of a thumbnail, in pixels.
THUMBNAIL_SIDE = 96

#: Larger images are named instead of shown.
THUMBNAIL_LIMITS = Limits(max_source_pixels=40_000_000, max_source_bytes=64 * 2**20)

GAINED, LOST, TASK = "gained", "lost", "task"


@dataclass(frozen=True, slots=True)
class ListedDocument:
    """A document in a list, by rank from 1. `other_rank` is its rank in the other list, None where it is not in it."""

    doc_id: str
    rank: int
    other_rank: int | None
    judgement: int | None
    relevance: float | None

    @property
    def is_relevant(self) -> bool:
        return self.judgement is not None and self.judgement > 0


@dataclass(frozen=True, slots=True)
class ExampleQuery:
    """A query with its figures and the top of its lists. `first_stage` is None when the candidates have no order.

    `draw` is a hash of the query id: queries in its order are a random sample.
    """

    query_id: str
    draw: int
    labels: Mapping[str, str]
    gain: float
    first_stage: Mapping[str, float] | None
    reranked: Mapping[str, float]
    before: tuple[ListedDocument, ...]
    after: tuple[ListedDocument, ...]


#: Queries to choose from: by (GAINED, ""), (LOST, ""), and (TASK, task).
ExamplePool = dict[tuple[str, str], list[ExampleQuery]]

_ORDER: dict[str, Callable[[ExampleQuery], tuple[float, str]]] = {
    GAINED: lambda query: (-query.gain, query.query_id),
    LOST: lambda query: (query.gain, query.query_id),
    TASK: lambda query: (query.draw, query.query_id),
}


def pool_of(pairs: Pairs, queries: Ints, figures: QueryFigures, hashes: Hashes, by_task: bool) -> ExamplePool:
    """The example pool of some judged `queries` (J,) of a block, with their `figures` and `hashes` (J,).

    Args:
        by_task: whether the task is one of the columns that make slices.
    """
    gains, query_ids = figures.gain.tolist(), [pairs.query_ids[number] for number in queries.tolist()]
    draws = hashes.tolist()
    by_gain = sorted(range(len(query_ids)), key=lambda row: (-gains[row], query_ids[row]))
    by_loss = sorted(range(len(query_ids)), key=lambda row: (gains[row], query_ids[row]))
    rows: dict[tuple[str, str], list[int]] = {
        (GAINED, ""): [row for row in by_gain[:EXTREMES] if gains[row] > 0],
        (LOST, ""): [row for row in by_loss[:EXTREMES] if gains[row] < 0],
    }
    for row in sorted(range(len(query_ids)), key=draws.__getitem__):
        task = pairs.labels[int(queries[row])].get("task", "") if by_task else ""
        of_task = rows.setdefault((TASK, task), [])
        if len(of_task) < PER_TASK:
            of_task.append(row)

    def example(row: int) -> ExampleQuery:
        number = int(queries[row])
        before = () if figures.first_stage is None else _top(pairs, number, pairs.first_stage, pairs.ranked)
        after = _top(pairs, number, pairs.ranked, None if figures.first_stage is None else pairs.first_stage, True)
        first, reranked = (
            None if table is None else dict(zip(NAMES, table[row].tolist(), strict=True))
            for table in (figures.first_stage, figures.reranked)
        )
        labels = pairs.labels[number]
        return ExampleQuery(query_ids[row], draws[row], labels, gains[row], first, reranked or {}, before, after)

    examples = {row: example(row) for row in {row for chosen in rows.values() for row in chosen}}
    return {key: [examples[row] for row in chosen] for key, chosen in rows.items()}


def merge_pools(pool: ExamplePool, other: ExamplePool) -> ExamplePool:
    """The pool of both pools' queries."""
    return {
        (kind, task): sorted(pool.get((kind, task), []) + other.get((kind, task), []), key=_ORDER[kind])[
            : PER_TASK if kind == TASK else EXTREMES
        ]
        for kind, task in {**pool, **other}
    }


def _top(
    pairs: Pairs, query: int, ranks: Ints, other_ranks: Ints | None, scored: bool = False
) -> tuple[ListedDocument, ...]:
    """The first DEPTH documents of a query's list."""
    start, end = pairs.query.searchsorted([query, query + 1])
    rows = [int(row) + start for row in ranks[start:end].argsort(kind="stable") if ranks[start + row] >= 0]
    return tuple(
        ListedDocument(
            pairs.doc_ids[int(row)].as_py(),
            int(ranks[row]) + 1,
            int(other_ranks[row]) + 1 if other_ranks is not None and other_ranks[row] >= 0 else None,
            int(pairs.judgement[row]) if pairs.judged[row] else None,
            float(pairs.relevance[row]) if scored else None,
        )
        for row in rows[:DEPTH]
    )


def choose(pool: ExamplePool, count: int) -> list[ExampleQuery]:
    """Up to `count` examples, whatever their figures: task by task in turn, new languages and names first."""
    waiting = {task: list(queries) for (kind, task), queries in pool.items() if kind == TASK}
    tasks = sorted(waiting, key=lambda task: (-len(waiting[task]), task))
    chosen: list[ExampleQuery] = []
    languages: set[str | None] = set()
    names: set[str | None] = set()
    while len(chosen) < count and any(waiting.values()):
        for task in tasks:
            if waiting[task]:
                labels = [query.labels for query in waiting[task]]
                news = [(part.get("language") not in languages) + (part.get(NAME) not in names) for part in labels]
                position = news.index(max(news))
                languages.add(labels[position].get("language"))
                names.add(labels[position].get(NAME))
                chosen.append(waiting[task].pop(position))
    return chosen[:count]


@dataclass(frozen=True, slots=True)
class Content:
    """A query's or document's content as shown: the stored image, and the text cut to SNIPPET characters."""

    id: str
    name: str | None
    text: str | None
    image: bytes | None

    @property
    def label(self) -> str:
        """One line: the text of a text, otherwise the name, or else the id."""
        return (self.text if self.image is None else None) or self.name or self.text or self.id


@dataclass(frozen=True, slots=True)
class Example:
    """An example query with its content and that of the documents at the top of its lists."""

    query: Content
    entry: ExampleQuery
    before: tuple[tuple[ListedDocument, Content], ...]
    after: tuple[tuple[ListedDocument, Content], ...]

    @property
    def labels(self) -> Mapping[str, str]:
        """The extra columns of the queries table, without the name."""
        return {name: value for name, value in self.entry.labels.items() if name != NAME}


def fetch_examples(storage: Storage, tables: LakeTables, chosen: Sequence[ExampleQuery]) -> list[Example]:
    """Fetch the content of example queries and of the documents at the top of their lists.

    Raises:
        StorageError: a table has changed since it was read.
    """
    doc_ids = {listed.doc_id for query in chosen for listed in (*query.before, *query.after)}
    queries = _contents(storage, tables.queries, schemas.QUERIES, {query.query_id for query in chosen})
    documents = _contents(storage, tables.documents, schemas.DOCUMENTS, doc_ids)
    return [
        Example(
            queries[query.query_id],
            query,
            tuple((listed, documents[listed.doc_id]) for listed in query.before),
            tuple((listed, documents[listed.doc_id]) for listed in query.after),
        )
        for query in chosen
    ]


def _contents(storage: Storage, uri: str, schema: pa.Schema, ids: set[str]) -> dict[str, Content]:
    attributes = read_attributes(storage, uri, schema, (NAME,), ids)
    blobs = fetch_rows(storage, attributes, ids, schema.names[0])
    return {row_id: _content(row_id, blobs.get(row_id), attributes.get(row_id)) for row_id in ids}


def _content(row_id: str, blob: Blob | None, attributes: Attributes | None) -> Content:
    """The content of a row; of an id that no table has, the id alone."""
    name = attributes.extra.get(NAME) if attributes else None
    if blob is None:
        return Content(row_id, name, None, None)
    text = None if blob.text is None else " ".join(blob.text.decode(errors="replace").split())
    if text and len(text) > SNIPPET:
        text = f"{text[:SNIPPET].rstrip()}…"
    return Content(row_id, name, text, blob.image)


def thumbnail(image: bytes) -> str | None:
    """A JPEG of at most THUMBNAIL_SIDE² pixels as a data URI; None when the image is bad or over THUMBNAIL_LIMITS.

    Every thumbnail is encoded anew: no byte of the stored image, nor anything hidden in it, reaches the page.
    """
    buffer = io.BytesIO()
    try:
        picture = open_header(image, THUMBNAIL_LIMITS)
        picture.draft("RGB", (2 * THUMBNAIL_SIDE, 2 * THUMBNAIL_SIDE))  # only JPEG can be decoded at a reduced size
        small = to_rgb(ImageOps.exif_transpose(picture))
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        small.save(buffer, format="JPEG", quality=85)
    except Exception:  # a damaged file makes decoders raise anything, and a page must not depend on it
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
