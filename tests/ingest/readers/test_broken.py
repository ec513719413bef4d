"""Cut and changed files of every kind: rows or rejects, never anything else."""

from __future__ import annotations

import random

import pytest

from lakerank.ingest.folder import read_folder
from lakerank.ingest.readers.reader import ReadOptions
from lakerank.ingest.rejects import SourceReject
from lakerank.ingest.source import FileSource
from lakerank.ingest.tables import ContentRow

KINDS = [".docx", ".pptx", ".xlsx", ".odt", ".ods", ".odp", ".epub", ".zip", ".html", ".csv", ".json", ".md", ".txt.gz"]


def spoiled(content: bytes, seed: int) -> bytes:
    """A file cut at any place, with a few of its bytes changed."""
    chance = random.Random(seed)
    spoilt = bytearray(content[: chance.randint(0, len(content))] if seed % 3 == 0 else content)
    for _ in range(chance.choice((1, 4, 32)) if spoilt else 0):
        spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
    return bytes(spoilt)


@pytest.mark.parametrize("suffix", KINDS)
def test_every_outcome_is_a_row_or_a_reject(suffix, office, zipped, tmp_path):
    from fsspec.implementations.local import LocalFileSystem

    whole = {
        ".zip": zipped({"a.txt": "x" * 99, "b.zip": zipped({"c.md": "# y"})}),
        ".html": b"<html><meta charset=utf-8><body><main><p>a</p><table><tr><td>b</table></main></html>",
        ".csv": b'id,text,title\n1,"a ""b""",c\n2,d,e\n',
        ".json": b'[{"id": 1, "text": "a"}, {"id": 2, "text": "b", "page": 3}]',
        ".md": b"---\ntitle: a\n---\n# b\n",
        ".txt.gz": b"",
    }
    content = office.get(suffix) or whole[suffix]
    for seed in range(25):
        (tmp_path / f"{seed}{suffix}").write_bytes(spoiled(content, seed))
    rows = list(read_folder(FileSource(LocalFileSystem(), str(tmp_path)), ReadOptions()))
    assert rows
    assert all(isinstance(row, ContentRow | SourceReject) for row in rows)
    assert all(len(row.detail) < 300 for row in rows if isinstance(row, SourceReject))
