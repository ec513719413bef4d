"""Progress is what the lake holds: units and pairs, at the pace of this attempt."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pyarrow as pa

from lakerank.lake.scores import UNITS, PlannedUnits, unit_address, write_unit_list
from lakerank.lake.storage import Storage
from lakerank.rerank.progress import progress_line, watch_units


def planned(folder: str) -> PlannedUnits:
    for part, units in enumerate([["u1", "u2"], ["u3"]]):
        rows = [{"unit": unit, "groups": 1, "pairs": int(unit[1]) * 10, "cost": 1} for unit in units]
        write_unit_list(Storage(), folder, part, pa.Table.from_pylist(rows, schema=UNITS))
    return PlannedUnits(Storage(), folder, (2, 1))


def test_a_line_says_units_pairs_pace_and_time_left(tmp_path, caplog):
    units, output, done = planned(str(tmp_path / "plan")), str(tmp_path / "out"), threading.Event()
    Storage().create(unit_address(output, "f1", "u1"), b"found done")
    Storage().create(unit_address(output, "f1", "other"), b"of another plan")
    with (
        caplog.at_level(logging.INFO, logger="lakerank.rerank.progress"),
        watch_units(Storage(), output, "f1", units, listing_s=0.01, line_s=0),
    ):
        done.wait(0.3)
        Storage().create(unit_address(output, "f1", "u2"), b"new")
        done.wait(0.5)
    first, last = caplog.messages[0], caplog.messages[-1]
    assert first == "scoring: 1 of 3 units, 10 of 60 pairs", "what was found done is no pace"
    assert last.startswith("scoring: 2 of 3 units, 30 of 60 pairs, ")
    assert "left" in last


def test_pairs_within_a_unit_count_before_its_file_is_there(tmp_path, caplog):
    units, output, done = planned(str(tmp_path / "plan")), str(tmp_path / "out"), threading.Event()
    with (
        caplog.at_level(logging.INFO, logger="lakerank.rerank.progress"),
        watch_units(Storage(), output, "f1", units, listing_s=0.01, line_s=0) as progress,
    ):
        assert list(progress.counted("u2", range(13), every_s=0)) == [*range(13)]
        assert list(progress.counted("other", range(5), every_s=0)) == [*range(5)]
        done.wait(0.5)
        within = caplog.messages[-1]
        Storage().create(unit_address(output, "f1", "u2"), b"all of it")
        done.wait(0.5)
    assert within.startswith("scoring: 0 of 3 units, 13 of 60 pairs, ")
    assert caplog.messages[-1].startswith("scoring: 1 of 3 units, 20 of 60 pairs, ")
    assert not Path(progress.folder).exists()
    assert list(progress.counted("u3", range(2), every_s=0)) == [0, 1], "a task of another machine has no such folder"


def test_time_left_goes_by_pairs_at_this_attempts_pace():
    line = "scoring: 5 of 10 units, 600 of 1000 pairs"
    assert progress_line((5, 10), (600, 1000), 100, 50.0) == f"{line}, 2.0 pairs/s, about 3 min left"
    assert progress_line((5, 10), (600, 1000), 0, 50.0) == line


def test_planned_units_are_a_sequence_that_reads_lists_as_they_are_asked_for(tmp_path):
    units = planned(str(tmp_path))
    assert len(units) == 3
    assert list(units) == [units[0], units[1], units[-1]] == ["u1", "u2", "u3"]
    assert units[1:] == ["u2", "u3"]
    assert units.table()["pairs"].to_pylist() == [10, 20, 30]
