"""The lake that a checkpoint's card is written from: one relevant document among a hundred, in every slice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lakerank.records import Candidate
from lakerank_pictograms.art import Picture
from lakerank_pictograms.concepts import Concept, chosen
from lakerank_pictograms.first_stage import NameIndex
from lakerank_pictograms.items import Item, picture_item, query_texts
from lakerank_pictograms.lake_files import (
    candidates_table,
    documents_table,
    qrels_table,
    sliced_queries_table,
    write_table,
)
from lakerank_pictograms.lists import RECIPES, Labels, documents_of, queries
from lakerank_pictograms.relevance import SAME
from lakerank_pictograms.texts import SCRIPTS

_QUERIES_A_SLICE = 200
_CANDIDATES = 100


def write_judging_lake(
    folder: Path, concepts: Mapping[str, Concept], labels: Labels, pictures: Iterable[Picture]
) -> dict[str, str]:
    """Write documents, queries, qrels, and two tables of candidates: random ones, and hard ones of the same group.

    Both hold exactly one relevant document a query. `first_stage_score` is BM25's, and `first_stage_rank` the place
    among the hundred by it, ties in no particular order. Returns the SHA-256 of each file by its path beside `folder`.
    """
    drawn = {(item.concept, item.style): picture_item(concepts[item.concept], item) for item in pictures}
    shown = [
        concept
        for concept in concepts.values()
        if all((concept.key, style) in drawn for style in ("twemoji", "noto", "fluent"))
        and all((concept.key, language) in labels for language in SCRIPTS)
    ]
    keys = {concept.key for concept in shown}
    documents = [document for concept in shown for document in documents_of(concept, labels, drawn)]
    texts = {key: list(query_texts(label)) for key, label in labels.items() if key[0] in keys}
    asked, easy, hard, judged = [], [], [], []
    for recipe in (replace(recipe, count=_QUERIES_A_SLICE) for recipe in RECIPES):
        index = NameIndex([document for document in documents if recipe.may_list(document)])
        for query in queries(recipe, shown, texts, drawn):
            scores = {document.item_id: score for document, score in index.hits(query, len(index.documents))}
            relevant, random, same_group = _draw(query, index.documents)
            asked.append((query, recipe.task, recipe.slice))
            judged.append((query.item_id, relevant, SAME))
            easy += list(_ranked(query, [relevant, *random], scores))
            hard += list(_ranked(query, [relevant, *same_group], scores))
    tables = {
        "documents": documents_table(documents),
        "queries": sliced_queries_table(asked),
        "qrels": qrels_table(judged),
        "candidates": candidates_table(easy),
        "candidates_hard": candidates_table(hard),
    }
    return {
        f"{folder.name}/{name}.parquet": write_table(folder / f"{name}.parquet", table)
        for name, table in tables.items()
    }


def _draw(query: Item, documents: Sequence[Item]) -> tuple[str, list[str], list[str]]:
    """One relevant document, and 99 of other concepts: anywhere, and in the query's group first."""
    same = [document.item_id for document in documents if document.concept == query.concept]
    others = [document for document in documents if document.concept != query.concept]
    anywhere = chosen([document.item_id for document in others], _CANDIDATES - 1, query.item_id)
    group = [document.item_id for document in others if document.concept.group == query.concept.group]
    near = chosen(group, _CANDIDATES - 1, query.item_id)
    taken = set(near)
    return (
        chosen(same, 1, query.item_id)[0],
        anywhere,
        [*near, *(item for item in anywhere if item not in taken)][: _CANDIDATES - 1],
    )


def _ranked(query: Item, documents: Sequence[str], scores: Mapping[str, float]) -> Iterator[Candidate]:
    """Candidates by BM25 score, those without one last, ties in an order of the query's own."""
    mixed = chosen(documents, len(documents), f"ties:{query.item_id}")
    ordered = sorted(mixed, key=lambda document: -scores.get(document, 0.0))
    for rank, document in enumerate(ordered, start=1):
        yield Candidate(query.item_id, document, scores.get(document), rank)
