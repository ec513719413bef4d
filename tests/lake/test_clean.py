"""What is cleaned away is needed by nothing: no kept run, no run under way, no next run that could reuse a score."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerank.errors import StorageError
from lakerank.fingerprint import sequence_hash
from lakerank.lake.clean import CleaningPlan, Retention, delete, describe, plan_cleaning
from lakerank.lake.formats import resolve
from lakerank.lake.publication import current_run, publish, settle
from lakerank.lake.runs import RunPaths, announce, planned_contents, read_manifest, write_manifest
from lakerank.lake.scores import UNITS as UNIT_LIST
from lakerank.lake.scores import (
    finished_units,
    read_unit,
    unit_address,
    write_reused_units,
    write_unit,
    write_unit_list,
)
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import SHARED_INDEX, files_key, index_key, parquet_bytes
from lakerank.schemas import SCORES

DAY = 86400.0
NOW = time.time()
LATER = NOW + 30 * DAY  # for stores whose files cannot be made to look old
NO_TABLES: dict[str, str] = {}


#: What a manifest must have for cleaning.
NAMES_NOTHING = {"scorer": "f1", "plan": {"attempt": "aa00"}, "units": [], "reused_units": [], "rejected_files": []}


def write_scores(storage: Storage, output: str, scorer: str, pairs: Iterable[int], reason: str | None = None) -> str:
    """A unit file with scores of some pairs, which are numbered."""
    keys = [(f"q{pair}", f"d{pair}", f"hq{pair}", f"hd{pair}") for pair in sorted(pairs)]
    names = ("query_id", "doc_id", "query_hash", "doc_hash")
    result = {"logit": None if reason else 1.0, "reason": reason}
    rows = [dict(zip(names, key, strict=True)) | result for key in keys]
    unit = sequence_hash(sorted([*keys, (reason or "", "", "", "")]))
    write_unit(storage, output, scorer, unit, pa.Table.from_pylist(rows, schema=SCORES))
    return unit


def write_run(
    storage: Storage, output: str, run_id: str, units: list[str], reused: list[str] = [], scorer: str = "f1",  # noqa: B006
    published: float | None = NOW,
) -> RunPaths:  # fmt: skip
    """A run as the job leaves it: published at a moment, or without a manifest."""
    paths = RunPaths(output, run_id)
    announce(storage, paths, scorer)
    plan = {"attempt": "aa00", "scorer": scorer, "unit_counts": [len(units)]}
    listed = [{"unit": unit, "groups": 1, "pairs": 1, "cost": 1} for unit in units]
    write_unit_list(storage, join(paths.plan, "aa00"), 0, pa.Table.from_pylist(listed, schema=UNIT_LIST))
    write_reused_units(storage, join(paths.plan, "aa00"), reused)
    storage.replace(paths.plan_file, json_bytes(plan))
    for name in ("pairs/part-0.parquet", "units/u.parquet"):
        storage.replace(join(paths.plan, "aa00", name), b"x")
    storage.replace(join(paths.ranked, "part-00000.parquet"), b"ranked")
    storage.replace(join(paths.rejected, "part-00000.parquet"), b"rejected")
    if published is not None:
        moment = datetime.fromtimestamp(published, UTC).isoformat()
        files = [{"file": "part-00000.parquet", "rows": 1}]
        manifest = {"run_id": run_id, "published_at": moment, "scorer": scorer, "plan": {"attempt": "aa00"}}
        manifest |= {"units": units, "reused_units": reused, "ranked_files": files, "rejected_files": files}
        write_manifest(storage, paths, manifest)
        publish(storage, paths)
    return paths


def json_bytes(value: object) -> bytes:
    import json

    return json.dumps(value).encode()


def look(
    storage: Storage, output: str, now: float = LATER, scorers: Iterable[str] | None = ("f1",), **keep: float
) -> CleaningPlan:
    return plan_cleaning(storage, output, Retention(**({"keep_runs": 2} | keep)), scorers, NO_TABLES, now)  # type: ignore[arg-type]


def whys(plan: CleaningPlan, output: str) -> dict[str, str]:
    return {deletion.file.uri.removeprefix(output + "/"): deletion.why for deletion in plan.deletions}


@pytest.fixture
def output(empty_folder: str) -> str:
    return join(empty_folder, "out")


def test_old_runs_go_and_the_current_and_latest_stay(storage: Storage, output: str) -> None:
    units = [write_scores(storage, output, "f1", [number]) for number in range(4)]
    runs = [write_run(storage, output, f"r{n}", [units[n]], published=NOW - (9 - n) * DAY) for n in range(4)]
    storage.replace(join(output, "notes.txt"), b"mine")
    storage.replace(join(output, "exports/r0/part.parquet"), b"another job's")
    plan = look(storage, output)
    assert set(plan.kept) == {"r2", "r3"}
    assert set(whys(plan, output).values()) == {"old run"}
    assert {uri.split("/")[1].removeprefix("run_id=") for uri in whys(plan, output)} == {"r0", "r1"}
    before = {file.uri for file in storage.walk(output)}
    gone: list[str] = []
    assert delete(storage, output, plan, lambda deletion: gone.append(deletion.file.uri))
    assert {file.uri for file in storage.walk(output)} == before - set(gone)
    assert gone[0] in {run.manifest for run in runs[:2]}, "manifests first: none may name what is gone"
    assert storage.list_names(join(output, "ranked")) == ["run_id=r2", "run_id=r3"]
    assert finished_units(storage, output, "f1") == set(units), "the next run may want those scores again"
    assert look(storage, output).deletions == ()


def test_days_keep_more_runs_than_numbers(storage: Storage, output: str) -> None:
    for number in range(4):
        write_run(storage, output, f"r{number}", [], published=NOW - (9 - number) * DAY)
    kept = set(look(storage, output, now=NOW, keep_runs=1, keep_s=7.5 * DAY).kept)
    assert kept == {"r2", "r3"}


def test_which_runs_are_the_latest_no_clock_decides(storage: Storage, output: str) -> None:
    for name, moment in (("first", "2099-01-01"), ("second", "1999-01-01"), ("third", "1970-01-01")):
        settle(storage, RunPaths(output, name), {"published_at": moment, "ranked_files": [], **NAMES_NOTHING})
    assert set(look(storage, output, keep_runs=2).kept) == {"second", "third"}


def test_a_clock_that_was_ahead_does_not_keep_a_run_for_years(tmp_path: Path) -> None:
    storage, output = Storage(), str(tmp_path)
    for name in ("ahead", "later"):
        write_run(storage, output, name, [], published=NOW + 4000 * DAY)
    assert set(look(storage, output, keep_runs=1, keep_s=40 * DAY).kept) == {"ahead", "later"}, "30 days old"
    assert set(look(storage, output, keep_runs=1, keep_s=20 * DAY).kept) == {"later"}


def test_lists_that_were_set_aside_go_with_their_run(storage: Storage, output: str) -> None:
    """Those of a run that is published since are nobody's."""
    write_run(storage, output, "r1", [])
    for name in ("failed", "r1"):
        storage.replace(join(RunPaths(output, name).unpublished, "part-00000.parquet"), b"x")
    write_run(storage, output, "failed", [], published=None)
    young = whys(look(storage, output, now=NOW), output)
    assert young == {}
    old = whys(look(storage, output), output)
    assert old["unpublished/run_id=failed/part-00000.parquet"] == "unfinished run"
    assert old["unpublished/run_id=r1/part-00000.parquet"] == "orphan"


