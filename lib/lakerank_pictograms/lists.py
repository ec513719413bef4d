"""Which documents are candidates of which queries, in which first-stage order, and how relevant they are.

The first stage is BM25 over one English name a document, as a catalogue of pictures would hold it. A query in another
language matches little there and a picture nothing: what is missing in a list is filled with documents of the query's
category in no particular order, as if somebody browsed it. Fillers have a rank after every hit, and no score.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lakerank.errors import requires
from lakerank.records import Candidate
from lakerank_pictograms.art import UNSEEN_STYLE
from lakerank_pictograms.concepts import SCRIPTS, TEXT_ONLY_LANGUAGES, Concept, Label, Split, chosen, unit_hash
from lakerank_pictograms.items import Item, document_texts

#: Labels by (concept key, language), and pictures by (concept key, style).
Labels = Mapping[tuple[str, str], Label]
Pictures = Mapping[tuple[str, str], Item]

QueryKind = Literal["text", "seen picture", "unseen picture"]

#: The two styles that training saw and that draw (nearly) every concept.
SEEN_STYLES = ("twemoji", "noto")

#: Languages of text queries that training pairs with pictures; English, which the first stage knows, more often.
_PAIRED = tuple(language for language in SCRIPTS if language not in TEXT_ONLY_LANGUAGES)
_QUERY_LANGUAGES = ("en", *_PAIRED[: len(_PAIRED) // 2], "en", *_PAIRED[len(_PAIRED) // 2 :])


@dataclass(frozen=True, slots=True)
class QuerySlice:
    """`count` queries about concepts of one split, and what their candidates are.

    `text`: candidates may be texts; `styles`: candidates may be pictures in these.
    """

    task: str
    slice: str
    count: int
    query_kind: QueryKind
    split: Split
    text: bool
    styles: tuple[str, ...] = ()
    languages: tuple[str, ...] = _QUERY_LANGUAGES

    def may_list(self, document: Item) -> bool:
        """Whether a document may be a candidate of this slice's queries."""
        return self.text if document.modality == "text" else document.style in self.styles


_TEXTS: tuple[QuerySlice, ...] = (
    QuerySlice("text→image", "seen", 70, "text", "train", text=False, styles=SEEN_STYLES),
    QuerySlice("text→image", "unseen style", 40, "text", "train", text=False, styles=(UNSEEN_STYLE,)),
    QuerySlice("text→image", "unseen language", 39, "text", "train", False, SEEN_STYLES, languages=TEXT_ONLY_LANGUAGES),
    QuerySlice("text→image", "unseen concept", 40, "text", "test", text=False, styles=SEEN_STYLES),
    QuerySlice("text→text", "seen", 40, "text", "train", text=True),
    QuerySlice("text→text", "unseen concept", 30, "text", "test", text=True),
    QuerySlice("text→mixed", "seen", 24, "text", "train", text=True, styles=SEEN_STYLES),
)
_PICTURES: tuple[QuerySlice, ...] = (
    QuerySlice("image→text", "seen", 24, "seen picture", "train", text=True),
    QuerySlice("image→text", "unseen style", 16, "unseen picture", "train", text=True),
    QuerySlice("image→text", "unseen concept", 16, "seen picture", "test", text=True),
    QuerySlice("image→image", "seen", 16, "seen picture", "train", text=False, styles=SEEN_STYLES),
    QuerySlice("image→image", "unseen style", 16, "unseen picture", "train", text=False, styles=SEEN_STYLES),
    QuerySlice("image→image", "unseen concept", 12, "seen picture", "test", text=False, styles=SEEN_STYLES),
    QuerySlice("image→mixed", "seen", 12, "seen picture", "train", text=True, styles=SEEN_STYLES),
)
QUERY_SLICES = _TEXTS + _PICTURES


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
    query_slice: QuerySlice,
    concepts: Sequence[Concept],
    texts: Mapping[tuple[str, str], Sequence[Item]],
    pictures: Pictures,
) -> Iterator[Item]:
    """The slice's queries: its split's concepts in turn, groups alternating, and its languages in turn.

    `texts` are the possible queries of a (concept key, language), `pictures` those of a (concept key, style).
    """
    turn = _alternating([concept for concept in concepts if concept.split == query_slice.split], query_slice)
    for number in range(query_slice.count):
        concept = turn[number % len(turn)]
        if query_slice.query_kind == "text":
            item = _pick(texts[concept.key, _language(query_slice, concept, number)], number)
        else:
            style = UNSEEN_STYLE if query_slice.query_kind == "unseen picture" else query_style(concept)
            item = pictures[concept.key, style]
        yield replace(item, item_id=f"{_slug(query_slice)}.{number:03d}.{item.language or item.style}")


