"""Texts and pictures of concepts as items, and tables of them: the contract's columns, and what an item is about."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lakerank import schemas
from lakerank.fingerprint import content_hash
from lakerank.records import Candidate
from lakerank_pictograms.art import UNSEEN_STYLE, Picture
from lakerank_pictograms.concepts import SCRIPTS, TEXT_ONLY_LANGUAGES, Concept, Label, Split, chosen

_KEYWORDS_A_QUERY = 3


@dataclass(frozen=True, slots=True)
class Item:
    """A text (`language` set) or a picture (`style` set) of a concept.

    `kind`: name, keywords (a few of them), description (name and all keywords), country, or picture.
    """

    item_id: str
    concept: Concept
    kind: str
    text: str | None = None
    image: bytes | None = None
    language: str | None = None
    style: str | None = None
    keywords: tuple[str, ...] = ()

    @property
    def modality(self) -> str:
        """`text` or `image`."""
        return "text" if self.image is None else "image"

    @property
    def script(self) -> str | None:
        """The script of a text, None for a picture."""
        return SCRIPTS[self.language] if self.language else None

    @property
    def split(self) -> Split:
        """The split of the concept."""
        return self.concept.split

    @property
    def unseen_style(self) -> bool:
        """Whether this is a picture in the style that training never sees."""
        return self.style == UNSEEN_STYLE

    @property
    def text_only(self) -> bool:
        """Whether this is a text in a language that training never pairs with pictures."""
        return self.language in TEXT_ONLY_LANGUAGES


def picture_item(concept: Concept, picture: Picture) -> Item:
    """A picture as a document or query."""
    return Item(f"{concept.key}.{picture.style}", concept, "picture", image=picture.png, style=picture.style)


def query_texts(label: Label) -> Iterator[Item]:
    """What somebody might type for a concept: its name, a few of its keywords, a flag's country."""
    yield _text_item(label, "name", label.name)
    words = chosen(label.keywords, _KEYWORDS_A_QUERY, f"keywords:{label.concept.key}:{label.language}")
    if len(words) > 1:
        yield _text_item(label, "keywords", ", ".join(words))
    if label.country:
        yield _text_item(label, "country", label.country)


def document_texts(label: Label) -> Iterator[Item]:
    """What an index might hold of a concept: its name, and its name with all keywords."""
    yield _text_item(label, "name", label.name)
    if label.keywords:
        yield _text_item(label, "description", label.description)


def by_concept(items: Iterable[Item]) -> Mapping[str, list[Item]]:
    """Items grouped by concept key, their order kept."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.concept.key, []).append(item)
    return groups


def _text_item(label: Label, kind: str, text: str) -> Item:
    item_id = f"{label.concept.key}.{label.language}.{kind}"
    return Item(item_id, label.concept, kind, text, language=label.language, keywords=label.keywords)


_ABOUT = [
    pa.field("modality", pa.string(), nullable=False),
    pa.field("concept", pa.string(), nullable=False),
    pa.field("name", pa.string(), nullable=False),
    pa.field("group", pa.string(), nullable=False),
    pa.field("subgroup", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("language", pa.string()),
    pa.field("script", pa.string()),
    pa.field("style", pa.string()),
    pa.field("keywords", pa.list_(pa.string())),
]
DOCUMENTS = pa.schema([*schemas.INGESTED_DOCUMENTS, *_ABOUT])
QUERIES = pa.schema([*schemas.INGESTED_QUERIES, *_ABOUT])

_BULK = ("image", "keywords")
_ROW_GROUP_IMAGES = 8
_ROW_GROUP_ROWS = 16_384


def documents_table(items: Iterable[Item]) -> pa.Table:
    """DOCUMENTS, one row an item, in order."""
    rows = [
        {"doc_id": item.item_id, "content_hash": content_hash(item.text, item.image), **_about(item)} for item in items
    ]
    return pa.Table.from_pylist(rows, DOCUMENTS)


def queries_table(items: Iterable[Item]) -> pa.Table:
    """QUERIES, one row an item, in order."""
    return pa.Table.from_pylist([{"query_id": item.item_id, **_about(item)} for item in items], QUERIES)


def sliced_queries_table(queries: Sequence[tuple[Item, str, str]]) -> pa.Table:
    """QUERIES with two more columns: the task and the slice each (query, task, slice) is reported under."""
    table = queries_table(query for query, _, _ in queries)
    for name, values in (("task", [line[1] for line in queries]), ("slice", [line[2] for line in queries])):
        table = table.append_column(pa.field(name, pa.string(), nullable=False), pa.array(values, pa.string()))
    return table


def candidates_table(listed: Iterable[Candidate]) -> pa.Table:
    """CANDIDATES, in order."""
    return pa.Table.from_pylist([asdict(line) for line in listed], schemas.CANDIDATES)


def qrels_table(judgements: Sequence[tuple[str, str, int]]) -> pa.Table:
    """QRELS from (query id, document id, relevance)."""
    columns = list(zip(*judgements, strict=True)) or [(), (), ()]
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schemas.QRELS, strict=True)],
        schema=schemas.QRELS,
    )


def write_table(path: Path, table: pa.Table, row_group_rows: int | None = None) -> str:
    """Write one Parquet file and return the SHA-256 of its bytes. Tables with pictures get small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = row_group_rows or (_ROW_GROUP_IMAGES if _holds_images(table) else _ROW_GROUP_ROWS)
    plain = [name for name in table.column_names if name not in _BULK]
    pq.write_table(
        table,
        path,
        row_group_size=rows,
        compression="zstd",
        store_schema=False,
        write_statistics=plain,  # of pictures they would be whole pictures
        use_dictionary=plain,
    )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _holds_images(table: pa.Table) -> bool:
    return "image" in table.column_names and table["image"].null_count < table.num_rows


def _about(item: Item) -> dict[str, object]:
    """Columns shared by documents and queries."""
    concept = item.concept
    return {
        "text": item.text,
        "image": item.image,
        "modality": item.modality,
        "concept": concept.key,
        "name": concept.name,
        "group": concept.group,
        "subgroup": concept.subgroup,
        "split": item.split,
        "kind": item.kind,
        "language": item.language,
        "script": item.script,
        "style": item.style,
        "keywords": list(item.keywords) or None,
    }