def test_publication_numbers_below_the_current_one_go(storage: Storage, output: str) -> None:
    for name in ("r1", "r2", "r3"):
        settle(storage, RunPaths(output, name), {"published_at": "2026-01-01", "ranked_files": [], **NAMES_NOTHING})
    deleted = {uri for uri, why in whys(look(storage, output), output).items() if why == "old number"}
    assert deleted == {"publications/00000001.json", "publications/00000002.json"}
    assert "old number" not in whys(look(storage, output, now=NOW), output).values()


def test_the_current_run_stays_however_old(storage: Storage, output: str) -> None:
    write_run(storage, output, "current", [], published=NOW)
    for name in ("r1", "r2"):  # later by their manifests, but a failure came before the pointer
        moment = datetime.fromtimestamp(NOW + DAY, UTC).isoformat()
        paths = write_run(storage, output, name, [], published=None)
        fields = {
            "units": [],
            "reused_units": [],
            "ranked_files": [],
            "rejected_files": [],
            "plan": {"attempt": "aa00"},
        }
        write_manifest(storage, paths, {"run_id": name, "published_at": moment, "scorer": "f1"} | fields)
    assert set(look(storage, output).kept) == {"current", "r1", "r2"}


def test_scores_of_models_that_no_kept_run_uses_go(storage: Storage, output: str) -> None:
    old, used, configured = (write_scores(storage, output, scorer, [1]) for scorer in ("f0", "f1", "f2"))
    write_run(storage, output, "r1", [used])
    plan = look(storage, output, scorers=["f2"])
    assert whys(plan, output) == {f"scores/scorer=f0/{old}.parquet": "old scorer"}
    assert look(storage, output, now=NOW + DAY, scorers=["f2"]).deletions == (), "a job may be writing them"
    assert look(storage, output, scorers=None).deletions == (), "the config's model is unknown"
    for scorer in ("f0", "f1", "f2"):
        storage.create(join(output, f"index/scores/scorer={scorer}/{old}.parquet"), b"x")
    old_index = {f"index/scores/scorer=f0/{old}.parquet": "old scorer"}
    assert whys(look(storage, output, scorers=["f2"]), output) == whys(plan, output) | old_index
    assert configured in finished_units(storage, output, "f2")


