"""The lakes of pictograms: the bundled one, the one to train on, and the one that a model card is written from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lakerank.records import Candidate
from lakerank_pictograms.art import UNSEEN_STYLE, Picture
from lakerank_pictograms.concepts import SCRIPTS, Concept, Label, chosen, family_of, unit_hash
from lakerank_pictograms.items import (
    Item,
    by_concept,
    candidates_table,
    document_texts,
    documents_table,
    picture_item,
    qrels_table,
    queries_table,
    query_texts,
    sliced_queries_table,
    write_table,
)
from lakerank_pictograms.lists import (
    QUERY_SLICES,
    SAME,
    SEEN_STYLES,
    Labels,
    NameIndex,
    Pictures,
    QuerySlice,
    Relevance,
    candidates,
    documents_of,
    queries,
)

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
    chosen: list[tuple[QuerySlice, Item]] = [
        (query_slice, query) for query_slice in QUERY_SLICES for query in queries(query_slice, shown, texts, drawn)
    ]
    listed: list[Candidate] = []
    qrels: list[tuple[str, str, int]] = []
    for query_slice in QUERY_SLICES:
        pool = [document for document in documents if query_slice.may_list(document)]
        index = NameIndex(pool)
        for query in (query for of, query in chosen if of is query_slice):
            listed += candidates(query, index, _HITS, _CANDIDATES)
            grades = ((document, relevance.between(query.concept, document.concept)) for document in pool)
            qrels += [(query.item_id, document.item_id, grade) for document, grade in grades if grade]
    tables = {
        "documents": documents_table(documents),
        "queries": sliced_queries_table(
            [(query, query_slice.task, query_slice.slice) for query_slice, query in chosen]
        ),
        "candidates": candidates_table(listed),
        "qrels": qrels_table(qrels),
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


_TEXTS_A_TEXT_QUERY = 4
_TEXTS_A_PICTURE_QUERY = 12
_RELEVANT = 2


def write_training_lake(
    folder: Path, concepts: Mapping[str, Concept], labels: Iterable[Label], pictures: Iterable[Picture]
) -> dict[str, str]:
    """Write train/, validation/ and test/, three lakes whose concepts are disjoint.

    train/ has no picture in the unseen style, and its qrels pair no text of a text-only language with a picture.
    validation/ and test/ hold every style and pair. Returns the SHA-256 of each file by its path in the folder.
    """
    pictured = [picture_item(concepts[picture.concept], picture) for picture in pictures]
    known = {item.concept.key for item in pictured}
    used = [label for label in labels if label.concept.key in known]
    hashes = {}
    for split in ("train", "validation", "test"):
        kept = [item for item in pictured if item.split == split and not (split == "train" and item.unseen_style)]
        texts = [label for label in used if label.concept.split == split]
        documents = [*kept, *(item for label in texts for item in document_texts(label))]
        queries = [*kept, *(item for label in texts for item in query_texts(label))]
        judgements = list(_judgements(queries, by_concept(documents), everything=split != "train"))
        for name, table in (
            ("documents", documents_table(documents)),
            ("queries", queries_table(queries)),
            ("qrels", qrels_table(judgements)),
        ):
            hashes[f"{split}/{name}.parquet"] = write_table(folder / split / f"{name}.parquet", table, 4096)
    (folder / "README.txt").write_text(_README, encoding="utf-8")
    return hashes


def _judgements(
    queries: Iterable[Item], documents: Mapping[str, list[Item]], everything: bool
) -> Iterator[tuple[str, str, int]]:
    """All pictures and a few texts of each query's concept; never the query itself."""
    for query in queries:
        others = [item for item in documents.get(query.concept.key, ()) if item.item_id != query.item_id]
        for item in others:
            if item.modality == "image" and (everything or not query.text_only):
                yield query.item_id, item.item_id, _RELEVANT
        texts = {
            item.item_id: item
            for item in others
            if item.modality == "text"
            and item.language != query.language
            and (everything or query.modality == "text" or not item.text_only)
        }
        count = _TEXTS_A_TEXT_QUERY if query.modality == "text" else _TEXTS_A_PICTURE_QUERY
        for item_id in chosen(texts, count, query.item_id):
            yield query.item_id, item_id, _RELEVANT


