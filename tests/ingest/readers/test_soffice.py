"""Office files as pages, where LibreOffice is installed; texts where it is not."""

from __future__ import annotations

import io
import logging

import pytest
from PIL import Image

from lakerank.ingest.readers.soffice import find_soffice, office_pdf
from lakerank.ingest.rejects import SourceError

needs_soffice = pytest.mark.skipif(find_soffice() is None, reason="LibreOffice (soffice) is not installed")


@pytest.mark.nightly
@needs_soffice
def test_office_files_are_printed_as_pages(write_files, run_ingest, office):
    source = write_files({"policy.docx": office[".docx"], "broken.docx": b"PK\x03\x04 nonsense", "a.odt": b""})
    _, table = run_ingest(source, office_pages=True)
    row = next(row for row in table.to_pylist() if row["doc_id"] == "policy.docx#page=1")
    assert (row["text"], row["page"]) == (None, 1)
    assert row["search_text"].startswith("Leave\nThirty days a year.")
    assert min(Image.open(io.BytesIO(row["image"])).convert("L").get_flattened_data()) < 128, "the text is drawn"


@pytest.mark.nightly
@needs_soffice
def test_a_file_that_takes_too_long_is_ended(office):
    with pytest.raises(SourceError, match=r"took over 0 s"):
        office_pdf(find_soffice(), office[".docx"], ".docx", timeout_s=0.01)


def test_without_libreoffice_an_office_file_is_a_text_and_one_line_says_so(
    write_files, run_ingest, office, monkeypatch, caplog, tmp_path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    source = write_files({"policy.docx": office[".docx"], "more.docx": office[".docx"]})
    with caplog.at_level(logging.WARNING):
        _, table = run_ingest(source, office_pages=True)
    assert [row["text"].partition("\n")[0] for row in table.to_pylist()] == ["Leave", "Leave"]
    assert [record.message for record in caplog.records] == [
        "LibreOffice (soffice) is not installed: Office files become texts, not page images"
    ]
