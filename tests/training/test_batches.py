"""What a batch holds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lakerank.lake.storage import Storage
from lakerank.limits import Limits
from lakerank_training.batches import Batch, Sampler, TrainingStage
from lakerank_training.dataset import Dataset, DatasetTables, ImageStore, read_dataset
from lakerank_training.step import Schedule
from training_lakes import table_paths

PAIRS = TrainingStage("pairs", steps=1, groups=3, group_size=4)


def read(tables: dict[str, str], side: int) -> Dataset:
    return read_dataset(Storage(), DatasetTables(**tables), ImageStore(Limits(max_pixels=side**2)))


def draw(sampler: Sampler, seed: int) -> Batch:
    random = np.random.default_rng(seed)
    return sampler.draw(random, sampler.draw_topics(random))


@pytest.fixture(scope="module")
def dataset(colour_lake: Path) -> Dataset:
    return read(table_paths(colour_lake) | {"topic": "topic", "kind": "kind"}, 56)


def test_topics_differ_and_only_their_own_pairs_are_relevant(dataset: Dataset) -> None:
    batch = draw(Sampler(dataset, PAIRS), 0)
    topics = dataset.documents.topics[batch.documents]
    assert len(set(topics.tolist())) == 12
    np.testing.assert_array_equal(topics, dataset.queries.topics[batch.queries])
    np.testing.assert_array_equal(batch.grades > 0, np.eye(12, dtype=bool))


def test_an_image_is_not_judged_against_itself(dataset: Dataset) -> None:
    _, known = Sampler(dataset, PAIRS).relations(np.array([0, 1]), np.array([0, 2]))
    assert known.tolist() == [[False, True], [True, True]]


def test_a_stage_draws_kinds_by_their_weights(dataset: Dataset) -> None:
    stage = replace(PAIRS, document_weights={"name": 1.0}, query_weights={"picture": 1.0})
    batch = draw(Sampler(dataset, stage), 2)
    assert (dataset.documents.images[batch.documents] < 0).all()
    assert (dataset.queries.images[batch.queries] >= 0).all()


@pytest.fixture(scope="module")
def plain(plain_lake: dict[str, str]) -> Dataset:
    return read(plain_lake, 84)


def test_rows_that_scoring_would_reject_are_left_out(plain_lake: dict[str, str], caplog: Any) -> None:
    dataset = read(plain_lake, 84)
    assert len(dataset.documents.ids) == 24
    assert "2 rows left out, the first of them broken: image_unsupported_format" in caplog.text


def test_images_keep_their_aspect_under_the_limit(plain: Dataset) -> None:
    assert [pixels.shape for pixels in plain.images.pixels[:3]] == [(56, 56, 3), (56, 84, 3), (112, 56, 3)]


def test_without_topics_queries_are_drawn_with_what_is_relevant_to_them(plain: Dataset) -> None:
    sampler = Sampler(plain, TrainingStage("pairs", steps=1, groups=2, group_size=6))
    seen = set()
    for seed in range(30):
        batch = draw(sampler, seed)
        names = [
            (plain.queries.ids[q], plain.documents.ids[d]) for q, d in zip(batch.queries, batch.documents, strict=True)
        ]
        assert len({query for query, _ in names}) == 12
        assert (np.diag(batch.grades) > 0).all()
        seen |= {document for query, document in names if query == "red.en"}
    assert seen == {"red.picture", "red.text", "pink.text"}


def test_grades_are_those_of_the_judgements(plain: Dataset) -> None:
    rows = {name: row for row, name in enumerate(plain.documents.ids)}
    documents = np.array([rows[name] for name in ("red.picture", "red.text", "pink.text", "navy.text")])
    assert plain.relevance(documents, np.array([0])).tolist() == [[2], [1], [1], [0]]


def test_steps_have_a_stage_and_a_place_in_it() -> None:
    schedule = Schedule([replace(PAIRS, name=name, steps=3) for name in ("towers", "pairs")])
    assert [schedule.stage(step).name for step in (2, 3)] == ["towers", "pairs"]
    assert schedule.position(4) == (1, pytest.approx(1 / 3))
    with pytest.raises(IndexError, match="step 6 of 6"):
        schedule.position(6)


def test_rates_warm_up_fall_and_start_anew() -> None:
    stages = [replace(PAIRS, name=name, steps=500) for name in ("one", "two")]
    schedule = Schedule([*stages, replace(PAIRS, name="three", steps=500, learning_rate=0.5)])
    rates = [schedule.rate(step) for step in range(1500)]
    assert rates[0] == pytest.approx(schedule.learning_rate / 100)
    assert rates[99] == rates[100] == max(rates[:1000]) == schedule.learning_rate
    assert rates[550] == pytest.approx(schedule.learning_rate * (1 + schedule.floor) / 2)
    assert rates[999] == pytest.approx(schedule.learning_rate * schedule.floor, rel=1e-2)
    assert rates[1000] == pytest.approx(0.5 / 100)
    assert max(rates[1000:]) == 0.5
