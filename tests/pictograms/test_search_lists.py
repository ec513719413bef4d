"""Lakes of lists of texts, and how a listwise checkpoint is measured on them. Nothing is fetched here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from checkpoints.listwise import write_jina_v3
from lakerank.records import CandidateList, Document, Query
from lakerank_pictograms import evaluate_lists
from lakerank_pictograms.concepts import Concept, Label, Split
from lakerank_pictograms.search_lists import write_search_lists

SIZES: dict[str, tuple[Split, int]] = {"train": ("train", 40), "test": ("test", 9)}
LANGUAGES = ("de", "en", "fr", "hi", "ja", "ru", "sv", "th")
CONCEPTS = [
    Concept(f"1f{number:03x}", "", f"thing {number}", "objects", f"shelf {number % 3}") for number in range(120)
]
LABELS = {
    (concept.key, language): Label(concept, language, f"{concept.name} {language}", ("a", concept.key), None)
    for concept in CONCEPTS
    for language in LANGUAGES
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    flag = Concept("1f1e9-1f1ea", "", "flag", "flags", "country-flag")
    flags = {(flag.key, language): Label(flag, language, "flag", ("a",), None) for language in LANGUAGES}
    hashes = write_search_lists(folder, [*CONCEPTS, flag], LABELS | flags, SIZES)
    again = write_search_lists(folder / "again", [*CONCEPTS, flag], LABELS | flags, SIZES)
    assert hashes == again
    return folder


def test_a_list_holds_several_texts_of_three_concepts_and_one_of_others(lake: Path) -> None:
    splits = {}
    for split, count in (("train", 40), ("test", 9)):
        rows = {name: pq.read_table(lake / split / f"{name}.parquet").to_pylist() for name in ("documents", "queries")}
        documents = {row["doc_id"]: row for row in rows["documents"]}
        relevant = {
            (row["query_id"], row["doc_id"]) for row in pq.read_table(lake / split / "qrels.parquet").to_pylist()
        }
        candidates = pq.read_table(lake / split / "candidates.parquet").to_pylist()
        assert len(rows["queries"]) == count
        for query in rows["queries"]:
            listed = [documents[row["doc_id"]] for row in candidates if row["query_id"] == query["query_id"]]
            assert len({row["doc_id"] for row in listed}) == len(listed) == 16
            about = Counter(row["concept"] for row in listed)
            assert 3 <= about.pop(query["concept"]) <= 6
            (_, first), (_, second), *rest = about.most_common()
            assert 2 <= second <= first <= 5
            assert {number for _, number in rest} == {1}
            assert query["language"] not in {row["language"] for row in listed}
            judged = {row["doc_id"] for row in listed if row["concept"] == query["concept"]}
            assert judged == {doc_id for query_id, doc_id in relevant if query_id == query["query_id"]}
            assert all(row["kind"] == "description" for row in listed)
        splits[split] = {row["concept"] for row in rows["documents"]}
        assert {row["group"] for row in rows["documents"]} == {"objects"}
    assert not splits["train"] & splits["test"]


def test_the_order_of_a_list_says_nothing_of_relevance(lake: Path) -> None:
    ranks = {
        (row["query_id"], row["doc_id"]): row["first_stage_rank"]
        for row in pq.read_table(lake / "train" / "candidates.parquet").to_pylist()
    }
    relevant = [
        ranks[row["query_id"], row["doc_id"]] for row in pq.read_table(lake / "train" / "qrels.parquet").to_pylist()
    ]
    assert abs(np.mean(relevant) - 8.5) < 1


def test_figures_are_those_of_each_use(lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a command that is called; and a lake without a table is named."""
    checkpoint = write_jina_v3(tmp_path / "v3", num_hidden_layers=1)
    lists = evaluate_lists.read_lists(str(lake / "test"), 3)
    figures = evaluate_lists.checkpoint_figures(str(checkpoint), lists, "float32")
    figures |= evaluate_lists.baseline_figures(lists)
    assert {len(each) for each in figures.values()} == {3}
    assert evaluate_lists.main([str(checkpoint), str(lake / "test"), "--lists", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 lists, nDCG@10:"
    assert f"| pairs | {figures['pairs'].mean():.4f} |" in "\n".join(lines)
    assert evaluate_lists.main([str(checkpoint), str(tmp_path)]) == 2
    assert "qrels.parquet: there is no such file" in capsys.readouterr().err


def test_lists_are_ordered_by_their_scores() -> None:
    documents = tuple(Document(name, text=name) for name in "abc")
    lists = evaluate_lists.JudgedLists([CandidateList(Query("q", text="q"), documents)], [{"c": 2}])
    best, worst = (float(lists.figures([scores])[0]) for scores in ([0.0, 0.0, 1.0], [1.0, 1.0, 0.0]))
    assert (best, worst) == pytest.approx((1.0, 0.5))
