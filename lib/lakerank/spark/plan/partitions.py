"""A bin of neighbouring documents with all their pairs: which are new, which have a score, what the new ones cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakerank.cost import CostProfile, vision_cost, visual_tokens
from lakerank.spark.plan.cut import GROUPS, group_costs, group_starts
from lakerank.spark.plan.index import INDEX, PLACE_BITS, TableIndex
from lakerank.spark.plan.lookup import best_found
from lakerank.spark.plan.pairs import flat
from lakerank.spark.plan.queries import QueryList

#: Pairs of a document by its number; a document is in one row.
PLACED_PAIRS = pa.schema([("document", pa.int64()), ("queries", pa.list_(pa.int32())), ("ranks", pa.list_(pa.int32()))])

#: A pair that has a score: the query by number, its first-stage rank, and the score as it stands in the lake.
REUSED = pa.schema(
    [
        ("doc_id", pa.string()),
        ("query", pa.int32()),
        ("rank", pa.int32()),
        ("logit", pa.float32()),
        ("truncated", pa.bool_()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("unit", pa.string()),
    ]
)

GROUP_KIND, STORED_KIND = 0, 1

_SIZES = ["text_bytes", "image_bytes", "width", "height"]
_COLUMNS = ["id", "hash", "file", "row_group", "row", *_SIZES]

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bin:
    """What is needed to look into a bin, whichever it is."""

    documents: TableIndex
    queries: QueryList
    max_queries: int
    readings: tuple[CostProfile, ...] = (CostProfile(),)

    def split(self, pairs: pa.Table, found: pa.Table) -> tuple[pa.Table, pa.Table, dict[str, int]]:
        """Split a bin's pairs into new ones, in GROUPS, and those with a score, as REUSED; and count.

        Args:
            pairs: PLACED_PAIRS of the bin.
            found: FOUND, the stored scores of its documents.
        """
        pairs = pairs.sort_by("document").combine_chunks()
        numbers = pairs["document"].to_numpy()
        rows, queries, ranks = flat(pairs)
        order = np.argsort((rows << 32) | queries)
        rows, queries, ranks = rows[order], queries[order], ranks[order]
        keys, stored = best_found(found, numbers)
        same = self.queries.column("same_as").to_numpy()
        at, has = _matched((rows << 32) | same[queries], keys)
        lasting = np.append(stored["lasting"].to_numpy(zero_copy_only=False), False).astype(bool)[at] & has
        documents, read_bytes = self._documents(numbers, np.unique(rows[~lasting]))
        reused = _reused(documents, rows[lasting], queries[lasting], ranks[lasting], stored, at[lasting])
        tried = (
            stored["unit"].combine_chunks().take(pa.array(np.where(has, at, 0), mask=~has)).filter(pa.array(~lasting))
        )
        groups = self._groups(documents, rows[~lasting], queries[~lasting], ranks[~lasting], tried)
        totals = self._totals(documents, rows[~lasting], queries[~lasting])
        return groups, reused, {**totals, "reused": int(lasting.sum()), "read_bytes": read_bytes}

    def _documents(self, numbers: Int64, wanted: Int64) -> tuple[pa.Table, int]:
        """Index rows of documents (D,), and bytes of the row groups that hold those at the positions `wanted`."""
        chunks, places = numbers >> PLACE_BITS, numbers & ((1 << PLACE_BITS) - 1)
        tables, read_bytes = [], 0
        for chunk in np.unique(chunks).tolist():
            rows = self.documents.read(chunk, _COLUMNS)
            inside = np.flatnonzero(chunks == chunk)
            tables.append(rows.take(pa.array(places[inside])))
            groups = rows["row_group"].to_numpy()
            sizes = np.bincount(groups - groups[0], weights=_bytes(rows))
            new = places[np.intersect1d(inside, wanted)]
            read_bytes += int(sizes[np.unique(groups[new] - groups[0])].sum())
        if not tables:
            schema = pa.schema([INDEX.field(name) for name in _COLUMNS]).append(pa.field("cost", pa.int64()))
            return schema.empty_table(), 0
        return pa.concat_tables(tables).combine_chunks(), read_bytes

    def _groups(self, documents: pa.Table, rows: Int64, queries: Int64, ranks: Int64, tried: pa.Array) -> pa.Table:
        starts = group_starts(rows, self.max_queries)
        of = documents.take(pa.array(rows[starts]))
        costs = self._costs(documents, rows, queries, starts)
        offsets = pa.array(np.append(starts, len(rows)).astype(np.int32))
        lists = [
            pa.ListArray.from_arrays(offsets, values)
            for values in (pa.array(queries.astype(np.int32)), pa.array(ranks.astype(np.int32)), tried)
        ]
        places = (of[name] for name in ("file", "row_group", "row"))
        return pa.Table.from_arrays([of["id"], of["hash"], *places, pa.array(costs), *lists], schema=GROUPS)

    def _totals(self, documents: pa.Table, rows: Int64, queries: Int64) -> dict[str, int]:
        """What the forecast says of new pairs. `pairwise_cost`: were each document read again for each query."""
        own = documents.take(pa.array(np.unique(rows)))
        patches = 4 * self._visual_tokens(own)  # a visual token stands for 2 × 2
        alone = self._costs(documents, rows, queries, np.arange(len(rows)))
        return {
            "new": len(rows),
            "new_documents": own.num_rows,
            "pairwise_cost": int(alone.sum()),
            "patches": int(patches.sum()) if self.readings[-1].accepts_images else 0,
            "fetch_bytes": int(_bytes(own).sum()),
        }

    def _costs(self, documents: pa.Table, rows: Int64, queries: Int64, starts: Int64) -> Int64:
        """What groups of pairs cost, from each of `starts` on."""
        costs, image_bytes = documents["cost"].to_numpy(), documents["image_bytes"].to_numpy()
        has_image = self.queries.column("has_image").to_numpy(zero_copy_only=False)
        with_image = (image_bytes[rows] > 0) | has_image[queries].astype(bool)
        query_costs = self.queries.column("cost").to_numpy()[queries].astype(np.int64)
        of = rows[starts]
        shared = vision_cost(self._visual_tokens(documents))
        return group_costs(starts, costs[of], shared[of], query_costs, with_image, self.readings)

    def _visual_tokens(self, documents: pa.Table) -> Int64:
        width, height = (documents[name].fill_null(0).to_numpy().astype(np.int64) for name in ("width", "height"))
        return visual_tokens(width, height, self.documents.sizing)


def _bytes(rows: pa.Table) -> Int64:
    return np.asarray(rows["text_bytes"].to_numpy() + rows["image_bytes"].to_numpy(), dtype=np.int64)


def _matched(wanted: Int64, keys: Int64) -> tuple[Int64, npt.NDArray[np.bool_]]:
    """Where each wanted key (P,) stands in rising `keys` (N,), and whether it does; N where it does not."""
    at = np.searchsorted(keys, wanted)
    has = np.append(keys, -1)[at] == wanted
    return np.where(has, at, len(keys)), has


def _reused(documents: pa.Table, rows: Int64, queries: Int64, ranks: Int64, stored: pa.Table, at: Int64) -> pa.Table:
    scores = stored.take(pa.array(at))
    columns: dict[str, Any] = {
        "doc_id": documents["id"].combine_chunks().take(pa.array(rows)),
        "query": pa.array(queries.astype(np.int32)),
        "rank": pa.array(ranks.astype(np.int32)),
    }
    return pa.Table.from_arrays(
        [columns[name] if name in columns else scores[name] for name in REUSED.names], schema=REUSED
    )
