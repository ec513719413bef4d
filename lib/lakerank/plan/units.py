"""The cut step: document groups and their costs, and work units cut from them in file order at even cost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.cost import CostProfile
from lakerank.lake.blobs import BlobRef
from lakerank.lake.storage import Storage, join
from lakerank.plan.index import LOCATION, QueryList
from lakerank.plan.pairs import LISTS
from lakerank.plan.plan import part_name, read_part, with_columns
from lakerank.schemas import MEMBERSHIPS

#: Where the encoder's state of a document is kept, if it is.
STATE = ("state", pa.struct(LOCATION))

_DOCUMENT = [("doc_id", pa.string()), ("doc_hash", pa.string()), *MEMBERSHIPS, *LOCATION, STATE]

#: A pair that gets the score of another pair of its group, `of` that pair's query: both have the same contents. `new`:
#: it counts as the one that was scored, since that one is no candidate.
_SHARED = [("of", pa.int32()), ("number", pa.int32()), ("rank", pa.int32()), ("doc_id", pa.string()), *MEMBERSHIPS]
_SHARED += [("new", pa.bool_())]

#: A document and at most so many of its queries, by number: what units are cut from. `tried` names the unit that a
#: query was last scored in, in vain. The rank of a pair that is no candidate itself is NOT_LISTED. `list`: the key that
#: a pair of a list is scored under, instead of its query's content.
GROUPS = pa.schema([
    *_DOCUMENT, ("cost", pa.int64()), *LISTS, ("tried", pa.list_(pa.string())),
    ("shared", pa.list_(pa.struct(_SHARED))), ("list", pa.string()),
])  # fmt: skip

NOT_LISTED = -1

_QUERY = [("query_id", pa.string()), ("query_hash", pa.string()), ("tried", pa.string()), *LOCATION]
_QUERY += [("number", pa.int32()), ("rank", pa.int32())]

#: A unit's file: one document group a row, with the locations of its document and of each of its queries. `number` and
#: `rank` are the query's row in the run's query list and the pair's first-stage rank.
UNIT_GROUPS = pa.schema([
    *_DOCUMENT, ("queries", pa.list_(pa.struct(_QUERY))),
    ("shared", pa.list_(pa.struct([("query_id", pa.string()), *_SHARED]))),
])  # fmt: skip

Row = dict[str, Any]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


def group_starts(documents: Int64, max_queries: int) -> Int64:
    """Where document groups begin in pairs (P,) sorted by document: at a new document, and after `max_queries`."""
    first = np.flatnonzero(np.diff(documents, prepend=-1))
    within = np.arange(len(documents)) - np.repeat(first, np.diff(np.append(first, len(documents))))
    return np.flatnonzero(within % max_queries == 0)


def group_costs(
    starts: Int64,
    document_costs: Int64,
    shared_costs: Int64,
    query_costs: Int64,
    with_image: Bool,
    readings: Sequence[CostProfile],
) -> Int64:
    """Cost of each group in tokens (G,).

    A document is read once, or again for each query; one that is split costs again in each group. A pair that is
    rejected unread costs a token.

    Args:
        document_costs: each group's document's (G,).
        shared_costs: the part of it that is computed once however pairs are read, the vision encoder's (G,).
        query_costs: each pair's query's (P,).
        with_image: whether a pair has an image on either side (P,).
        readings: how all pairs are read; or those of texts, and those with an image.
    """
    costs = np.zeros(len(starts), np.int64)
    for number, reading in enumerate(readings):
        routed = np.ones(len(with_image), bool) if len(readings) == 1 else with_image == bool(number)
        read = routed & (~with_image | reading.accepts_images)
        pairs = np.add.reduceat(read.astype(np.int64), starts)
        shared = document_costs if reading.document_major else shared_costs
        documents = shared * np.minimum(pairs, 1) + (document_costs - shared) * pairs
        queries = np.add.reduceat(np.where(read, query_costs, 0), starts)
        costs += np.ceil(reading.weight * (documents + queries)).astype(np.int64)
        costs += np.add.reduceat((routed & ~read).astype(np.int64), starts)
    return costs


class Cuts(NamedTuple):
    """How groups of a known total cost are cut: unit `u` has the groups that begin in its share of the cost."""

    total: int
    units: int

    @staticmethod
    def near(total: int, target: int) -> Cuts:
        """Even units as near to `target` tokens as there can be."""
        return Cuts(total, max(1, round(total / target)))

    def unit_of(self, begins: Int64) -> Int64:
        """The unit of each group (G,) by the cost of all groups before it. Integers alone: the same everywhere."""
        return np.minimum(begins * self.units // max(1, self.total), self.units - 1)

    def share(self, unit: int) -> tuple[int, int]:
        """The costs between which a unit's groups begin."""
        return -(-unit * self.total // self.units), -(-(unit + 1) * self.total // self.units)


@dataclass(frozen=True, slots=True)
class GroupFiles:
    """The `groups/` of a plan, a file a partition, and each partition's cost in tokens."""

    storage: Storage
    folder: str
    costs: Mapping[int, int]

    def units(self, cuts: Cuts, first_unit: int, end_unit: int) -> Iterator[pa.Table]:
        """The groups of each unit of a range, in order; only partitions that have some of them are read."""
        first, end = cuts.share(first_unit)[0], cuts.share(end_unit - 1)[1]
        tables, numbers = [GROUPS.empty_table()], [np.zeros(0, np.int64)]
        begin = 0
        for partition in sorted(self.costs):
            begin, before = begin + self.costs[partition], begin
            if not self.costs[partition] or before >= end or begin <= first:
                continue
            rows = read_part(self.storage, join(self.folder, "groups", part_name(partition)), GROUPS)
            cost = rows["cost"].to_numpy()
            units = cuts.unit_of(before + np.cumsum(cost) - cost)
            inside = (units >= first_unit) & (units < end_unit)
            tables.append(rows.filter(pa.array(inside)))
            numbers.append(units[inside])
        groups = pa.concat_tables(tables).combine_chunks()
        edges = np.flatnonzero(np.diff(np.concatenate(numbers), prepend=-1, append=-1))
        for first_group, end_group in pairwise(edges.tolist()):
            yield groups.slice(first_group, end_group - first_group)


def unit_rows(groups: pa.Table, queries: QueryList) -> pa.Table:
    """Rows of GROUPS in the schema of a unit's file (UNIT_GROUPS)."""
    lists = groups["queries"].combine_chunks()
    numbers = lists.flatten()
    keys = groups["list"].combine_chunks().take(pc.list_parent_indices(lists))
    columns = {
        "query_id": queries.column("query_id").take(numbers),
        "query_hash": pc.coalesce(keys, queries.column("hash").take(numbers)),
        "tried": groups["tried"].combine_chunks().flatten(),
        **{name: queries.column(name).take(numbers) for name, _ in LOCATION},
        "number": numbers,
        "rank": groups["ranks"].combine_chunks().flatten(),
    }
    offsets = list_offsets(lists)
    shared = groups["shared"].combine_chunks()
    others = shared.flatten()
    of_others = {name: others.field(name) for name in pa.schema(_SHARED).names}
    of_others["query_id"] = queries.column("query_id").take(of_others["number"])
    return with_columns(
        groups,
        UNIT_GROUPS,
        queries=structs(UNIT_GROUPS.field("queries"), offsets, columns),
        shared=structs(UNIT_GROUPS.field("shared"), list_offsets(shared), of_others),
    )


def list_offsets(lists: pa.ListArray) -> npt.NDArray[np.int32]:
    """Where each list begins among the values of all, and the end: (N,) -> (N + 1,)."""
    return np.concatenate([[0], np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy())]).astype(np.int32)


