"""What a batch holds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lakerank.lake.storage import Storage
from lakerank.training.batches import Sampler, Selection
from lakerank.training.config import load_train_config
from lakerank.training.schedule import learning_rate, place
from lakerank.training.tables import Columns, TrainingLake, read_lake

EVERYTHING = Selection({}, {}, {})


@pytest.fixture(scope="module")
def lake(colour_lake: Path) -> TrainingLake:
    tables = [str(colour_lake / f"{name}.parquet") for name in ("documents", "queries", "qrels")]
    return read_lake(Storage(), *tables, Columns("topic", "kind", ("language",)), 56)


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
