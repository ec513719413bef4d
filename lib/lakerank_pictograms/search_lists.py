"""Lakes of candidate lists of texts, as a first stage leaves them: a few documents are about what is asked.

A query is the name of a concept in one language. Documents are descriptions (name and keywords) in other languages: of
the query's concept, of two rivals, about which there are several documents, too, and of concepts with one each. Without
rivals the query would not be needed: the mean of a list's vectors ranks its only subject first.

All concepts are such as the bundled checkpoint has not learnt: of the others its vectors know all names, and a list has
nothing to add.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lakerank.records import Candidate
from lakerank_pictograms.concepts import Concept, Split, chosen, unit_hash
from lakerank_pictograms.items import (
    Item,
    candidates_table,
    document_texts,
    documents_table,
    qrels_table,
    queries_table,
    query_texts,
    write_table,
)
from lakerank_pictograms.lists import SAME, Labels

#: Lists to train on and to measure on: the split of their concepts, and how many.
LISTS: Mapping[str, tuple[Split, int]] = {"train": ("validation", 4_000), "test": ("test", 1_000)}

#: Documents of a list, and how many of them, at least and at most, are relevant, and about each of the rivals.
_DOCUMENTS, _RELEVANT, _RIVALS = 16, (3, 6), ((2, 5), (2, 5))

#: Of concepts with one document, those of the query's subgroup at most. Rivals may be any.
_NEAR = 3


@dataclass(frozen=True, slots=True)
class SearchList:
    """A query and its candidates, in no particular order."""

    query: Item
    documents: tuple[Item, ...]

    @property
    def relevant(self) -> list[Item]:
        """The documents about the query's concept."""
        return [document for document in self.documents if document.concept == self.query.concept]


def write_search_lists(
    folder: Path, concepts: Sequence[Concept], labels: Labels, lists: Mapping[str, tuple[Split, int]] = LISTS
) -> dict[str, str]:
    """Write train/ and test/, lakes of lists whose concepts are disjoint.

    Flags are left out: their names are those of countries. Returns the SHA-256 of each file by its path in the folder.
    """
    hashes = {}
    for name, (split, count) in lists.items():
        kept = [concept for concept in concepts if concept.split == split and concept.group != "flags"]
        drawn = list(_Drawing(kept, labels).lists(count))
        documents = {document.item_id: document for each in drawn for document in each.documents}
        listed = [
            Candidate(each.query.item_id, document.item_id, None, rank)
            for each in drawn
            for rank, document in enumerate(each.documents, start=1)
        ]
        judged = [(each.query.item_id, document.item_id, SAME) for each in drawn for document in each.relevant]
        tables = {
            "documents": documents_table(documents.values()),
            "queries": queries_table(each.query for each in drawn),
            "candidates": candidates_table(listed),
            "qrels": qrels_table(judged),
        }
        for table, rows in tables.items():
            hashes[f"{name}/{table}.parquet"] = write_table(folder / name / f"{table}.parquet", rows)
    return hashes


class _Drawing:
    """Draws lists about some concepts: each depends on its number alone."""

    def __init__(self, concepts: Sequence[Concept], labels: Labels) -> None:
        self._languages: dict[str, list[str]] = {}
        for key, language in labels:
            self._languages.setdefault(key, []).append(language)
        self._labels = labels
        self._concepts = {concept.key: concept for concept in concepts if concept.key in self._languages}
        self._subgroups: dict[str, list[str]] = {}
        for concept in self._concepts.values():
            self._subgroups.setdefault(concept.subgroup, []).append(concept.key)

    def lists(self, count: int) -> Iterator[SearchList]:
        """So many lists, the concepts of their queries in turn."""
        keys = chosen(self._concepts, len(self._concepts), "lists")
        for number in range(count):
            yield self._list(keys[number % len(keys)], f"{number:05d}")

    def _list(self, key: str, salt: str) -> SearchList:
        (language,) = chosen(self._languages[key], 1, f"{salt}:query")
        query = next(iter(query_texts(self._labels[key, language])))
        others = self._others(key, salt)
        counts = [_between(*bounds, f"{salt}:{place}") for place, bounds in enumerate((_RELEVANT, *_RIVALS))]
        counts += [1] * (_DOCUMENTS - sum(counts))
        texts: list[Item] = []
        for about, count in zip((key, *others), counts, strict=False):
            languages = chosen([each for each in self._languages[about] if each != language], count, f"{salt}:{about}")
            texts += [list(document_texts(self._labels[about, each]))[-1] for each in languages]
        documents = {text.item_id: text for text in texts}
        order = chosen(documents, len(documents), f"{salt}:order")
        return SearchList(replace(query, item_id=f"{salt}.{query.item_id}"), tuple(documents[name] for name in order))

    def _others(self, key: str, salt: str) -> list[str]:
        """Enough other concepts: rivals first, then some of the same subgroup and others of any."""
        rest = chosen([other for other in self._concepts if other != key], _DOCUMENTS, f"{salt}:rest")
        rivals = rest[: len(_RIVALS)]
        siblings = [other for other in self._subgroups[self._concepts[key].subgroup] if other not in (key, *rivals)]
        near = chosen(siblings, _NEAR, f"{salt}:near")
        return [*rivals, *near, *(other for other in rest[len(_RIVALS) :] if other not in near)]


def _between(least: int, most: int, salt: str) -> int:
    """A number from `least` to `most`."""
    return least + int(unit_hash(salt) * (most + 1 - least))