_README = """\
train/, validation/, test/: one lake each (documents, queries, qrels). Their concepts are disjoint.

A concept is an emoji without skin tone. Gender variants, clock faces, families, couples and
territories that fly a country's flag share a split. No picture is repeated.
train       about 84 % of the concepts; no Fluent pictures; qrels never pair a text in hi, sv or uk with a picture.
validation  about 4 %: for early stopping.
test        about 12 %: not to be looked at while training. The bundled demo lake's "unseen concept" slice has these.

judging     for the checkpoint's model card, not for choosing anything while training: 200 queries in each of 14 slices
            (columns task and slice in queries.parquet), one relevant document among 100 candidates.
            candidates.parquet: the other 99 at random; candidates_hard.parquet: of the same group.
            first_stage_score is BM25's over English names, first_stage_rank the place among the 100 by it.

documents.parquet  doc_id, text, image (PNG, 84 x 84, RGB on white), content_hash, and the columns below
queries.parquet    query_id, text, image, and the columns below
qrels.parquet      query_id, doc_id, relevance (always 2)
  modality   text or image
  concept    "1f436": two rows are about the same thing exactly when this is equal
  name       English name (for display)
  group      smileys-emotion, people-body, animals-nature, food-drink, travel-places, activities, objects, symbols
             or flags
  subgroup   finer: animal-mammal, food-fruit, ... (hard negatives)
  split      train, validation, test
  kind       picture; name (CLDR's); keywords (up to 3 of CLDR's keywords: queries only); country (flags: queries only);
             description ("name: all, its, keywords": documents only)
  language   of a text (37 languages); script: Latin, Cyrillic, Han, ...
  style      of a picture: twemoji, noto, noto-v1, emojione; in validation/ and test/ also fluent
  keywords   list of all CLDR keywords of a text's concept in its language, without the name

qrels are complete for pictures and a sample of the texts (4 a text query, 12 a picture query, other languages only).
They are not complete: take two rows of the same concept for relevant, never for a negative.
Queries and documents hold the same pictures (same id); qrels never pair a picture with itself.
"""


_QUERIES_A_SLICE = 200
_JUDGED_CANDIDATES = 100


def write_evaluation_lake(
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
    chosen, easy, hard, qrels = [], [], [], []
    for query_slice in (replace(query_slice, count=_QUERIES_A_SLICE) for query_slice in QUERY_SLICES):
        index = NameIndex([document for document in documents if query_slice.may_list(document)])
        for query in queries(query_slice, shown, texts, drawn):
            scores = {document.item_id: score for document, score in index.hits(query, len(index.documents))}
            relevant, random, same_group = _draw_candidates(query, index.documents)
            chosen.append((query, query_slice.task, query_slice.slice))
            qrels.append((query.item_id, relevant, SAME))
            easy += list(_ranked(query, [relevant, *random], scores))
            hard += list(_ranked(query, [relevant, *same_group], scores))
    tables = {
        "documents": documents_table(documents),
        "queries": sliced_queries_table(chosen),
        "qrels": qrels_table(qrels),
        "candidates": candidates_table(easy),
        "candidates_hard": candidates_table(hard),
    }
    return {
        f"{folder.name}/{name}.parquet": write_table(folder / f"{name}.parquet", table)
        for name, table in tables.items()
    }


def _draw_candidates(query: Item, documents: Sequence[Item]) -> tuple[str, list[str], list[str]]:
    """One relevant document, and 99 of other concepts: anywhere, and in the query's group first."""
    same = [document.item_id for document in documents if document.concept == query.concept]
    others = [document for document in documents if document.concept != query.concept]
    anywhere = chosen([document.item_id for document in others], _JUDGED_CANDIDATES - 1, query.item_id)
    group = [document.item_id for document in others if document.concept.group == query.concept.group]
    near = chosen(group, _JUDGED_CANDIDATES - 1, query.item_id)
    taken = set(near)
    return (
        chosen(same, 1, query.item_id)[0],
        anywhere,
        [*near, *(item for item in anywhere if item not in taken)][: _JUDGED_CANDIDATES - 1],
    )


def _ranked(query: Item, documents: Sequence[str], scores: Mapping[str, float]) -> Iterator[Candidate]:
    """Candidates by BM25 score, those without one last, ties in an order of the query's own."""
    mixed = chosen(documents, len(documents), f"ties:{query.item_id}")
    ordered = sorted(mixed, key=lambda document: -scores.get(document, 0.0))
    for rank, document in enumerate(ordered, start=1):
        yield Candidate(query.item_id, document, scores.get(document), rank)
