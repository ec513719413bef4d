"""A changed byte of a file that we wrote is never read as a value: the same values come, or an error names the file."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakerank.cli.resolve import CommandLine, run_config
from lakerank.config import resolve_config
from lakerank.errors import ConfigError, StorageError
from lakerank.lake.checksums import CorruptFile, json_bytes, parse_json
from lakerank.lake.publication import current_run, publish
from lakerank.lake.runs import RunPaths, read_manifest, write_config, write_manifest
from lakerank.lake.scores import read_unit, unit_address, write_unit
from lakerank.lake.storage import Storage, StorageOptions
from lakerank.lake.tables import fragments, parquet_bytes, read_table_file
from lakerank.schemas import DOCUMENTS, RANKED, SCORES

ROWS = 40


@dataclass
class Written:
    """A file that was written, and how it is read."""

    file: Path
    read: Callable[[], Any]


def ranked_rows() -> pa.Table:
    """A ranked list with long, unlike ids, so that flips reach dictionary, data and footer."""
    rng = random.Random(5)
    return pa.table(
        {
            "query_id": ["q"] * ROWS,
            "doc_id": [f"d{rng.getrandbits(40):x}" for _ in range(ROWS)],
            "rank": range(1, ROWS + 1),
            "logit": [rng.uniform(-3, 3) for _ in range(ROWS)],
            "relevance": [0.5] * ROWS,
            "label": [1] * ROWS,
            "first_stage_rank": [None, 2] * (ROWS // 2),
            "truncated": [False] * ROWS,
        },
        schema=RANKED,
    )


def table_file(folder: Path) -> Written:
    """A Parquet file as plans, indexes, ranked and rejected lists are written and read."""
    file = folder / "ranked" / "part-00000.parquet"
    Storage().replace(str(file), parquet_bytes(ranked_rows(), 16, {"covers": "u1,u2"}))

    def read() -> Any:
        footer = fragments(Storage(), str(file), RANKED)[0]
        rows = [batch.to_pydict() for *_, batch in read_table_file(Storage(), str(file), RANKED)]
        with Storage().open_parquet(str(file)) as parquet:
            metadata = parquet.schema_arrow.metadata
        return footer.rows, footer.row_groups, rows, metadata[b"covers"]

    return Written(file, read)


def unit_file(folder: Path) -> Written:
    storage, unit, rng = Storage(), "0" * 32, random.Random(6)
    columns: dict[str, Any] = {name: [None] * ROWS for name in SCORES.names}
    columns |= {"query_id": ["q"] * ROWS, "query_hash": ["a"] * ROWS, "doc_hash": ["b"] * ROWS}
    columns |= {"doc_id": [f"d{n:02d}" for n in range(ROWS)], "logit": [rng.random() for _ in range(ROWS)]}
    write_unit(storage, str(folder), "f" * 16, unit, pa.table(columns, schema=SCORES))
    file = Path(unit_address(str(folder), "f" * 16, unit))
    return Written(file, lambda: read_unit(storage, str(folder), "f" * 16, unit).to_pydict())


def json_file(folder: Path) -> Written:
    """The pointer; plans, manifests and announcements are written and read by the same two functions."""
    storage, paths = Storage(), RunPaths(str(folder), "r1")
    write_manifest(storage, paths, {"counts": {"candidates": 1234}, "histogram": [1, 2], "seconds": 0.1})
    publish(storage, paths)
    return Written(
        Path(paths.manifest), lambda: (read_manifest(storage, str(folder), "r1"), current_run(storage, str(folder)))
    )


def config_file(folder: Path) -> Written:
    """What a run was made with, as every command that comes after it reads it."""
    storage, paths = Storage(), RunPaths(str(folder), "r1")
    config = resolve_config(
        {"lake": dict.fromkeys(("documents", "queries", "candidates"), "s3://b/t") | {"output": str(folder)}}
    )
    write_config(storage, paths, config.to_yaml())
    given = CommandLine(config, "conf", [])
    return Written(Path(paths.config), lambda: run_config(storage, given, "r1"))


KINDS = pytest.mark.parametrize("kind", [table_file, unit_file, json_file, config_file])


def check_flips(written: Written, flips: Iterator[tuple[int, int]]) -> None:
    """Read the file with each byte changed in turn."""
    whole, expected = written.file.read_bytes(), written.read()
    messages: list[str] = []
    for position, change in flips:
        damaged = bytearray(whole)
        damaged[position] ^= change
        written.file.write_bytes(damaged)
        try:
            assert written.read() == expected, (position, change)
        except (StorageError, ConfigError) as error:
            messages.append(str(error))
    assert messages
    assert all(str(written.file) in message for message in messages)


@KINDS
def test_a_changed_byte_is_no_value(kind: Callable[[Path], Written], tmp_path: Path) -> None:
    written, rng = kind(tmp_path), random.Random(7)
    size = written.file.stat().st_size
    positions = {*rng.sample(range(size), min(size, 120)), *range(max(0, size - 24), size)}
    check_flips(written, ((position, 1 << rng.randrange(8)) for position in sorted(positions)))


@pytest.mark.nightly
@KINDS
def test_no_changed_byte_is_a_value(kind: Callable[[Path], Written], tmp_path: Path) -> None:
    written = kind(tmp_path)
    size = written.file.stat().st_size
    check_flips(written, ((position, 1 << position % 8) for position in range(size)))


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    written = table_file(tmp_path)
    whole = written.file.read_bytes()
    for size in (0, 3, 11, len(whole) // 2, len(whole) - 1):
        written.file.write_bytes(whole[:size])
        with pytest.raises(StorageError, match=r"part-00000\.parquet"):
            written.read()


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They have no seal, and JSON no checksum."""
    file = tmp_path / "old.parquet"
    pq.write_table(ranked_rows(), file, write_page_checksum=True)
    assert fragments(Storage(), str(file), RANKED)[0].rows == ROWS
    assert parse_json("current.json", b'{"run_id": "r1"}') == {"run_id": "r1"}
    assert parse_json("current.json", json_bytes({"run_id": "r1"})) == {"run_id": "r1"}


def test_other_readers_pass_over_the_seal(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(parquet_bytes(ranked_rows(), 16))
    assert pq.read_table(file, page_checksum_verification=True).equals(ranked_rows())
    assert pq.ParquetFile(file, memory_map=True).read_row_group(1, ["doc_id"]).num_rows == 16


@pytest.mark.parametrize("verify", [True, False])
def test_pages_of_inputs_are_verified_unless_switched_off(tmp_path: Path, verify: bool) -> None:
    file = tmp_path / "documents.parquet"
    table = pa.table({"doc_id": ["d1"], "text": ["red apple"]})
    pq.write_table(table, file, write_page_checksum=True, compression="none", use_dictionary=False)
    file.write_bytes(file.read_bytes().replace(b"\0\0\0red apple", b"\0\0\0rad apple"))
    storage = Storage(StorageOptions(verify_checksums=verify))
    batches = read_table_file(storage, str(file), DOCUMENTS)
    if verify:
        with pytest.raises(StorageError, match=r"documents\.parquet: cannot be read"):
            next(batches)
    else:
        assert next(batches)[2]["text"].to_pylist() == [b"rad apple"]


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    written = table_file(tmp_path)
    whole = written.file.read_bytes()
    written.file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(CorruptFile, match="are not what was written; restore the file from a copy, or publish"):
        written.read()
