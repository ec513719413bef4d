"""A run id that is used again with other settings: which differ, and what was and is their value."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lakerank.config import resolve_config
from lakerank.errors import RunConflictError
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.plan.conflicts import changed_settings, check_settings, flat, naming_differences

TABLES = {name: f"/lake/{name}" for name in ("documents", "queries", "candidates")}


def config(*settings: str) -> str:
    return resolve_config({"lake": {**TABLES, "output": "out"}}, settings).to_yaml()


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run that was made with `config()`."""
    paths = RunPaths(str(tmp_path), "r")
    Storage().replace(paths.config, config().encode())
    return paths


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("lake.documents=/other", "lake.documents was /lake/documents, is /other now"),
        ("lake.queries=/other", "lake.queries was /lake/queries, is /other now"),
        ("lake.candidates=s3://b/c", "lake.candidates was /lake/candidates, is s3://b/c now"),
        ("ranking.depth=5", "ranking.depth was null, is 5 now"),
        ("ranking.label_thresholds=[0.5]", "ranking.label_thresholds was [0.25, 0.5, 0.75], is [0.5] now"),
        ("audit.golden_pairs=/golden", "audit.golden_pairs was null, is /golden now"),
        ("audit.golden_qrels=/golden", "audit.golden_qrels was null, is /golden now"),
    ],
)
def test_a_published_run_keeps_to_its_tables_and_its_ranking(paths: RunPaths, setting: str, words: str) -> None:
    with pytest.raises(RunConflictError) as conflict:
        check_settings(Storage(), paths, config(setting), published=True)
    assert words in str(conflict.value)
    assert "another --run-id" in str(conflict.value)


@pytest.mark.parametrize(
    "setting",
    ["lake.qrels=/other", "lake.output=elsewhere", "lake.storage.region=north", "spark.partitions=3",
     "scoring.host_threads=7", "lake.queries=/lake/../lake/queries", "lake.queries=file:///lake/queries"],
)  # fmt: skip
def test_how_and_where_a_run_is_made_may_change(
    paths: RunPaths, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_settings(Storage(), paths, config(setting), published=True)
    assert caplog.messages == []


def test_all_that_differs_is_named_at_once(paths: RunPaths) -> None:
    with pytest.raises(RunConflictError, match=r"lake\.documents was .*, ranking\.depth was null, is 3 now"):
        check_settings(Storage(), paths, config("lake.documents=/o", "ranking.depth=3"), published=True)


def test_other_bounds_of_a_published_run_are_said_not_to_be_checked(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    check_settings(Storage(), paths, config("audit.max_reject_rate=0.5"), published=True)
    assert "is not audited again by other bounds: audit.max_reject_rate was 0.01, is 0.5 now" in caplog.text


def test_a_planned_run_keeps_to_its_tables_and_may_change_its_ranking(paths: RunPaths) -> None:
    check_settings(Storage(), paths, config("ranking.depth=3", "audit.golden_pairs=/golden"))
    with pytest.raises(RunConflictError, match=r"was planned with other settings: lake\.queries was /lake/queries"):
        check_settings(Storage(), paths, config("lake.queries=/other"))


@pytest.mark.parametrize(
    ("setting", "name"),
    [("model.path=/m", "model.path was embedded, is /m now"), ("scoring.unit_tokens=7", "scoring.unit_tokens was")],
)
def test_a_conflict_of_a_plan_names_what_differs(paths: RunPaths, setting: str, name: str) -> None:
    with (
        pytest.raises(RunConflictError) as conflict,
        naming_differences(Storage(), paths, config(setting, "model.device=cuda", "ranking.depth=3")),
    ):
        raise RunConflictError("planned from something else")
    assert str(conflict.value).startswith(f"planned from something else ({name}")
    assert "device" not in str(conflict.value)
    assert "depth" not in str(conflict.value)


def test_a_conflict_without_a_difference_is_left_as_it_is(paths: RunPaths) -> None:
    with pytest.raises(RunConflictError) as conflict, naming_differences(Storage(), paths, config()):
        raise RunConflictError("no plan yet")
    assert str(conflict.value) == "no plan yet"


def test_a_run_without_a_config_is_compared_with_nothing(tmp_path: Path) -> None:
    check_settings(Storage(), RunPaths(str(tmp_path), "r"), config(), published=True)


def test_passwords_in_addresses_are_not_in_the_message(paths: RunPaths) -> None:
    with pytest.raises(RunConflictError) as conflict:
        check_settings(Storage(), paths, config("lake.queries=https://ada:secret@host/q"))
    assert "secret" not in str(conflict.value)


def test_settings_that_an_earlier_version_did_not_have_do_not_differ(tmp_path: Path) -> None:
    paths, now = RunPaths(str(tmp_path), "r"), yaml.safe_load(config())
    old = {**now, "ranking": {"label_thresholds": [0.25, 0.5, 0.75]}, "gone": {"with": "it"}}
    Storage().replace(paths.config, yaml.safe_dump(old).encode())
    check_settings(Storage(), paths, config("ranking.depth=5"), published=True)
    assert changed_settings(old, now, complete=True).keys() == {"gone.with", "ranking.duplicates"}


def test_each_model_of_a_cascade_is_compared() -> None:
    assert flat({"model": [{"path": "a"}, {"path": "b", "top": 3}], "x": [1, 2]}) == {
        "model.0.path": "a", "model.1.path": "b", "model.1.top": 3, "x": [1, 2],
    }  # fmt: skip