def test_a_unit_goes_when_all_its_scores_stand_elsewhere(storage: Storage, output: str) -> None:
    named = write_scores(storage, output, "f1", [1, 2, 3])
    part, lonely, gone = (write_scores(storage, output, "f1", pairs) for pairs in ([2, 3], [3, 4], [7]))
    twins = [write_scores(storage, output, "f1", [4, 7, extra]) for extra in (8, 9)]
    tried = write_scores(storage, output, "f1", [5], reason="out_of_memory")
    lasting = write_scores(storage, output, "f1", [6], reason="image_undecodable")
    same = [write_scores(storage, output, "f1", [11], reason=reason) for reason in (None, "input_too_long")]
    corrupt = write_scores(storage, output, "f1", [10])
    storage.replace(unit_address(output, "f1", corrupt), b"PAR1")
    write_run(storage, output, "r1", [named])
    reasons = {
        uri.rpartition("/")[2].removesuffix(".parquet"): why for uri, why in whys(look(storage, output), output).items()
    }
    assert reasons[part] == reasons[tried] == "superseded scores"
    assert reasons[corrupt] == "torn scores"
    assert not reasons.keys() & {named, lasting, *twins}
    assert [unit in reasons for unit in sorted(same)] == [False, True], "of two that hold the same the first stays"
    kept = {named, lonely, gone, *twins} - reasons.keys()
    pairs = {row for unit in kept for row in read_unit(storage, output, "f1", unit)["query_id"].to_pylist()}
    assert pairs == {f"q{pair}" for pair in (1, 2, 3, 4, 7, 8, 9)}


def test_a_run_under_way_keeps_everything_it_may_need(storage: Storage, output: str) -> None:
    unit = write_scores(storage, output, "f0", [1])
    write_run(storage, output, "r1", [], published=NOW)
    write_run(storage, output, "running", [], [unit], scorer="f0", published=None)
    assert look(storage, output, now=NOW + DAY).deletions == ()
    assert set(whys(look(storage, output, now=NOW + 3 * DAY), output).values()) == {"unfinished run", "old scorer"}


