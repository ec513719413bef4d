"""One text or picture of a concept: the stuff that both pictogram lakes' documents and queries are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lakerank_pictograms.art import UNSEEN_STYLE, Picture
from lakerank_pictograms.concepts import TEXT_ONLY_LANGUAGES, Concept, Split, chosen
from lakerank_pictograms.texts import SCRIPTS, Label

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