def structs(field: pa.Field, offsets: npt.NDArray[np.int32], columns: Mapping[str, pa.Array]) -> pa.ListArray:
    """Lists of structs, of a field's type, from the columns of all of them."""
    fields = list(field.type.value_type)
    values = pa.StructArray.from_arrays([columns[inner.name] for inner in fields], fields=fields)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def unit_name(unit: pa.Table) -> str:
    """Name of a work unit (UNIT_GROUPS): a hash of its pairs and of the contents they have, 32 hex digits.

    A pair that was tried before in vain gives the unit a new name.
    """
    digest = hashlib.blake2b(digest_size=16)
    lists = unit["queries"].combine_chunks()
    structs = lists.flatten()
    digest.update(pc.list_value_length(lists).to_numpy().astype("<i8").tobytes())
    for column in (
        unit["doc_id"].combine_chunks(),
        unit["doc_hash"].combine_chunks(),
        *(structs.field(name) for name in ("query_id", "query_hash", "tried")),
    ):
        digest.update(pc.binary_length(column).fill_null(-1).to_numpy().astype("<i8").tobytes())
        whole = pa.ListArray.from_arrays([0, len(column)], column.fill_null("").cast(pa.binary()))
        digest.update(pc.binary_join(whole, b"")[0].as_buffer())
    return digest.hexdigest()


class PlannedQuery(NamedTuple):
    """A query of a group: what its score is of, and the location of its content."""

    query_id: str
    query_hash: str
    location: BlobRef


class PlannedGroup(NamedTuple):
    """A document group of a unit: keys and locations, no content."""

    doc_id: str
    doc_hash: str
    location: BlobRef
    state: BlobRef | None
    queries: tuple[PlannedQuery, ...]


def planned_groups(unit: pa.Table) -> list[PlannedGroup]:
    """A unit's plan file (UNIT_GROUPS) as records."""
    return [
        PlannedGroup(
            row["doc_id"],
            row["doc_hash"],
            _location(row),
            row["state"] and _location(row["state"]),
            tuple(PlannedQuery(query["query_id"], query["query_hash"], _location(query)) for query in row["queries"]),
        )
        for row in unit.to_pylist()
    ]


def _location(row: Row) -> BlobRef:
    return BlobRef(row["file"], row["row_group"], row["row"])
