"""Which queries a pictogram lake asks of which documents: tasks, and the slices that are reported apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lakerank_pictograms.art import UNSEEN_STYLE
from lakerank_pictograms.concepts import TEXT_ONLY_LANGUAGES, Concept, Split, chosen, unit_hash
from lakerank_pictograms.items import Item, document_texts
from lakerank_pictograms.texts import SCRIPTS, Label

#: Labels by (concept key, language), and pictures by (concept key, style).
Labels = Mapping[tuple[str, str], Label]
Pictures = Mapping[tuple[str, str], Item]

Asked = Literal["text", "seen picture", "unseen picture"]

#: The two styles that training saw and that draw (nearly) every concept.
SEEN_STYLES = ("twemoji", "noto")

#: Languages of text queries that training pairs with pictures; English, which the first stage knows, more often.
_PAIRED = tuple(language for language in SCRIPTS if language not in TEXT_ONLY_LANGUAGES)
_QUERY_LANGUAGES = ("en", *_PAIRED[: len(_PAIRED) // 2], "en", *_PAIRED[len(_PAIRED) // 2 :])


@dataclass(frozen=True, slots=True)
class Recipe:
    """`count` queries about concepts of one split, and what their candidates are.

    `text`: candidates may be texts; `styles`: candidates may be pictures in these.
    """

    task: str
    slice: str
    count: int
    asked: Asked
    split: Split
    text: bool
    styles: tuple[str, ...] = ()
    languages: tuple[str, ...] = _QUERY_LANGUAGES

    def may_list(self, document: Item) -> bool:
        """Whether a document may be a candidate of this recipe's queries."""
        return self.text if document.modality == "text" else document.style in self.styles


_TEXTS: tuple[Recipe, ...] = (
    Recipe("text→image", "seen", 70, "text", "train", text=False, styles=SEEN_STYLES),
    Recipe("text→image", "unseen style", 40, "text", "train", text=False, styles=(UNSEEN_STYLE,)),
    Recipe("text→image", "unseen language", 39, "text", "train", False, SEEN_STYLES, languages=TEXT_ONLY_LANGUAGES),
    Recipe("text→image", "unseen concept", 40, "text", "test", text=False, styles=SEEN_STYLES),
    Recipe("text→text", "seen", 40, "text", "train", text=True),
    Recipe("text→text", "unseen concept", 30, "text", "test", text=True),
    Recipe("text→mixed", "seen", 24, "text", "train", text=True, styles=SEEN_STYLES),
)
_PICTURES: tuple[Recipe, ...] = (
    Recipe("image→text", "seen", 24, "seen picture", "train", text=True),
    Recipe("image→text", "unseen style", 16, "unseen picture", "train", text=True),
    Recipe("image→text", "unseen concept", 16, "seen picture", "test", text=True),
    Recipe("image→image", "seen", 16, "seen picture", "train", text=False, styles=SEEN_STYLES),
    Recipe("image→image", "unseen style", 16, "unseen picture", "train", text=False, styles=SEEN_STYLES),
    Recipe("image→image", "unseen concept", 12, "seen picture", "test", text=False, styles=SEEN_STYLES),
    Recipe("image→mixed", "seen", 12, "seen picture", "train", text=True, styles=SEEN_STYLES),
)
RECIPES = _TEXTS + _PICTURES


def document_style(concept: Concept) -> str:
    """The seen style in which documents show a concept."""
    return SEEN_STYLES[unit_hash(f"style:{concept.key}") < 0.5]


def document_languages(concept: Concept) -> tuple[str, str]:
    """The two languages in which documents speak of a concept: of its name, and of its name with keywords."""
    first, second = chosen(_PAIRED, 2, f"languages:{concept.key}")
    return first, second


def query_style(concept: Concept) -> str:
    """The seen style in which queries show a concept: the other one."""
    return SEEN_STYLES[unit_hash(f"style:{concept.key}") >= 0.5]


def documents_of(concept: Concept, labels: Labels, pictures: Pictures) -> list[Item]:
    """Two pictures (one in the unseen style) and two texts of a concept, with ids that can be read."""
    by_name, by_keywords = document_languages(concept)
    items = [
        pictures[concept.key, document_style(concept)],
        pictures[concept.key, UNSEEN_STYLE],
        next(item for item in document_texts(labels[concept.key, by_name]) if item.kind == "name"),
        list(document_texts(labels[concept.key, by_keywords]))[-1],
    ]
    slug = re.sub(r"\W+", "-", concept.name.casefold()).strip("-")
    return [replace(item, item_id=f"{slug}.{item.style or item.language}") for item in items]


def queries(
    recipe: Recipe,
    concepts: Sequence[Concept],
    texts: Mapping[tuple[str, str], Sequence[Item]],
    pictures: Pictures,
) -> Iterator[Item]:
    """The recipe's queries: its split's concepts in turn, groups alternating, and its languages in turn.

    `texts` are the possible queries of a (concept key, language), `pictures` those of a (concept key, style).
    """
    turn = _alternating([concept for concept in concepts if concept.split == recipe.split], recipe)
    for number in range(recipe.count):
        concept = turn[number % len(turn)]
        if recipe.asked == "text":
            item = _pick(texts[concept.key, _language(recipe, concept, number)], number)
        else:
            style = UNSEEN_STYLE if recipe.asked == "unseen picture" else query_style(concept)
            item = pictures[concept.key, style]
        yield replace(item, item_id=f"{_slug(recipe)}.{number:03d}.{item.language or item.style}")


def _language(recipe: Recipe, concept: Concept, number: int) -> str:
    """The recipe's next language in which no document speaks of the concept."""
    taken = document_languages(concept)
    turn = [recipe.languages[(number + step) % len(recipe.languages)] for step in range(len(recipe.languages))]
    return next(language for language in turn if language not in taken)


def _pick(texts: Sequence[Item], number: int) -> Item:
    """The name, and every fourth time the keywords."""
    wanted = "keywords" if number % 4 == 3 else "name"
    return next((item for item in texts if item.kind == wanted), texts[0])


def _alternating(concepts: Sequence[Concept], recipe: Recipe) -> list[Concept]:
    """The concepts in an order of the recipe's own in which the groups take turns."""
    places: dict[str, int] = {}
    order = []
    for concept in sorted(concepts, key=lambda concept: unit_hash(f"{recipe.task}:{recipe.slice}:{concept.key}")):
        place = places[concept.group] = places.get(concept.group, -1) + 1
        order.append((place, unit_hash(f"{recipe.task}:{recipe.slice}:{concept.group}"), concept))
    return [concept for _, _, concept in sorted(order, key=lambda line: line[:2])]


def _slug(recipe: Recipe) -> str:
    return f"{recipe.task}-{recipe.slice}".replace("→", "-to-").replace(" ", "-")
