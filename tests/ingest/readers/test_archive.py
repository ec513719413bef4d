"""Archives: their members as a folder's files, limits before anything is unpacked, names that lead nowhere."""

from __future__ import annotations

import gzip
import io
import stat
import zipfile

import pytest

from lakerank.errors import IngestError
from lakerank.ingest.readers.archive import check_package
from lakerank.ingest.rejects import SourceError


def test_members_are_files_of_a_folder(write_files, run_ingest, zipped, png, office):
    members = {
        "b.txt": "zwei",
        "a/one.md": "# eins",
        "a/docs.jsonl": '{"id": "j", "image": "../pic.png"}\n{"id": "k", "image": "../../a.txt"}\n',
        "pic.png": png,
        "report.docx": office[".docx"],
        "inner.zip": zipped({"deep.txt": "tief"}),
        "table.csv.gz": gzip.compress(b"id,text\nc,csv\n"),
        ".hidden": "no",
        "__MACOSX/x.txt": "no",
    }
    source = write_files({"a.txt": "outside", "z.zip": zipped(members), "notes.txt.gz": gzip.compress(b"packed")})
    done, table = run_ingest(source)
    rows = {row["doc_id"]: row for row in table.to_pylist()}
    assert list(rows) == [
        *("a.txt", "notes.txt.gz", "j", "z.zip/a/one.md", "z.zip/b.txt", "z.zip/inner.zip/deep.txt", "z.zip/pic.png"),
        *("z.zip/report.docx", "c"),
    ]
    assert rows["j"]["image"] == png
    assert (rows["j"]["path"], rows["notes.txt.gz"]["text"]) == ("z.zip/a/docs.jsonl", "packed")
    assert done.written.rejected_by_fault == {"image_outside_source": 1}


def test_names_lead_nowhere_and_links_are_not_followed(write_files, run_ingest, zipped):
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    members = {"../up.txt": "x", "/etc/passwd": "x", "a\\b.txt": "x", "good.txt": "fine", link: "/etc/passwd"}
    done, table = run_ingest(write_files({"z.zip": zipped(members)}))
    assert table["doc_id"].to_pylist() == ["z.zip/good.txt"]
    assert done.written.rejected_by_fault == {"name_outside": 3, "symbolic_link": 1}


def test_bombs_are_refused_before_they_are_unpacked(write_files, run_ingest, zipped):
    limit = 2**20
    zeros = {f"{number}.txt": bytes(limit) for number in range(17)}
    nested = zipped({"z.zip": zipped({"z.zip": zipped({"z.zip": zipped({"deep.txt": "x"})})})})
    source = write_files(
        {
            "many.zip": zipped(zeros),
            "large.zip": zipped({"large.txt": bytes(limit + 1), "good.txt": "fine"}),
            "nested.zip": nested,
            "gz.txt.gz": gzip.compress(bytes(limit + 1)),
            "office.docx": zipped({"word/document.xml": bytes(limit + 1)}),
            "lines.jsonl.gz": gzip.compress(bytes(limit + 1)),
        }
    )
    done, table = run_ingest(source, max_file_bytes=limit)
    assert table["doc_id"].to_pylist() == ["large.zip/good.txt"]
    assert done.written.rejected_by_fault == {"file_too_large": 6}


def test_what_is_packed_two_hundredfold_is_refused(zipped):
    with pytest.raises(SourceError, match="unpack to 16777217"):
        check_package(zipped({"x": bytes(2**24 + 1)}), 2**28)
    check_package(zipped({"x": bytes(2**24)}), 2**28)


def test_encrypted_members_and_files_are_named(write_files, run_ingest, zipped):
    content = bytearray(zipped({"secret.txt": "x"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    source = write_files({"z.zip": bytes(content), "old.docx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)})
    with pytest.raises(IngestError, match=r"(?s)old.docx: file_encrypted.*z.zip/secret.txt: file_encrypted"):
        run_ingest(source)


def test_archives_are_read_from_any_store(zipped):
    from fsspec.implementations.memory import MemoryFileSystem

    from lakerank.ingest.folder import read_folder
    from lakerank.ingest.readers.reader import ReadOptions
    from lakerank.ingest.source import FileSource

    filesystem = MemoryFileSystem()
    filesystem.pipe("/zips/z.zip", zipped({"a.txt": "eins"}))
    [row] = read_folder(FileSource(filesystem, "/zips"), ReadOptions())
    assert (row.id, row.text) == ("z.zip/a.txt", "eins")
    filesystem.rm("/zips", recursive=True)


def test_an_archive_that_is_cut_short_is_one_reject(write_files, run_ingest, zipped):
    content = zipped({"a.txt": "x" * 1000})
    source = write_files({"z.zip": content[: len(content) // 2], "good.txt": "fine"})
    done, _ = run_ingest(source)
    assert done.written.rejected_by_fault == {"file_unreadable": 1}
    assert io.BytesIO(content).read(2) == b"PK"
