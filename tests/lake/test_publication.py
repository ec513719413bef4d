"""Readers see a run when the pointer has moved to it: never backwards, whatever the clocks say; and what is said of it
is what the pointer says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lakerank.errors import RunNotFoundError, StorageError
from lakerank.lake.publication import (
    Publication,
    current_run,
    discard_unpublished,
    find_run,
    lists_folder,
    publish,
    run_before,
    set_aside,
    settle,
)
from lakerank.lake.runs import RunPaths, read_manifest, write_manifest
from lakerank.lake.storage import Storage, join

MONDAY, TUESDAY = "2026-03-02T10:00:00+00:00", "2026-03-03T10:00:00+00:00"


def manifest(run_id: str, moment: str = MONDAY, **more: object) -> dict[str, Any]:
    return {"run_id": run_id, "published_at": moment, "ranked_files": [], **more}


def settled(storage: Storage, output: str, run_id: str, moment: str = MONDAY) -> Publication:
    return settle(storage, RunPaths(output, run_id), manifest(run_id, moment))[1]


def current_id(storage: Storage, output: str) -> str | None:
    pointer = current_run(storage, output)
    return None if pointer is None else pointer["run_id"]


@pytest.mark.parametrize("later", [MONDAY, "1970-01-01T00:00:00+00:00", "2099-01-01T00:00:00+00:00"])
def test_the_pointer_moves_to_what_is_published_next_whatever_the_clocks(
    storage: Storage, empty_folder: str, later: str
) -> None:
    assert current_run(storage, empty_folder) is None
    assert settled(storage, empty_folder, "r1", TUESDAY) == Publication("r1", "r1")
    assert settled(storage, empty_folder, "r0", later).published
    assert current_id(storage, empty_folder) == "r0"


def test_a_pointer_of_an_earlier_version_with_a_time_to_come_holds_nobody_up(tmp_path: Path) -> None:
    output, pointer = str(tmp_path), {"run_id": "old", "manifest": "", "published_at": "2099-01-01T00:00:00+00:00"}
    Storage().replace(RunPaths(output, "").current, json.dumps(pointer).encode())
    assert settled(Storage(), output, "new").published
    assert current_id(Storage(), output) == "new"


def test_publishing_an_earlier_run_again_says_which_run_is_current(
    storage: Storage, empty_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    for run_id in ("r2", "r1"):
        settled(storage, empty_folder, run_id)
    before = storage.version(RunPaths(empty_folder, "").current)
    for _ in range(2):
        publication = publish(storage, RunPaths(empty_folder, "r2"))
        assert (publication.published, publication.current) == (False, "r1")
    assert publish(storage, RunPaths(empty_folder, "r1")).published
    assert storage.version(RunPaths(empty_folder, "").current) == before
    assert "run r1 was published after it and stays current" in caplog.text


def test_a_run_whose_driver_died_before_the_pointer_moved_does_not_displace_a_later_one(tmp_path: Path) -> None:
    storage, output = DyingStorage("current.json"), str(tmp_path)
    with pytest.raises(Died):
        settled(storage, output, "dead")
    assert settled(Storage(), output, "next").published
    assert not publish(Storage(), RunPaths(output, "dead")).published
    assert current_id(Storage(), output) == "next"


def test_a_run_whose_driver_died_before_the_pointer_moved_is_published_by_the_next(tmp_path: Path) -> None:
    with pytest.raises(Died):
        settled(DyingStorage("current.json"), str(tmp_path), "dead")
    assert publish(Storage(), RunPaths(str(tmp_path), "dead")).published


def test_a_lost_pointer_and_old_numbers_do_not_let_an_earlier_run_back(tmp_path: Path) -> None:
    storage, output = Storage(), str(tmp_path)
    for run_id in ("r1", "r2"):
        settled(storage, output, run_id)
    storage.delete(RunPaths(output, "").current)
    assert settled(storage, output, "r3").published
    assert not publish(storage, RunPaths(output, "r2")).published


class Died(Exception):
    """The driver's end, where a test wants it."""


class DyingStorage(Storage):
    """Storage whose driver dies when it would write a file of that name."""

    def __init__(self, dies_at: str) -> None:
        super().__init__()
        self._dies_at = dies_at

    def replace_if(self, uri: str, data: bytes, version: str | None) -> bool:
        if uri.endswith(self._dies_at):
            raise Died(uri)
        return super().replace_if(uri, data, version)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("2026-03-02T12:00:00+05:00", "2026-03-02T08:00:00+00:00"),  # as text, the other way round
        ("2026-03-02T08:00:00Z", "2026-03-02T08:00:00.5+00:00"),
        ("2026-03-02T08:00:00", "2026-03-02T08:00:01Z"),
    ],
)
def test_runs_of_earlier_versions_keep_their_order_in_time(tmp_path: Path, earlier: str, later: str) -> None:
    storage, output = Storage(), str(tmp_path)
    for run_id, moment in (("r1", earlier), ("r0", later)):
        write_manifest(storage, RunPaths(output, run_id), manifest(run_id, moment))
        assert publish(storage, RunPaths(output, run_id)).published
    assert not publish(storage, RunPaths(output, "r1")).published


def test_a_run_without_a_manifest_is_not_published(storage: Storage, empty_folder: str) -> None:
    with pytest.raises(StorageError, match=r"runs/r1/manifest\.json: not there"):
        publish(storage, RunPaths(empty_folder, "r1"))
    assert current_run(storage, empty_folder) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff", b"{}", b'{"run_id": 3}', b'{"run_id": "r", "publication": "x"}']
)
def test_a_pointer_that_is_not_ours_is_named(tmp_path: Path, content: bytes) -> None:
    Storage().replace(join(str(tmp_path), "current.json"), content)
    with pytest.raises(StorageError, match=r"current\.json: damaged, .*; delete it, and run"):
        current_run(Storage(), str(tmp_path))


