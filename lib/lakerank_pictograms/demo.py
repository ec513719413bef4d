"""The bundled demo lake: a few hundred pictograms and texts, and queries in many languages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from lakerank.records import Candidate
from lakerank_pictograms.art import UNSEEN_STYLE, Picture
from lakerank_pictograms.concepts import Concept, family_of, unit_hash
from lakerank_pictograms.first_stage import NameIndex, candidates
from lakerank_pictograms.items import Item, picture_item, query_texts
from lakerank_pictograms.lake_files import (
    candidates_table,
    documents_table,
    qrels_table,
    sliced_queries_table,
    write_table,
)
from lakerank_pictograms.lists import RECIPES, SEEN_STYLES, Labels, Pictures, Recipe, documents_of, queries
from lakerank_pictograms.relevance import Relevance
from lakerank_pictograms.texts import SCRIPTS

_CONCEPTS_A_GROUP = {"train": 10, "test": 6}
_HITS = 15
_CANDIDATES = 36


def write_demo_lake(
    folder: Path, concepts: Mapping[str, Concept], labels: Labels, pictures: Iterable[Picture]
) -> dict[str, str]:
    """Write documents, queries, candidates and qrels; returns the SHA-256 of each file by its name."""
    drawn = {(item.concept, item.style): picture_item(concepts[item.concept], item) for item in pictures}
    shown = demo_concepts(concepts.values(), drawn, labels)
    documents = [item for concept in shown for item in documents_of(concept, labels, drawn)]
    relevance = Relevance(labels[concept.key, "en"] for concept in shown)
    texts = {key: list(query_texts(label)) for key, label in labels.items() if label.concept in shown}
    asked: list[tuple[Recipe, Item]] = [
        (recipe, query) for recipe in RECIPES for query in queries(recipe, shown, texts, drawn)
    ]
    listed: list[Candidate] = []
    judged: list[tuple[str, str, int]] = []
    for recipe in RECIPES:
        pool = [document for document in documents if recipe.may_list(document)]
        index = NameIndex(pool)
        for query in (query for of, query in asked if of is recipe):
            listed += candidates(query, index, _HITS, _CANDIDATES)
            grades = ((document, relevance.between(query.concept, document.concept)) for document in pool)
            judged += [(query.item_id, document.item_id, grade) for document, grade in grades if grade]
    tables = {
        "documents": documents_table(documents),
        "queries": sliced_queries_table([(query, recipe.task, recipe.slice) for recipe, query in asked]),
        "candidates": candidates_table(listed),
        "qrels": qrels_table(judged),
    }
    return {f"{name}.parquet": write_table(folder / f"{name}.parquet", table) for name, table in tables.items()}


def demo_concepts(concepts: Iterable[Concept], drawn: Pictures, labels: Labels) -> list[Concept]:
    """Concepts that every style draws and every language names: a few of each group and split, one a family."""
    styles = (*SEEN_STYLES, UNSEEN_STYLE)
    kept: dict[tuple[str, str], list[Concept]] = {}
    families: set[str] = set()
    for concept in sorted(concepts, key=lambda concept: unit_hash(f"demo:{concept.key}")):
        bucket = kept.setdefault((concept.group, concept.split), [])
        if (
            len(bucket) < _CONCEPTS_A_GROUP.get(concept.split, 0)
            and family_of(concept.key) not in families
            and all((concept.key, style) in drawn for style in styles)
            and all((concept.key, language) in labels for language in SCRIPTS)
        ):
            bucket.append(concept)
            families.add(family_of(concept.key))
    # Flags are drawn by one set only; two of them slip through the others.
    return [concept for (group, _), bucket in sorted(kept.items()) if group != "flags" for concept in bucket]
