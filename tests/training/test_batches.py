"""What a batch holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lakerank.lake.storage import Storage
from lakerank.training.batches import Sampler, Selection
from lakerank.training.config import load_train_config
from lakerank.training.schedule import learning_rate, place
from lakerank.training.tables import Columns, Sources, TrainingLake, read_lake

EVERYTHING = Selection({}, {}, {})


@pytest.fixture(scope="module")
def lake(colour_lake: Path) -> TrainingLake:
    tables = [str(colour_lake / f"{name}.parquet") for name in ("documents", "queries", "qrels")]
    return read_lake(Storage(), Sources(*tables), Columns("topic", "kind", ("language",)), 56)


def test_topics_differ_and_only_their_own_pairs_are_relevant(lake: TrainingLake) -> None:
    batch = Sampler(lake, EVERYTHING, {}).draw(np.random.default_rng(0), 3, 4, 0.0, None)
    topics = lake.documents.topics[batch.documents]
    assert len(set(topics.tolist())) == 12
    np.testing.assert_array_equal(topics, lake.queries.topics[batch.queries])
    np.testing.assert_array_equal(batch.grades > 0, np.eye(12, dtype=bool))


def test_a_picture_is_not_judged_against_itself(lake: TrainingLake) -> None:
    _, known = Sampler(lake, EVERYTHING, {}).relations(np.array([0, 1]), np.array([0, 2]))
    assert known.tolist() == [[False, True], [True, True]]


def test_texts_kept_apart_meet_no_picture(lake: TrainingLake) -> None:
    apart = {"language": frozenset({"hi"})}
    hindi, english, drawn = 4, 2, 0
    _, known = Sampler(lake, EVERYTHING, apart).relations(
        np.array([drawn, hindi]), np.array([hindi, english, drawn + 5])
    )
    assert known.tolist() == [[False, True, True], [True, True, False]]


def test_a_bag_s_rows_are_relevant_by_topic_and_kept_apart_as_any(lake: TrainingLake) -> None:
    apart = {"language": frozenset({"hi"})}
    sampler = Sampler(lake, Selection({}, {}, {}, by_topic=True), apart)
    batch = sampler.draw(np.random.default_rng(0), 3, 4, 0.0, None)
    topics = lake.documents.topics[batch.documents][:, None] == lake.queries.topics[batch.queries]
    assert np.array_equal(batch.grades, topics)
    assert np.array_equal(batch.known, sampler.relations(batch.documents, batch.queries)[1])
    assert not batch.known.all()


def test_mined_groups_are_neighbours(lake: TrainingLake) -> None:
    near = lambda topic: np.array([(topic + step) % 12 for step in (1, 2)])  # noqa: E731
    batch = Sampler(lake, EVERYTHING, {}).draw(np.random.default_rng(1), 1, 3, 1.0, near)
    first, *others = lake.documents.topics[batch.documents].tolist()
    assert {(other - first) % 12 for other in others} == {1, 2}


def test_a_stage_draws_what_it_selects(lake: TrainingLake) -> None:
    selection = Selection({"language": frozenset({"de"})}, {"name": 1.0}, {"picture": 1.0})
    batch = Sampler(lake, selection, {}).draw(np.random.default_rng(2), 3, 4, 0.0, None)
    assert all((lake.documents.texts[row] or "").startswith("Quadrat") for row in batch.documents)
    assert (lake.queries.pictures[batch.queries] >= 0).all()


@pytest.fixture(scope="module")
def plain(plain_lake: dict[str, str]) -> TrainingLake:
    return read_lake(Storage(), Sources(**plain_lake), Columns(), 84)


def test_rows_that_scoring_would_reject_are_left_out(plain_lake: dict[str, str], caplog: Any) -> None:
    lake = read_lake(Storage(), Sources(**plain_lake), Columns(), 84)
    assert len(lake.documents.ids) == 24
    assert "2 rows left out, the first of them broken: image_unsupported_format" in caplog.text


def test_pictures_keep_their_aspect_under_the_limit(plain: TrainingLake) -> None:
    assert [picture.shape for picture in plain.pixels[:3]] == [(3, 56, 56), (3, 56, 84), (3, 112, 56)]


def test_without_topics_queries_are_drawn_with_what_is_relevant_to_them(plain: TrainingLake) -> None:
    sampler = Sampler(plain, EVERYTHING, {})
    seen = set()
    for seed in range(30):
        batch = sampler.draw(np.random.default_rng(seed), 2, 6, 0.0, None)
        names = [
            (plain.queries.ids[q], plain.documents.ids[d]) for q, d in zip(batch.queries, batch.documents, strict=True)
        ]
        assert len({query for query, _ in names}) == 12
        assert (np.diag(batch.grades) > 0).all()
        seen |= {document for query, document in names if query == "red.en"}
    assert seen == {"red.picture", "red.text", "pink.text"}


def test_grades_are_those_of_the_judgements(plain: TrainingLake) -> None:
    rows = {name: row for row, name in enumerate(plain.documents.ids)}
    documents = np.array([rows[name] for name in ("red.picture", "red.text", "pink.text", "navy.text")])
    assert plain.relevance(documents, np.array([0])).tolist() == [[2], [1], [1], [0]]


def test_stages_and_rates(training_config: Callable[..., Path]) -> None:
    config = load_train_config(training_config())
    assert [place(config.stages, step).stage.name for step in (2, 3)] == ["towers", "pairs"]
    assert place(config.stages, 4).mined == pytest.approx(0.5 + 0.5 / 3)


def test_rates_warm_up_fall_and_start_anew(training_config: Callable[..., Path]) -> None:
    stages = [{"name": name, "steps": 500, "groups": 1, "group_size": 2} for name in ("one", "two", "three")]
    stages[2]["learning_rate"] = 0.5
    config = load_train_config(training_config(stages=stages))
    settings = config.optimizer
    rates = [learning_rate(settings, config.stages, step) for step in range(1500)]
    assert rates[0] == pytest.approx(settings.learning_rate / 100)
    assert rates[99] == rates[100] == max(rates[:1000]) == settings.learning_rate
    assert rates[550] == pytest.approx(settings.learning_rate * (1 + settings.floor) / 2)
    assert rates[999] == pytest.approx(settings.learning_rate * settings.floor, rel=1e-2)
    assert rates[1000] == pytest.approx(0.5 / 100)
    assert max(rates[1000:]) == 0.5