def _language(query_slice: QuerySlice, concept: Concept, number: int) -> str:
    """The slice's next language in which no document speaks of the concept."""
    taken = document_languages(concept)
    turn = [
        query_slice.languages[(number + step) % len(query_slice.languages)]
        for step in range(len(query_slice.languages))
    ]
    return next(language for language in turn if language not in taken)


def _pick(texts: Sequence[Item], number: int) -> Item:
    """The name, and every fourth time the keywords."""
    kind = "keywords" if number % 4 == 3 else "name"
    return next((item for item in texts if item.kind == kind), texts[0])


def _alternating(concepts: Sequence[Concept], query_slice: QuerySlice) -> list[Concept]:
    """The concepts in an order of the slice's own in which the groups take turns."""
    places: dict[str, int] = {}
    order = []
    for concept in sorted(
        concepts, key=lambda concept: unit_hash(f"{query_slice.task}:{query_slice.slice}:{concept.key}")
    ):
        place = places[concept.group] = places.get(concept.group, -1) + 1
        order.append((place, unit_hash(f"{query_slice.task}:{query_slice.slice}:{concept.group}"), concept))
    return [concept for _, _, concept in sorted(order, key=lambda line: line[:2])]


def _slug(query_slice: QuerySlice) -> str:
    return f"{query_slice.task}-{query_slice.slice}".replace("→", "-to-").replace(" ", "-")


_GRAM = 3


class NameIndex:
    """BM25 (Lucene's variant, k1 1.5, b 0.75) over the words of English names and the trigrams inside them."""

    def __init__(self, documents: Sequence[Item]) -> None:
        with requires("pictograms", "bm25s is the first stage"):
            import bm25s
        self.documents = documents
        self._bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._bm25.index([terms(document.concept.name) for document in documents], show_progress=False)

    def hits(self, query: Item, count: int) -> list[tuple[Item, float]]:
        """Up to `count` documents that share a term with a text query, best first, equal scores by id."""
        known = [term for term in terms(query.text or "") if term in self._bm25.vocab_dict]
        if not known:
            return []
        scores = [round(float(score), 6) for score in self._bm25.get_scores(known)]  # (D,)
        matches = [pair for pair in zip(self.documents, scores, strict=True) if pair[1] > 0]
        return sorted(matches, key=lambda pair: (-pair[1], pair[0].item_id))[:count]


def terms(text: str) -> list[str]:
    """Words, and the trigrams of each padded word: "owl" → ["owl", "_ow", "owl", "wl_"] with marks apart."""
    words = re.findall(r"\w+", text.casefold())
    grams = [f"{padded[at : at + _GRAM]}*" for padded in map("_{}_".format, words) for at in range(len(padded) - 2)]
    return words + grams


def candidates(query: Item, index: NameIndex, hits: int, size: int) -> list[Candidate]:
    """`size` candidates: the index's best `hits`, then the query's category, then, if that runs out, anything.

    The query's own picture is never a candidate. Fewer come only where the index holds fewer documents.
    """
    hit = [(document, score) for document, score in index.hits(query, hits) if document.item_id != query.item_id]
    taken = {document.item_id for document, _ in hit} | {query.item_id}
    rest = [document for document in index.documents if document.item_id not in taken]
    same = [document.item_id for document in rest if document.concept.group == query.concept.group]
    others = [document.item_id for document in rest if document.concept.group != query.concept.group]
    fill = chosen(same, size, query.item_id) + chosen(others, size, query.item_id)
    lines: Iterable[tuple[str, float | None]] = [
        *((document.item_id, score) for document, score in hit),
        *((item_id, None) for item_id in fill),
    ]
    return [
        Candidate(query.item_id, doc_id, score, rank)
        for rank, (doc_id, score) in enumerate(list(lines)[:size], start=1)
    ]


SAME, RELATED, UNRELATED = 2, 1, 0
_SHARED_WORDS = 0.5


class Relevance:
    """2: the same concept. 1: same subgroup, and half of both concepts' English words are shared. 0: neither."""

    def __init__(self, english: Iterable[Label]) -> None:
        self._words = {
            label.concept.key: frozenset(re.findall(r"\w+", f"{label.name} {' '.join(label.keywords)}".casefold()))
            for label in english
        }

    def between(self, query: Concept, document: Concept) -> int:
        """SAME, RELATED or UNRELATED; symmetric."""
        if query.key == document.key:
            return SAME
        if query.subgroup != document.subgroup:
            return UNRELATED
        a, b = self._words[query.key], self._words[document.key]
        return RELATED if len(a & b) >= _SHARED_WORDS * len(a | b) else UNRELATED
