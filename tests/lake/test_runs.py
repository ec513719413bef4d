"""A run's folders, its id, and its manifest, which is written once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.errors import ConfigError
from lakerank.lake.runs import RunPaths, check_run_id, read_manifest, write_manifest
from lakerank.lake.storage import Storage


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