def test_of_runs_published_at_once_each_is_told_the_truth(storage: Storage, empty_folder: str, together: Any) -> None:
    told = together(lambda number: settled(storage, empty_folder, f"r{number}"), 12)
    numbers = {f"r{n}": read_manifest(storage, empty_folder, f"r{n}")["publication"] for n in range(12)}  # type: ignore[index]
    assert len({*numbers.values()}) == 12, "no two runs have one number"
    last = max(numbers, key=numbers.__getitem__)
    assert current_id(storage, empty_folder) == last
    for publication in told:
        assert publication.published or numbers[publication.current] > numbers[publication.run_id]
    assert next(publication for publication in told if publication.run_id == last).published


def test_two_drivers_of_one_run_publish_it_once(storage: Storage, empty_folder: str, together: Any) -> None:
    told = together(lambda number: settle(storage, RunPaths(empty_folder, "r"), manifest("r", writer=number)), 4)
    assert {publication for _, publication in told} == {Publication("r", "r")}
    assert len({written["writer"] for written, _ in told}) == 1


def test_the_pointer_is_one_line(tmp_path: Path) -> None:
    settled(Storage(), str(tmp_path), "r1")
    (line,) = (tmp_path / "current.json").read_text().splitlines()
    assert json.loads(line) == {
        "run_id": "r1", "manifest": "runs/r1/manifest.json", "publication": 1, "published_at": MONDAY,
        "checksum": json.loads(line)["checksum"],
    }  # fmt: skip


def test_a_run_is_compared_with_the_one_before_it_also_by_a_second_driver(tmp_path: Path) -> None:
    storage, output = Storage(), str(tmp_path)
    paths = RunPaths(output, "r2")
    assert run_before(storage, RunPaths(output, "r1")) is None
    settled(storage, output, "r1")
    assert run_before(storage, paths) == "r1"
    settle(storage, paths, manifest("r2", last_run="r1"))
    assert run_before(storage, paths) == "r1"


def lists(storage: Storage, folder: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(join(folder, name)) for name in storage.list_names(folder)}


def written_lists(storage: Storage, output: str, run_id: str) -> RunPaths:
    paths = RunPaths(output, run_id)
    for name in ("part-00000.parquet", "part-00001.parquet"):
        storage.replace(join(paths.ranked, name), f"{run_id} {name}".encode())
    return paths


def test_lists_whose_audit_failed_leave_ranked(storage: Storage, empty_folder: str) -> None:
    paths = written_lists(storage, empty_folder, "r1")
    expected = lists(storage, paths.ranked)
    assert lists_folder(storage, paths) == paths.ranked
    assert set_aside(storage, paths)
    assert lists(storage, paths.unpublished) == expected
    assert storage.list_names(join(empty_folder, "ranked")) == []
    assert lists_folder(storage, paths) == paths.unpublished
    assert find_run(storage, empty_folder, "r1") == "r1"
    written_lists(storage, empty_folder, "r1")
    settled(storage, empty_folder, "r1")
    assert lists_folder(storage, paths) == paths.ranked
    discard_unpublished(storage, paths)
    assert lists(storage, paths.unpublished) == {}


class OtherDriver(Storage):
    """Storage beside which another driver writes the manifest, when this one has deleted a list."""

    def delete(self, uri: str) -> None:
        super().delete(uri)
        path = Path(uri)
        write_manifest(Storage(), RunPaths(str(path.parents[2]), "r1"), manifest("r1"))


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_another_driver_publishes_keeps_its_lists(tmp_path: Path, before: bool) -> None:
    paths = written_lists(Storage(), str(tmp_path), "r1")
    expected = lists(Storage(), paths.ranked)
    if before:
        write_manifest(Storage(), paths, manifest("r1"))
    assert not set_aside(OtherDriver(), paths)
    assert lists(Storage(), paths.ranked) == expected


def test_a_run_whose_lists_were_set_aside_meanwhile_is_not_published(tmp_path: Path) -> None:
    paths = written_lists(Storage(), str(tmp_path), "r1")
    set_aside(Storage(), paths)
    with pytest.raises(StorageError, match=r"part-00000\.parquet gone since it was written"):
        settle(Storage(), paths, manifest("r1") | {"ranked_files": [{"file": "part-00000.parquet", "rows": 1}]})
    assert current_run(Storage(), str(tmp_path)) is None
    assert read_manifest(Storage(), str(tmp_path), "r1") is None


def test_a_run_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    storage, output = Storage(), str(tmp_path)
    with pytest.raises(RunNotFoundError, match=r"no run in .* yet; published: none"):
        find_run(storage, output, "current")
    for run_id in ("demo", "cascade"):
        settled(storage, output, run_id)
    storage.replace(RunPaths(output, "begun").started, b"{}")
    assert find_run(storage, output, "current") == "cascade"
    assert find_run(storage, output, "demo") == "demo"
    with pytest.raises(RunNotFoundError, match=rf"no run 'nosuch' in {output}; published: cascade, demo"):
        find_run(storage, output, "nosuch")
    with pytest.raises(RunNotFoundError, match=r"run 'begun' .* has no ranked lists yet.*; published: cascade, demo"):
        find_run(storage, output, "begun")
