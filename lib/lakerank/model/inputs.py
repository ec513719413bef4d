"""What is raised, inside this room only, where a query or document cannot be scored; it ends as a reject."""

from __future__ import annotations

from lakerank.records import RejectReason


class Unscorable(Exception):
    """One side of a pair cannot be scored. `detail` never holds text of a query or document."""

    def __init__(self, reason: RejectReason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
