"""What cannot be read of a source: faults, rejects with their places, and the list of a table's rejects."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from lakerank.lake.storage import Storage, join

#: Rejects listed one by one; all of them are counted.
LISTED_REJECTS = 100_000


class SourceFault(StrEnum):
    """Why a file, a page or a line of the source is not in the table. The list is closed."""

    UNSUPPORTED_FORMAT = "unsupported_format"
    FILE_ENCRYPTED = "file_encrypted"
    FILE_UNREADABLE = "file_unreadable"
    FILE_TOO_LARGE = "file_too_large"
    SYMBOLIC_LINK = "symbolic_link"
    NOT_A_FILE = "not_a_file"
    NAME_OUTSIDE = "name_outside"
    WRONG_TABLE = "wrong_table"
    NAME_UNDECODABLE = "name_undecodable"
    TEXT_UNDECODABLE = "text_undecodable"
    PDF_UNREADABLE = "pdf_unreadable"
    PDF_ENCRYPTED = "pdf_encrypted"
    PDF_PAGE_UNREADABLE = "pdf_page_unreadable"
    JSON_INVALID = "json_invalid"
    FIELD_MISSING = "field_missing"
    FIELD_INVALID = "field_invalid"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_OUTSIDE_SOURCE = "image_outside_source"
    QUERY_NOT_FOUND = "query_not_found"
    DOCUMENT_NOT_FOUND = "document_not_found"


class SourceError(Exception):
    """A file, a page or a line that cannot be read, and why: it becomes a `SourceReject`."""

    def __init__(self, fault: SourceFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class SourceReject:
    """A part of the source that cannot be read: `line` of a JSONL file and `page` of a PDF count from 1."""

    path: str
    fault: SourceFault
    detail: str = ""
    line: int | None = None
    page: int | None = None

    def __str__(self) -> str:
        place = "".join(f", {name} {at}" for name, at in (("line", self.line), ("page", self.page)) if at is not None)
        return f"{self.path}{place}: {self.fault.value}{f' ({self.detail})' if self.detail else ''}"


class RejectList:
    """The rejects of a table: counted, and the first of them listed in `OUTPUT/rejects/<table>.jsonl`."""

    def __init__(self, storage: Storage, output: str, table: str) -> None:
        self.uri = join(output, "rejects", f"{table}.jsonl")
        self.first: list[SourceReject] = []
        self._storage = storage
        self._faults: Counter[str] = Counter()

    def add(self, reject: SourceReject) -> None:
        """Count a reject, and list it while there are few."""
        self._faults[reject.fault.value] += 1
        if len(self.first) < LISTED_REJECTS:
            self.first.append(reject)

    def write(self) -> None:
        """Write the list, path, line, page, fault and detail of each; without rejects, delete an earlier one."""
        if self.first:
            lines = "".join(f"{json.dumps(asdict(reject), ensure_ascii=False)}\n" for reject in self.first)
            self._storage.replace(self.uri, lines.encode())
        elif self._storage.exists(self.uri):
            self._storage.delete(self.uri)

    def summary(self) -> dict[str, Any]:
        """What a job's last line says of them: their counts, and the address of the list (None: there are none)."""
        uri = self.uri if self.first else None
        return {
            "rejected": self._faults.total(),
            "rejected_by_fault": dict(sorted(self._faults.items())),
            "rejects": uri,
        }
