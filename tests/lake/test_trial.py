"""A file that kills its reader is named by a process of its own."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lakerank.cli.resolve import CHECKED_FILES, input_faults
from lakerank.config import resolve_config
from lakerank.lake.storage import Storage
from lakerank.lake.trial import deadly_file, deadly_message
from lakerank.spark.runtime.crash import spark_failure


def deadly(file: Path) -> str:
    """A file whose first column is, by a changed byte of the footer, of another type than its chunks: Arrow aborts."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"doc_id": [f"d{n}" for n in range(300)], "text": ["x"] * 300}), sink, row_group_size=100)
    data = bytearray(sink.getvalue().to_pybytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    at = data.index(b"\x15\x0c\x25\x02", footer)  # an optional BYTE_ARRAY: 0x0c; 0x04 is INT64
    data[at + 1] = 0x04
    file.write_bytes(data)
    return str(file)


def test_the_file_that_kills_its_reader_is_named(tmp_path: Path) -> None:
    whole, empty = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(pa.table({"doc_id": ["d"]}), whole)
    empty.write_bytes(b"")
    bad = deadly(tmp_path / "c.parquet")
    assert deadly_file(Storage(), [str(whole), str(empty), bad, str(whole)], ()) == (bad, "SIGABRT")
    assert "c.parquet: damaged" in deadly_message(bad, "SIGABRT")
    assert deadly_file(Storage(), [str(whole), str(empty)], ["doc_id"]) is None


def test_any_file_that_would_kill_a_job_alone_is_named_before_it(tmp_path: Path) -> None:
    rows = {"doc_id": ["d"], "query_id": ["q"], "text": ["x"]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    (tmp_path / "documents").mkdir()
    for number in range(CHECKED_FILES + 1):
        pq.write_table(pa.table(rows), tmp_path / "documents" / f"{number:02}.parquet")
    bad = deadly(tmp_path / "documents" / "99.parquet")
    tables = dict.fromkeys(("queries", "candidates"), str(tmp_path / "rows.parquet"))
    config = resolve_config({"lake": {**tables, "documents": str(tmp_path / "documents"), "output": str(tmp_path)}})
    (fault,) = input_faults(config, Storage(), cluster=False)
    assert str(fault) == deadly_message(bad, "SIGABRT")


def test_deaths_of_workers_are_told_apart() -> None:
    start = (
        "Job aborted due to stage failure: org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)"
    )
    stack = 'Fatal Python error: Segmentation fault\n\nCurrent thread 0x1:\n  File "/x/a.py", line 7 in read'
    killed, crashed = spark_failure(Exception(start)), spark_failure(Exception(f"{start}: {stack}"))
    assert killed is not None
    assert "memory" in killed[1]
    assert crashed is not None
    assert "native code crashed (Segmentation fault) in /x/a.py:7 (read), which more memory does not mend" in crashed[1]
