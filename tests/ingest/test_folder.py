"""A folder of many kinds of files becomes a table, and what cannot be read is listed."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from lakerank import schemas
from lakerank.errors import ConfigError, IngestError, StorageError
from lakerank.fingerprint import content_hash
from lakerank.ingest.folder import ingest, read_folder, suffix
from lakerank.ingest.readers.reader import ReadOptions
from lakerank.ingest.source import FileSource
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments


def test_every_kind_of_file_becomes_rows_in_path_order(write_files, run_ingest, png, make_pdf):
    source = write_files(
        {
            "b/two.MD": "# zwei",
            "a.txt": "\ufeffeins",
            "c.png": png,
            "b-c.txt": "before b/",
            "d.pdf": make_pdf((300, 400), (300, 400)),
            "e.jsonl": '{"doc_id": "j1", "text": "から"}\n',
            ".hidden.txt": "no",
            ".git/config.txt": "no",
        }
    )
    done, table = run_ingest(source)
    rows = table.to_pylist()
    assert [row["doc_id"] for row in rows] == [
        "a.txt",
        "b-c.txt",
        "b/two.MD",
        "c.png",
        "d.pdf#page=1",
        "d.pdf#page=2",
        "j1",
    ]
    assert rows[0]["text"] == "eins"
    assert rows[3]["image"] == png
    assert rows[3]["text"] is None
    assert all(row["content_hash"] == content_hash(row["text"], row["image"]) for row in rows)
    assert table.schema.equals(pa.schema([*schemas.INGESTED_DOCUMENTS, *schemas.DOCUMENT_METADATA]))
    assert [row["path"] for row in rows] == ["a.txt", "b-c.txt", "b/two.MD", "c.png", "d.pdf", "d.pdf", "e.jsonl"]
    assert [row["title"] for row in rows][2] == "zwei"
    assert (rows[5]["page"], rows[5]["group_id"], rows[5]["place"]) == (2, "d.pdf", "page=2")
    assert rows[0]["size"] == 7
    assert rows[0]["modified"].timestamp() == pytest.approx((source / "a.txt").stat().st_mtime, abs=1e-5)
    assert done.written.rejected == 0
    assert done.written.rejects is None


def test_bad_files_are_listed_and_the_rest_is_ingested(write_files, run_ingest, png):
    source = write_files(
        {
            "good.txt": "fine",
            "noise.txt": b"\x00\x81\xfe\x00\x9d" * 20,
            "broken.pdf": b"%PDF-1.7 nonsense",
            "table.xlsx": b"PK",
            "old.doc": b"\xd0\xcf",
            "cut.jsonl.gz": b"\x1f\x8b\x08\x00",
        }
    )
    (source / "link.txt").symlink_to(source / "good.txt")
    done, table = run_ingest(source)
    assert table["doc_id"].to_pylist() == ["good.txt"]
    listed = {reject["path"]: reject for reject in map(json.loads, Path(done.written.rejects).read_text().splitlines())}
    assert {path: reject["fault"] for path, reject in listed.items()} == {
        "noise.txt": "text_undecodable",
        "broken.pdf": "pdf_unreadable",
        "table.xlsx": "file_unreadable",
        "old.doc": "unsupported_format",
        "cut.jsonl.gz": "file_unreadable",
        "link.txt": "symbolic_link",
    }
    assert "byte 1" in listed["noise.txt"]["detail"]
    assert "--office-pages" in listed["old.doc"]["detail"]
    assert done.summary()["rejected"] == 6
    assert done.summary()["rejected_by_fault"]["pdf_unreadable"] == 1


def test_a_name_that_is_not_utf8_is_a_reject(write_files, run_ingest):
    source = write_files({"good.txt": "fine"})
    (source / os.fsdecode(b"bad\xff.txt")).write_text("x")
    done, table = run_ingest(source)
    assert table.num_rows == 1
    assert done.written.rejected_by_fault == {"name_undecodable": 1}


def test_links_are_followed_when_asked_for_but_never_in_circles(write_files, run_ingest, tmp_path):
    source = write_files({"a/one.txt": "1", "b/two.txt": "2"})
    (tmp_path / "far.txt").write_text("far")
    (source / "a" / "far.txt").symlink_to(tmp_path / "far.txt")
    (source / "a" / "to-b").symlink_to(source / "b")
    (source / "b" / "to-a").symlink_to(source / "a")
    (source / "lost.txt").symlink_to(tmp_path / "lost.txt")
    done, table = run_ingest(source, follow_links=True)
    result = table["doc_id"].to_pylist()
    assert result == ["a/far.txt", "a/one.txt", "a/to-b/two.txt", "b/to-a/far.txt", "b/to-a/one.txt", "b/two.txt"]
    assert done.written.rejected_by_fault == {"symbolic_link": 3}


def test_a_file_over_the_limit_is_not_read(write_files, run_ingest):
    source = write_files({"big.txt": "x" * 101, "small.txt": "x" * 100})
    done, table = run_ingest(source, max_file_bytes=100)
    assert table["doc_id"].to_pylist() == ["small.txt"]
    assert done.written.rejected_by_fault == {"file_too_large": 1}


def test_queries_have_query_ids_and_no_hash(write_files, run_ingest, png):
    _, table = run_ingest(write_files({"q1.txt": "wo\n\nwas", "q2.png": png}), table="queries")
    columns = [*schemas.INGESTED_QUERIES, *schemas.QUERY_METADATA, schemas.QUERIES.field("instruction")]
    assert table.schema.equals(pa.schema(columns))
    assert table["query_id"].to_pylist() == ["q1.txt#q1", "q1.txt#q3", "q2.png"]


def test_kind_passes_over_other_files(write_files, run_ingest, make_pdf):
    source = write_files({"a.txt": "no", "b.pdf": make_pdf((100, 100)), "c.xlsx": b""})
    done, table = run_ingest(source, kind="pdf")
    assert table["doc_id"].to_pylist() == ["b.pdf#page=1"]
    assert done.written.rejected == 0


def test_a_single_file_is_a_source(write_files, run_ingest):
    source = write_files({"a.txt": "eins", "b.txt": "zwei"})
    _, table = run_ingest(source / "b.txt")
    assert table["doc_id"].to_pylist() == ["b.txt"]


def test_a_source_that_is_not_there_stops_the_job(tmp_path, run_ingest):
    with pytest.raises(StorageError, match="no such file"):
        run_ingest(tmp_path / "nowhere")


@pytest.mark.parametrize("files", [{"a.bin": b"x"}, {".hidden": b""}])
@pytest.mark.parametrize("table", ["documents", "queries", "candidates", "qrels"])
def test_nothing_readable_stops_the_job_and_an_earlier_table_stays(write_files, tmp_path, files, table):
    source = write_files(files)
    part = tmp_path / "lake" / table / "part-000000.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"earlier")
    reason = "a.bin: unsupported_format" if files == {"a.bin": b"x"} and table != "qrels" else ""
    if table in ("candidates", "qrels"):
        reason = "holds nothing to read"
    with pytest.raises(IngestError, match=reason or "holds nothing to read"):
        ingest(Storage(), str(source), str(tmp_path / "lake"), ReadOptions(table=table))
    assert part.read_bytes() == b"earlier"


def test_what_is_no_regular_file_is_passed_over_by_name(write_files, run_ingest):
    source = write_files({"good.txt": "fine", "docs.jsonl": '{"id": "1", "image": "pipe.png"}\n'})
    os.mkfifo(source / "pipe.txt")
    os.mkfifo(source / "pipe.png")
    with socket.socket(socket.AF_UNIX) as door, contextlib.chdir(source):
        door.bind("door.txt")
    done, table = run_ingest(source)
    assert table["doc_id"].to_pylist() == ["good.txt"]
    assert done.written.rejected_by_fault == {"image_not_found": 1, "not_a_file": 3}
    with pytest.raises(IngestError, match=r"pipe\.txt: not_a_file"):
        run_ingest(source / "pipe.txt")


def test_kept_fields_are_columns_of_every_row(write_files, run_ingest):
    source = write_files({"a.txt": "x", "b.jsonl": '{"id": 7, "text": "y", "language": "de", "year": 1999}\n'})
    _, table = run_ingest(source, keep=("language", "year"))
    assert table.select(["doc_id", "language", "year"]).to_pylist() == [
        {"doc_id": "a.txt", "language": None, "year": None},
        {"doc_id": "7", "language": "de", "year": "1999"},
    ]


def test_a_kept_field_cannot_be_a_column_already(write_files, run_ingest):
    with pytest.raises(ConfigError, match="'text' is a column"):
        run_ingest(write_files({"a.txt": "x"}), keep=("text",))


@pytest.mark.parametrize(("output", "fits"), [("source", False), ("source/lake", False), ("source-lake", True)])
def test_the_output_cannot_lie_in_the_source(write_files, tmp_path, output, fits):
    source = write_files({"a.txt": "x"})
    with nullcontext() if fits else pytest.raises(ConfigError, match="inside the source"):
        ingest(Storage(), str(source), str(tmp_path / output), ReadOptions())


def test_ingesting_again_gives_the_same_bytes_and_drops_stale_parts(write_files, run_ingest, tmp_path):
    source = write_files({"a.txt": "x", "b.txt": "y"})
    done, _ = run_ingest(source)
    folder = Path(done.written.output)
    before = (folder / "part-000000.parquet").read_bytes()
    (folder / "part-000007.parquet").write_bytes(before)
    (folder / "notes.txt").write_text("mine")
    run_ingest(source)
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "part-000000.parquet"]
    assert (folder / "part-000000.parquet").read_bytes() == before


def test_images_make_small_row_groups_and_the_lake_accepts_the_table(write_files, run_ingest, png):
    source = write_files({f"{number:03}.png": png for number in range(20)})
    done, _ = run_ingest(source)
    file = pq.ParquetFile(f"{done.written.output}/part-000000.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [8, 8, 4]
    result = fragments(Storage(), done.written.output, schemas.DOCUMENTS)
    assert [fragment.rows for fragment in result] == [20]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a/b.TXT", ".txt"), ("x.jsonl.gz", ".jsonl"), ("x.gz", ".gz"), ("README", ""), ("v1.2/README", "")],
)
def test_suffix(path, expected):
    assert suffix(path) == expected


class RangeFile(AbstractBufferedFile):
    """An object store's file: read by range, without a limit to a line."""

    def _fetch_range(self, start, end):
        return self.fs.cat_file(self.path, start, end)


class RangeStore(MemoryFileSystem):
    """A store in memory whose files behave like an object store's."""

    protocol = "range"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    def _open(self, path, mode="rb", **kwargs):
        if mode != "rb":
            return super()._open(path, mode, **kwargs)
        return RangeFile(self, path, size=self.size(path), cache_type="none")


def test_an_object_store_is_a_source(png):
    store = RangeStore()
    store.pipe(
        {
            "/lake/sub/a.png": png,
            "/lake/b.txt": b"text",
            "/lake/c.jsonl": b'{"id": "c1", "text": "x"}\n{"id": "c2", "image": "sub/a.png"}\n',
            "/lake/d.jsonl.gz": gzip.compress(b'{"id": "d", "text": "x"}\n'),
            "/lake2/no.txt": b"elsewhere",
        }
    )
    rows = list(read_folder(FileSource(store, "/lake"), ReadOptions()))
    assert [row.id for row in rows] == ["b.txt", "c1", "c2", "d", "sub/a.png"]
    assert rows[2].image == png