def test_old_files_that_a_young_run_may_be_reading_stay(tmp_path: Path) -> None:
    storage, output = Storage(), str(tmp_path)
    twins = [write_scores(storage, output, "f0", pairs) for pairs in ([1, 2], [1, 2, 3])]
    storage.replace(join(output, "index/documents", f"{'0' * 32}-00000.parquet"), b"of a file just replaced")
    age(tmp_path, 10 * DAY)
    assert set(whys(look(storage, output, now=NOW), output).values()) == {"old scorer", "stale index"}
    paths = RunPaths(output, "new")
    announce(storage, paths, "f0")  # its plan, which is not there yet, may reuse either twin
    assert look(storage, output, now=NOW).deletions == ()
    storage.delete(paths.started)
    storage.replace(paths.config, b"")  # not even its scorer is known
    assert look(storage, output, now=NOW).deletions == ()
    age(Path(paths.folder), 10 * DAY)
    assert set(finished_units(storage, output, "f0")) == set(twins)
    assert set(whys(look(storage, output, now=NOW), output).values()) == {"unfinished run", "old scorer", "stale index"}


def test_long_scoring_is_no_sign_of_death(tmp_path: Path) -> None:
    storage, output = Storage(), str(tmp_path)
    unit = write_scores(storage, output, "f1", [1])
    write_run(storage, output, "slow", [unit, "not yet"], published=None)
    age(tmp_path, 10 * DAY)
    assert look(storage, output, now=NOW).kept == ()
    os.utime(unit_address(output, "f1", unit), (NOW - 60, NOW - 60))
    assert set(look(storage, output, now=NOW).kept) == {"slow"}


def age(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (NOW - seconds, NOW - seconds), follow_symlinks=False)


def test_orphans_and_temporary_files_go_when_they_are_old(storage: Storage, output: str) -> None:
    paths = write_run(storage, output, "r1", [])
    orphans = [join(paths.plan, "bb11/units/u.parquet"), join(paths.ranked, "part-00009.parquet")]
    temporary = [join(paths.ranked, f".{'a' * 32}.tmp"), join(output, "runs/.lakerank-probe-1")]
    others = [
        join(paths.folder, "report.html"),
        join(paths.plan, "scoring.json"),
        join(output, "scores/scorer=f1/.keep"),
    ]
    for uri in orphans + temporary + others:
        storage.replace(uri, b"x")
    assert look(storage, output, now=NOW + DAY).deletions == ()
    plan = {deletion.file.uri: deletion.why for deletion in look(storage, output).deletions}
    assert plan == dict.fromkeys(orphans, "orphan") | dict.fromkeys(temporary, "temporary file")


def test_the_index_of_files_that_are_gone_goes(storage: Storage, output: str, empty_folder: str) -> None:
    table = join(empty_folder, "documents/a.parquet")
    storage.replace(table, parquet_bytes(pa.table({"x": [1]}), 1))
    stale = index_key(resolve(storage, table).files[0])
    storage.replace(table, parquet_bytes(pa.table({"x": [1, 2]}), 1))
    storage.replace(join(empty_folder, "documents/b.parquet"), parquet_bytes(pa.table({"x": [1]}), 1))
    current, other = (index_key(file) for file in resolve(storage, join(empty_folder, "documents")).files)
    for key in (stale, current):
        storage.create(join(output, "index/documents", f"{key}-00000.parquet"), b"x")
    for name, keys in {"shared-0a": ("a" * 32, other), "shared-0b": ("a" * 32, stale)}.items():
        rows = {SHARED_INDEX: json.dumps({f"{key}-00000.parquet": 1 for key in keys})}
        storage.create(join(output, f"index/documents/{name}.parquet"), parquet_bytes(pa.table({"x": [1, 2]}), 2, rows))
    for keys in ((stale, other), (other, current)):  # clusters of the table as it was, and as it is
        storage.create(join(output, "index/clusters", f"{files_key(keys)}-0c", "done.json"), b"x")
    tables = {"documents": join(empty_folder, "documents")}
    plan = plan_cleaning(storage, output, Retention(), ["f1"], tables, LATER)
    gone = {f"index/documents/{name}.parquet" for name in (f"{stale}-00000", "shared-0b")}
    gone.add(f"index/clusters/{files_key((stale, other))}-0c/done.json")
    assert whys(plan, output) == dict.fromkeys(gone, "stale index")


