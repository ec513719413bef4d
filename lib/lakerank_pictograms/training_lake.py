"""The lake to train on: seen concepts to learn from, and held-out ones to watch and to judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lakerank_pictograms.art import Picture
from lakerank_pictograms.concepts import Concept, chosen
from lakerank_pictograms.items import Item, by_concept, document_texts, picture_item, query_texts
from lakerank_pictograms.lake_files import documents_table, qrels_table, queries_table, write_table
from lakerank_pictograms.texts import Label

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
territories that fly a country's flag share a split. No picture stands twice.
train       about 84 % of the concepts; no Fluent pictures; qrels never pair a text in hi, sv or uk with a picture.
validation  about 4 %: for early stopping.
test        about 12 %: not to be looked at while training. The bundled demo lake's "unseen concept" slice has these.

judging     for the checkpoint's card, not for choosing anything while training: 200 queries in each of 14 slices
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
