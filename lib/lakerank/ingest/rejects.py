"""What a source could not be read of: counted, and listed by path, line and reason."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

from lakerank.ingest.items import SourceReject
from lakerank.lake.storage import Storage

#: So many rejects are listed by name; all of them are counted.
LISTED_REJECTS = 100_000


@dataclass
class Rejects:
    """Counts by fault, and the first of them by name."""

    counts: Counter[str] = field(default_factory=Counter)
    listed: list[SourceReject] = field(default_factory=list)

    def add(self, reject: SourceReject) -> None:
        """Count a reject, and list it while there is room."""
        self.counts[reject.fault.value] += 1
        if len(self.listed) < LISTED_REJECTS:
            self.listed.append(reject)

    def save(self, storage: Storage, uri: str) -> str | None:
        """Write the list; one that an earlier ingestion left is deleted when there is nothing to list."""
        if not self.listed:
            if storage.exists(uri):
                storage.delete(uri)
            return None
        lines = (json.dumps(asdict(reject), ensure_ascii=False) for reject in self.listed)
        storage.replace(uri, "".join(f"{line}\n" for line in lines).encode())
        return uri
