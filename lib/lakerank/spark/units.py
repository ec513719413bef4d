"""Cutting a sorted stream of pairs into document groups and work units of even cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from lakerank.lake.blobs import BlobRef

_PLACE = [("file", pa.string()), ("row_group", pa.int32()), ("row", pa.int32())]

#: One document group a row: where its document lies, and where each of its queries does.
UNIT_GROUPS = pa.schema(
    [
        ("doc_id", pa.string()),
        ("doc_hash", pa.string()),
        *_PLACE,
        (
            "queries",
            pa.list_(
                pa.struct([("query_id", pa.string()), ("query_hash", pa.string()), ("tried", pa.string()), *_PLACE])
            ),
        ),
    ]
)

Row = dict[str, Any]


@dataclass
class Unit:
    """Document groups that are scored and stored together."""

    groups: list[Row] = field(default_factory=list)
    pairs: int = 0
    cost: int = 0


def document_groups(rows: Iterable[Row], max_queries: int) -> Iterator[tuple[Row, int, int]]:
    """Group rows that are sorted by document: (group, pairs, cost in tokens), at most `max_queries` pairs each.

    A document may span any number of the batches that the rows came in: only one group is held at a time.
    """
    group: Row | None = None
    cost = 0
    for row in rows:
        if group is not None and (row["doc_id"] != group["doc_id"] or len(group["queries"]) == max_queries):
            yield group, len(group["queries"]), cost
            group = None
        if group is None:
            place = {"file": row["d_file"], "row_group": row["d_row_group"], "row": row["d_row"]}
            group = {"doc_id": row["doc_id"], "doc_hash": row["doc_hash"], **place, "queries": []}
            cost = row["d_cost"]
        place = {"file": row["q_file"], "row_group": row["q_row_group"], "row": row["q_row"]}
        query = {"query_id": row["query_id"], "query_hash": row["query_hash"], "tried": row["tried"], **place}
        group["queries"].append(query)
        cost += row["q_cost"]
    if group is not None:
        yield group, len(group["queries"]), cost


def cut_units(groups: Iterable[tuple[Row, int, int]], total_cost: int, target: int) -> Iterator[Unit]:
    """Cut a stream of groups of known total cost into units of even cost near `target`, in order.

    A cut falls where the running cost passes a multiple of the even share, so that no unit is a small remainder.
    """
    share = total_cost / max(1, round(total_cost / target))
    unit, spent, cuts = Unit(), 0, 1
    for group, pairs, cost in groups:
        unit.groups.append(group)
        unit.pairs += pairs
        unit.cost += cost
        spent += cost
        if spent >= share * cuts:
            yield unit
            unit, cuts = Unit(), int(spent / share) + 1
    if unit.groups:
        yield unit


@dataclass(frozen=True, slots=True)
class PlannedQuery:
    """A query of a group: what its score is of, and where its content lies."""

    query_id: str
    query_hash: str
    place: BlobRef


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """A document group of a unit: keys and places, no content."""

    doc_id: str
    doc_hash: str
    place: BlobRef
    queries: tuple[PlannedQuery, ...]


def planned_groups(unit: pa.Table) -> list[PlannedGroup]:
    """A unit's plan file (UNIT_GROUPS) as records."""
    return [
        PlannedGroup(
            row["doc_id"],
            row["doc_hash"],
            _place(row),
            tuple(PlannedQuery(query["query_id"], query["query_hash"], _place(query)) for query in row["queries"]),
        )
        for row in unit.to_pylist()
    ]


def _place(row: Row) -> BlobRef:
    return BlobRef(row["file"], row["row_group"], row["row"])