def test_a_job_that_starts_meanwhile_stops_the_deleting(storage: Storage, output: str) -> None:
    for number in range(4):
        write_run(storage, output, f"r{number}", [], published=NOW - (9 - number) * DAY)
    plan = look(storage, output)
    announce(storage, RunPaths(output, "new"), "f1")
    before = storage.walk(output)
    assert not delete(storage, output, plan, lambda _: None)
    assert storage.walk(output) == before


def test_what_another_version_wrote_stops_everything(storage: Storage, output: str) -> None:
    paths = write_run(storage, output, "r1", [], published=None)
    write_manifest(storage, paths, {"run_id": "r1", "published_at": "2026-01-01T00:00:00Z", "scorer": "f1"})
    with pytest.raises(
        StorageError, match=r"runs/r1/manifest\.json: does not say what its run needs.*nothing can be deleted"
    ):
        look(storage, output)


def test_nothing_is_followed_out_of_the_folder(tmp_path: Path) -> None:
    storage, output = Storage(), str(tmp_path / "out")
    outside = tmp_path / "elsewhere"
    write_run(storage, str(outside), "far", [], published=None)
    write_run(storage, output, "near", [], published=None)
    (tmp_path / "out/runs/linked").symlink_to(outside / "runs/far")
    (tmp_path / "out/ranked/run_id=linked").symlink_to(outside / "ranked/run_id=far")
    (tmp_path / "out/scores").symlink_to(outside)
    for name in ("scorer=f9/old.parquet", f".{'a' * 32}.tmp"):
        storage.create(str(outside / name), b"x")
    (tmp_path / "out/ranked/run_id=near/..parquet").write_bytes(b"x")
    (tmp_path / "out/ranked/run_id=near/link.parquet").symlink_to(outside / "runs/far/plan/plan.json")
    age(tmp_path, 10 * DAY)
    before = sorted(outside.rglob("*"))
    plan = look(storage, output, now=NOW)
    assert all(Path(deletion.file.uri).is_relative_to(output) for deletion in plan.deletions)
    assert delete(storage, output, plan, lambda _: None)
    assert sorted(outside.rglob("*")) == before
    assert not (tmp_path / "out/runs/near").exists()
    assert (tmp_path / "out/ranked").is_dir()


def test_a_pointer_or_manifest_cannot_lead_outside(tmp_path: Path) -> None:
    storage, output = Storage(), str(tmp_path / "out")
    (tmp_path / "precious.parquet").write_bytes(b"x")
    paths = write_run(storage, output, "r1", ["../../precious"], ["/etc/passwd"], published=None)
    files = [{"file": "../../../precious.parquet", "rows": 1}]
    manifest = {
        "run_id": "../r1",
        "published_at": "2026-01-01T00:00:00Z",
        "scorer": "../..",
        "plan": {"attempt": "../.."},
    }
    manifest |= {"units": ["../../precious"], "reused_units": [], "ranked_files": files, "rejected_files": files}
    write_manifest(storage, paths, manifest)
    storage.replace(
        paths.current, json_bytes({"run_id": "../../x", "manifest": "", "published_at": "2026-01-01T00:00:00Z"})
    )
    age(tmp_path, 10 * DAY)
    assert delete(storage, output, look(storage, output, now=NOW), lambda _: None)
    assert (tmp_path / "precious.parquet").exists()


