"""The bundled lake keeps its promises, and so do the rules that made it. Nothing is fetched here."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import lakerank
from lakerank import schemas
from lakerank.errors import StorageError
from lakerank.fingerprint import content_hash
from lakerank_pictograms.art import SIDE, UNSEEN_STYLE, Picture, distinct
from lakerank_pictograms.concepts import (
    TEXT_ONLY_LANGUAGES,
    Concept,
    Label,
    concept_key,
    family_of,
    region_of,
    split_of,
)
from lakerank_pictograms.items import Item, query_texts
from lakerank_pictograms.lists import RELATED, SAME, UNRELATED, Relevance
from lakerank_pictograms.packages import PINNED, Packages

LAKE = Path(lakerank.__file__).parent / "ingest" / "demo_lake"


def rows(table: str) -> list[dict[str, object]]:
    return pq.read_table(LAKE / f"{table}.parquet").to_pylist()


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, object]]:
    return {str(row["doc_id"]): row for row in rows("documents")}


@pytest.fixture(scope="module")
def queries() -> dict[str, dict[str, object]]:
    return {str(row["query_id"]): row for row in rows("queries")}


@pytest.mark.parametrize("table", ["documents", "queries", "candidates", "qrels"])
def test_columns_are_those_of_the_contract(table: str) -> None:
    result = pq.read_schema(LAKE / f"{table}.parquet")
    for field in getattr(schemas, f"INGESTED_{table.upper()}", None) or getattr(schemas, table.upper()):
        assert result.field(field.name).type == field.type


def test_ids_are_unique_and_candidates_and_qrels_point_at_them(
    documents: dict[str, dict[str, object]], queries: dict[str, dict[str, object]]
) -> None:
    assert len(documents) == pq.read_metadata(LAKE / "documents.parquet").num_rows
    assert len(queries) == pq.read_metadata(LAKE / "queries.parquet").num_rows
    for table in ("candidates", "qrels"):
        pairs = [(row["query_id"], row["doc_id"]) for row in rows(table)]
        assert len(set(pairs)) == len(pairs)
        assert {query for query, _ in pairs} == queries.keys()
        assert {document for _, document in pairs} <= documents.keys()


def test_size_and_balance(documents: dict[str, dict[str, object]], queries: dict[str, dict[str, object]]) -> None:
    pictures = sum(row["modality"] == "image" for row in documents.values())
    assert 200 <= len(documents) <= 600
    assert 0.4 <= pictures / len(documents) <= 0.6
    assert 300 <= len(queries) <= 400
    assert sum(file.stat().st_size for file in LAKE.iterdir()) < 3_000_000


def test_pictures_are_read_in_small_row_groups() -> None:
    metadata = pq.read_metadata(LAKE / "documents.parquet")
    assert all(metadata.row_group(group).num_rows <= 8 for group in range(metadata.num_row_groups))


def test_languages_and_scripts(queries: dict[str, dict[str, object]]) -> None:
    texts = [row for row in queries.values() if row["text"]]
    assert len({row["language"] for row in texts}) >= 12
    assert {"Latin", "Cyrillic", "Han", "Arabic", "Devanagari"} <= {row["script"] for row in texts}


def test_every_direction_and_slice_is_there(queries: dict[str, dict[str, object]]) -> None:
    result = {(row["task"], row["slice"]) for row in queries.values()}
    for task in ("text→image", "text→text", "image→text", "image→image"):
        assert {(task, "seen"), (task, "unseen concept")} <= result
    for task in ("text→image", "image→text", "image→image"):
        assert (task, "unseen style") in result
    assert {("text→image", "unseen language"), ("text→mixed", "seen"), ("image→mixed", "seen")} <= result


def test_candidates_are_20_to_50_a_query_with_ranks_from_1_and_fillers_after_hits() -> None:
    by_query: dict[object, list[dict[str, object]]] = {}
    for row in rows("candidates"):
        by_query.setdefault(row["query_id"], []).append(row)
    for lines in by_query.values():
        assert 20 <= len(lines) <= 50
        assert sorted(int(str(line["first_stage_rank"])) for line in lines) == list(range(1, len(lines) + 1))
        lines.sort(key=lambda line: int(str(line["first_stage_rank"])))
        scores = [line["first_stage_score"] for line in lines]
        hits = [float(str(score)) for score in scores if score is not None]
        assert hits == sorted(hits, reverse=True)
        assert scores[len(hits) :] == [None] * (len(scores) - len(hits))


def test_candidates_have_the_modality_that_the_task_names(
    documents: dict[str, dict[str, object]], queries: dict[str, dict[str, object]]
) -> None:
    for row in rows("candidates"):
        query, document = queries[str(row["query_id"])], documents[str(row["doc_id"])]
        asked, of = str(query["task"]).split("→")
        assert query["modality"] == asked
        assert of in (document["modality"], "mixed")


def test_slices_hold_what_they_say(
    documents: dict[str, dict[str, object]], queries: dict[str, dict[str, object]]
) -> None:
    for row in queries.values():
        assert row["split"] == split_of(str(row["concept"]))
        assert (row["split"] == "test") == (row["slice"] == "unseen concept")
        assert row["split"] != "validation"
    for row in rows("candidates"):
        query, document = queries[str(row["query_id"])], documents[str(row["doc_id"])]
        unseen = UNSEEN_STYLE in (query["style"], document["style"])
        assert unseen == (query["slice"] == "unseen style")
        if query["task"] != "text→text" and query["slice"] != "unseen language":
            assert query["language"] not in TEXT_ONLY_LANGUAGES
        assert document["language"] not in TEXT_ONLY_LANGUAGES


def test_qrels_are_what_the_source_says(
    documents: dict[str, dict[str, object]], queries: dict[str, dict[str, object]]
) -> None:
    judged = {(row["query_id"], row["doc_id"]): row["relevance"] for row in rows("qrels")}
    for (query_id, doc_id), relevance in judged.items():
        query, document = queries[str(query_id)], documents[str(doc_id)]
        assert (query["concept"] == document["concept"]) == (relevance == SAME)
        assert query["subgroup"] == document["subgroup"]
    for row in rows("candidates"):
        if queries[str(row["query_id"])]["concept"] == documents[str(row["doc_id"])]["concept"]:
            assert judged[row["query_id"], row["doc_id"]] == SAME


def test_no_query_is_its_own_answer(
    documents: dict[str, dict[str, object]], queries: dict[str, dict[str, object]]
) -> None:
    for row in rows("candidates"):
        query, document = queries[str(row["query_id"])], documents[str(row["doc_id"])]
        assert query["image"] is None or query["image"] != document["image"]
        if query["concept"] == document["concept"]:
            assert query["language"] is None or query["language"] != document["language"]


def test_pictures_are_as_large_as_said_and_hashes_are_right(documents: dict[str, dict[str, object]]) -> None:
    for row in documents.values():
        text, image = row["text"], row["image"]
        assert row["content_hash"] == content_hash(
            text if isinstance(text, str) else None, image if isinstance(image, bytes) else None
        )
        if isinstance(image, bytes):
            with Image.open(io.BytesIO(image)) as picture:
                assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (SIDE, SIDE))


def test_english_names_are_found_by_the_first_stage(
    documents: dict[str, dict[str, object]], queries: dict[str, dict[str, object]]
) -> None:
    first = {
        row["query_id"]: documents[str(row["doc_id"])] for row in rows("candidates") if row["first_stage_rank"] == 1
    }
    english = [row for row in queries.values() if row["language"] == "en" and row["kind"] == "name"]
    assert len(english) >= 10
    result = sum(first[row["query_id"]]["concept"] == row["concept"] for row in english)
    assert result / len(english) >= 0.95


def test_notices_name_every_source_of_the_lake(documents: dict[str, dict[str, object]]) -> None:
    notice = (LAKE / "NOTICE.md").read_text(encoding="utf-8")
    for package, (version, _) in PINNED.items():
        assert package in notice
        assert version in notice
    assert "UNICODE LICENSE V3" in (LAKE / "LICENSE-Unicode-3.0.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1f468-200d-1f692", "1f469-200d-1f692"),  # firefighters
        ("1f3c3", "1f3c3-200d-2640-fe0f-200d-27a1-fe0f"),  # a runner, and a woman running right
        ("1f550", "1f567"),  # one o'clock, half past twelve
        ("1f469-200d-2764-fe0f-200d-1f468", "1f491"),  # couples with heart
        ("1f468-200d-1f469-200d-1f467", "1f46a"),  # families
        ("1f9d1-200d-1f91d-200d-1f9d1", "1f46d"),  # holding hands
        ("1f1eb-1f1f7", "1f1e8-1f1f5"),  # France and Clipperton Island fly the same flag
    ],
)
def test_variants_of_a_concept_share_a_split(one: str, other: str) -> None:
    assert family_of(one) == family_of(other)
    assert split_of(one) == split_of(other)


def test_an_object_and_the_role_named_after_it_are_apart() -> None:
    assert family_of("1f692") != family_of("1f468-200d-1f692")
    assert family_of("2640") != family_of("2642")


def test_split_shares() -> None:
    splits = [split_of(f"{number:x}") for number in range(0x10000, 0x12000)]
    assert 0.10 < splits.count("test") / len(splits) < 0.14
    assert 0.03 < splits.count("validation") / len(splits) < 0.05


def test_keys_drop_presentation_selectors_and_flags_name_their_region() -> None:
    assert concept_key("2764-FE0F") == "2764"
    assert region_of("1f1e9-1f1ea") == "DE"
    assert region_of("1f436") is None
    assert region_of("1f1e9-1f436") is None


def test_a_picture_of_several_concepts_stays_with_one_of_them() -> None:
    clipperton, france = (
        Picture("1f1e8-1f1f5", "twemoji", b"tricolour"),
        Picture("1f1eb-1f1f7", "twemoji", b"tricolour"),
    )
    walker, man = Picture("1f6b6", "noto-v1", b"walker"), Picture("1f6b6-200d-2642", "noto-v1", b"walker")
    assert distinct([clipperton, france, walker, man]) == [france, walker]


def concept(key: str, name: str, subgroup: str = "animal-mammal") -> Concept:
    return Concept(key, "", name, "animals-nature", subgroup)


def label(of: Concept, *keywords: str, country: str | None = None) -> Label:
    return Label(of, "en", of.name, keywords, country)


def test_relevance_is_graded_by_concept_subgroup_and_shared_words() -> None:
    dog, hound = concept("1f436", "dog face"), concept("1f415", "dog")
    cat, whale = concept("1f431", "cat face"), concept("1f433", "dog", "animal-marine")
    relevance = Relevance([label(dog, "pet", "dog"), label(hound, "pet"), label(cat, "whisker"), label(whale, "pet")])
    assert relevance.between(dog, dog) == SAME
    assert relevance.between(dog, hound) == relevance.between(hound, dog) == RELATED
    assert relevance.between(dog, cat) == UNRELATED
    assert relevance.between(hound, whale) == UNRELATED


def test_query_texts_are_the_name_some_keywords_and_the_country() -> None:
    kinds = {
        item.kind: item.text for item in query_texts(label(concept("a", "flag"), "x", "y", "z", "w", country="Chad"))
    }
    assert kinds.keys() == {"name", "keywords", "country"}
    assert len(str(kinds["keywords"]).split(", ")) == 3
    assert [item.kind for item in query_texts(label(concept("a", "flag"), "x"))] == ["name"]


def test_first_stage_ranks_names_and_fills_with_the_group() -> None:
    pytest.importorskip("bm25s")
    from lakerank_pictograms.lists import NameIndex, candidates

    names = {"dog face": "animals", "hot dog": "food", "cat": "animals", "mouse": "animals", "pizza": "food"}
    documents = [Item(name, Concept(name, "", name, group, ""), "picture", image=b"x") for name, group in names.items()]
    query = Item("q", documents[0].concept, "name", "dogs", language="en")
    lines = candidates(query, NameIndex(documents), hits=15, size=5)
    assert {line.doc_id for line in lines[:2]} == {"dog face", "hot dog"}  # by the trigrams of "dogs"
    assert {line.doc_id for line in lines[2:4]} == {"cat", "mouse"}
    assert lines[4].doc_id == "pizza"
    assert [line.first_stage_rank for line in lines] == [1, 2, 3, 4, 5]
    assert [line.first_stage_score is None for line in lines] == [False, False, True, True, True]


def test_a_tarball_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    for name, (version, _) in PINNED.items():
        (tmp_path / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz").write_bytes(b"something else")
    with pytest.raises(StorageError, match=r"SHA-256 is .* expected"):
        Packages(tmp_path).fetch()


def test_an_icon_is_drawn_with_its_aliases_flips(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    from lakerank_pictograms.art import ArtSet

    icons = {
        "width": 2,
        "height": 2,
        "icons": {"left": {"body": '<path d="M0 0h1v2h-1z" fill="#000"/>'}},
        "aliases": {"right": {"parent": "left", "hFlip": True}},
    }
    chars = {"1f448-fe0f": "left", "1f449": "right", "1f44a": "not drawn"}
    tarball = tmp_path / f"iconify-json-fluent-emoji-flat-{PINNED['@iconify-json/fluent-emoji-flat'][0]}.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        for name, content in (("icons", icons), ("chars", chars)):
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    art = ArtSet(Packages(tmp_path), "fluent")
    assert set(art.concepts()) == {"1f448", "1f449"}
    for key, dark, light in (("1f448", 10, 74), ("1f449", 74, 10)):
        with Image.open(io.BytesIO(art.picture(key).png)) as picture:
            assert picture.getpixel((dark, 42)) == (0, 0, 0)
            assert picture.getpixel((light, 42)) == (255, 255, 255)


def test_tables_with_pictures_keep_no_pictures_in_their_statistics() -> None:
    metadata = pq.read_metadata(LAKE / "documents.parquet")
    column = metadata.schema.names.index("image")
    assert metadata.row_group(0).column(column).path_in_schema == "image"
    assert not metadata.row_group(0).column(column).is_stats_set
    assert pq.read_schema(LAKE / "documents.parquet").field("image").type == pa.binary()
