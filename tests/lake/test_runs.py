"""A run is complete when its manifest is there, and readers see it when the pointer has moved: never backwards."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.errors import ConfigError, StorageError
from lakerank.lake.runs import RunPaths, check_run_id, current_run, publish, read_manifest, write_manifest
from lakerank.lake.storage import Storage, join

MONDAY, TUESDAY = "2026-03-02T10:00:00+00:00", "2026-03-03T10:00:00+00:00"


def complete(storage: Storage, output: str, run_id: str) -> RunPaths:
    paths = RunPaths(output, run_id)
    write_manifest(storage, paths, {"run_id": run_id})
    return paths


def test_where_a_run_lies() -> None:
    paths = RunPaths("s3://lake/out/", "r1")
    assert paths.config == "s3://lake/out/runs/r1/config.yaml"
    assert paths.plan == "s3://lake/out/runs/r1/plan"
    assert paths.report == "s3://lake/out/runs/r1/report.html"
    assert paths.ranked == "s3://lake/out/ranked/run_id=r1"
    assert paths.rejected == "s3://lake/out/rejected/run_id=r1"
    assert paths.current == "s3://lake/out/current.json"


@pytest.mark.parametrize(
    "run_id", ["r", "2026-03-02", "scheduled__2026-03-02T00:00:00+00:00", "A.b-c", "_x", "x" * 128]
)
def test_run_ids_that_schedulers_make_are_taken(run_id: str) -> None:
    check_run_id(run_id)


@pytest.mark.parametrize("run_id", ["", ".", "..", ".r", "a/b", "a b", "a=b", "a%2Fb", "é", "a\n", "x" * 129, "a*"])
def test_run_ids_that_are_no_folder_names_are_refused(run_id: str) -> None:
    with pytest.raises(ConfigError, match="run id") as caught:
        check_run_id(run_id)
    assert len(caught.value.faults) == 1


@given(st.text())
def test_an_accepted_run_id_stays_one_folder(run_id: str) -> None:
    try:
        check_run_id(run_id)
    except ConfigError:
        return
    assert RunPaths("out", run_id).manifest == f"out/runs/{run_id}/manifest.json"


def test_a_manifest_is_written_once(storage: Storage, empty_folder: str) -> None:
    paths = RunPaths(empty_folder, "r1")
    assert read_manifest(storage, empty_folder, "r1") is None
    assert write_manifest(storage, paths, {"b": 1, "a": "é"})
    assert not write_manifest(storage, paths, {"b": 2})
    assert read_manifest(storage, empty_folder, "r1") == {"a": "é", "b": 1}


def test_of_many_manifests_one_stands(storage: Storage, empty_folder: str, together: Any) -> None:
    paths = RunPaths(empty_folder, "r1")
    results = together(lambda number: write_manifest(storage, paths, {"writer": number}), 8)
    assert sorted(map(str, results)) == ["False"] * 7 + ["True"]
    assert read_manifest(storage, empty_folder, "r1") == {"writer": results.index(True)}


def test_the_pointer_moves_forwards_only(storage: Storage, empty_folder: str) -> None:
    first, second = complete(storage, empty_folder, "r1"), complete(storage, empty_folder, "r2")
    assert current_run(storage, empty_folder) is None
    assert publish(storage, second, TUESDAY)
    assert not publish(storage, first, MONDAY)
    expected = {"run_id": "r2", "manifest": "runs/r2/manifest.json", "published_at": TUESDAY}
    assert current_run(storage, empty_folder) == expected
    assert publish(storage, second, TUESDAY)
    assert current_run(storage, empty_folder) == expected


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("2026-03-02T12:00:00+05:00", "2026-03-02T08:00:00+00:00"),  # as text, the other way round
        ("2026-03-02T08:00:00Z", "2026-03-02T08:00:00.5+00:00"),
        ("2026-03-02T08:00:00", "2026-03-02T08:00:01Z"),
    ],
)
def test_moments_are_compared_not_texts(tmp_path: object, earlier: str, later: str) -> None:
    storage, output = Storage(), str(tmp_path)
    first, second = complete(storage, output, "r1"), complete(storage, output, "r2")
    assert publish(storage, first, earlier)
    assert publish(storage, second, later)
    assert not publish(storage, first, earlier)


def test_a_run_without_a_manifest_is_not_published(storage: Storage, empty_folder: str) -> None:
    with pytest.raises(StorageError, match=r"runs/r1/manifest\.json: not there"):
        publish(storage, RunPaths(empty_folder, "r1"), MONDAY)
    assert current_run(storage, empty_folder) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_pointer_that_is_not_ours_is_named(tmp_path: object, content: bytes) -> None:
    Storage().replace(join(str(tmp_path), "current.json"), content)
    with pytest.raises(StorageError, match=r"current\.json: .*not written by lakerank"):
        current_run(Storage(), str(tmp_path))


def test_of_runs_published_at_once_the_latest_stays(storage: Storage, empty_folder: str, together: Any) -> None:
    moments = [f"2026-03-02T10:00:{second:02}+00:00" for second in range(12)]
    runs = [complete(storage, empty_folder, f"r{number}") for number in range(12)]
    results = together(lambda number: publish(storage, runs[number], moments[number]), 12)
    assert results[-1] is True
    assert all(isinstance(result, bool) for result in results)
    current = current_run(storage, empty_folder)
    assert current is not None
    assert (current["run_id"], current["published_at"]) == ("r11", moments[-1])


def test_publishing_again_moves_nothing(storage: Storage, empty_folder: str) -> None:
    paths = complete(storage, empty_folder, "r1")
    assert publish(storage, paths, MONDAY)
    before = storage.version(paths.current)
    assert publish(storage, paths, MONDAY)
    assert storage.version(paths.current) == before