def test_the_list_is_summed_up_by_reason_and_folder(storage: Storage, output: str) -> None:
    for number in range(3):
        write_run(storage, output, f"r{number}", [], published=NOW - (9 - number) * DAY)
    lines = list(describe(output, look(storage, output).deletions))
    assert [line.split(":")[0].split() for line in lines] == [
        ["old", "run", "ranked/run_id=r0"], ["old", "run", "rejected/run_id=r0"], ["old", "run", "runs/r0"],
    ]  # fmt: skip
    assert lines[0].endswith("1 file, 6 bytes")


@dataclass
class Made:
    """A random lake: which pairs each run's units hold, and how old everything is."""

    units: list[tuple[str, frozenset[int], float]] = field(default_factory=list)
    runs: list[tuple[bool, float, str, tuple[int, ...]]] = field(default_factory=list)


UNITS = st.tuples(
    st.sampled_from(["f1", "f2"]), st.frozensets(st.integers(0, 9), min_size=1, max_size=4), st.floats(0, 6)
)
RUNS = st.tuples(st.booleans(), st.floats(0, 9), st.sampled_from(["f1", "f2"]), st.lists(st.integers(0, 5), max_size=3))


@settings(max_examples=30, deadline=None)
@given(st.lists(UNITS, max_size=6), st.lists(RUNS, max_size=5), st.integers(1, 3))
def test_after_cleaning_kept_runs_are_whole_and_no_score_is_missed(
    units: list[tuple[str, frozenset[int], float]], runs: list[tuple[bool, float, str, list[int]]], keep: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage, output = Storage(), folder
        names = [write_scores(storage, output, scorer, pairs) for scorer, pairs, _ in units]
        for (scorer, _, days), name in zip(units, names, strict=True):
            os.utime(unit_address(output, scorer, name), (NOW - days * DAY,) * 2)
        for number, (published, days, scorer, expected) in enumerate(runs):
            own = sorted({names[i] for i in expected if i < len(units) and units[i][0] == scorer})
            paths = write_run(
                storage, output, f"r{number}", own[:1], own[1:], scorer, NOW - days * DAY if published else None
            )
            for place in (paths.folder, paths.ranked, paths.rejected):
                age(Path(place), days * DAY)
        plan = look(storage, output, now=NOW, scorers=["f1"], keep_runs=keep)
        buffered = {(scorer, pair) for (scorer, pairs, _) in units for pair in pairs}
        assert delete(storage, output, plan, lambda _: None)

        kept = set(plan.kept)
        manifests = {f"r{n}": read_manifest(storage, output, f"r{n}") for n in range(len(runs))}
        published_runs = {f"r{number}" for number, (published, *_) in enumerate(runs) if published}
        assert {run_id for run_id, manifest in manifests.items() if manifest} == kept & published_runs
        assert len(kept) >= min(keep, sum(published for published, *_ in runs))
        scorers = {"f1"}
        for number, (published, days, scorer, expected) in enumerate(runs):
            paths = RunPaths(output, f"r{number}")
            if not published and days < 1.9:
                assert paths.run_id in kept, "it may be running"
            if paths.run_id not in kept:
                assert storage.walk(paths.folder) == storage.walk(paths.ranked) == []
                continue
            scorers.add(scorer)
            assert storage.exists(join(paths.ranked, "part-00000.parquet"))
            assert storage.exists(join(paths.plan, "aa00/units/u.parquet"))
            for unit in {names[i] for i in expected if i < len(units) and units[i][0] == scorer}:
                assert read_unit(storage, output, scorer, unit).num_rows
        current = current_run(storage, output)
        assert current is None or current["run_id"] in kept
        left = {
            (scorer, int(pair.removeprefix("q")))
            for scorer in ("f1", "f2")
            for unit in finished_units(storage, output, scorer)
            for pair in read_unit(storage, output, scorer, unit)["query_id"].to_pylist()
        }
        assert {pair for pair in buffered if pair[0] in scorers} <= left
        assert look(storage, output, now=NOW, scorers=["f1"], keep_runs=keep).deletions == ()


def add_stage(
    storage: Storage, output: str, run_id: str, scorer: str, units: list[str], published: float | None = NOW
) -> None:
    """A second stage of a run that `write_run` left without a manifest: a cascade's or an ensemble's."""
    first, paths = RunPaths(output, run_id), RunPaths(output, run_id).of_stage(2)
    announce(storage, first, "both", ["f1", scorer])
    listed = [{"unit": unit, "groups": 1, "pairs": 1, "cost": 1} for unit in units]
    write_unit_list(storage, join(paths.plan, "bb00"), 0, pa.Table.from_pylist(listed, schema=UNIT_LIST))
    write_reused_units(storage, join(paths.plan, "bb00"), [])
    storage.replace(paths.plan_file, json_bytes({"attempt": "bb00", "scorer": scorer, "unit_counts": [len(units)]}))
    for attempt in ("bb00", "cc00"):
        storage.replace(join(paths.plan, attempt, "pairs/part-0.parquet"), b"x")
    if published is None:
        return
    moment = datetime.fromtimestamp(published, UTC).isoformat()
    files = [{"file": "part-00000.parquet", "rows": 1}]
    passes = [
        {"scorer": "f1", "attempt": "aa00", "units": [], "reused_units": []},
        {"scorer": scorer, "attempt": "bb00", "units": units, "reused_units": []},
    ]
    manifest = {"run_id": run_id, "published_at": moment, "scorer": "both", "plan": {"attempt": "aa00"}}
    write_manifest(storage, first, manifest | {"passes": passes, "ranked_files": files, "rejected_files": files})
    publish(storage, first)


def test_what_any_stage_of_a_kept_run_needs_stays(storage: Storage, output: str) -> None:
    write_scores(storage, output, "f2", [1, 2])
    part = write_scores(storage, output, "f2", [1])
    write_scores(storage, output, "f3", [1])
    write_run(storage, output, "r1", [], published=None)
    add_stage(storage, output, "r1", "f2", [part])
    plan = whys(look(storage, output, scorers=[]), output)
    assert {why for uri, why in plan.items() if "scorer=f3" in uri} == {"old scorer"}
    assert not any("scorer=f2" in uri for uri in plan), "the run names the one, the other has the only score"
    assert {uri: why for uri, why in plan.items() if "/plan/" in uri} == {
        "runs/r1/plan/pass-2/cc00/pairs/part-0.parquet": "orphan"
    }
    write_scores(storage, output, "f2", [2, 3])
    write_scores(storage, output, "f2", [1, 3])
    plan = whys(look(storage, output, scorers=[]), output)
    assert len([uri for uri, why in plan.items() if why == "superseded scores"]) == 1
    assert f"scores/scorer=f2/{part}.parquet" not in plan


def test_the_scorers_of_all_stages_of_a_run_under_way_are_left_alone(tmp_path: Path) -> None:
    storage, output = Storage(), str(tmp_path)
    twins = [write_scores(storage, output, "f2", pairs) for pairs in ([1], [1, 2])]
    write_scores(storage, output, "f3", [1])
    age(tmp_path, 10 * DAY)
    write_run(storage, output, "r1", [], published=None)
    announce(storage, RunPaths(output, "r1"), "both", ["f1", "f2"])  # the second stage is not planned yet
    assert {deletion.why for deletion in look(storage, output, now=NOW, scorers=[]).deletions} == {"old scorer"}
    assert set(finished_units(storage, output, "f2")) == set(twins)
    assert not any(
        "scorer=f2" in deletion.file.uri for deletion in look(storage, output, now=NOW, scorers=[]).deletions
    )
    add_stage(storage, output, "r1", "f2", [twins[0]], published=None)
    age(tmp_path, 10 * DAY)
    assert look(storage, output, now=NOW).kept == ()
    os.utime(unit_address(output, "f2", twins[0]), (NOW - 60, NOW - 60))
    assert look(storage, output, now=NOW).kept == ("r1",)
    run = planned_contents(storage, output, "r1")
    assert (run.scorers, run.attempts) == ({"f1", "f2"}, {"": "aa00", "pass-2/": "bb00"})
