"""Fusion of several first stages: their lists, cut, as one, and written as rows of the candidates table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.candidates.inputs import ITEMS
from lakerank.ranking import Int64, ranks
from lakerank.schemas import CANDIDATES


def best_of(items: pa.Table, depth: int) -> pa.Table:
    """The `depth` best ITEMS of each query, each document once, sorted by query, score descending and doc_id."""
    order = [("query", "ascending"), ("score", "descending"), ("doc_id", "ascending")]
    items = items.sort_by(order).combine_chunks()
    _, first = np.unique(_pairs(items), return_index=True)
    items = items.take(pa.array(np.sort(first)))
    return items.filter(pa.array(_ranks(items) <= depth))


def fuse(lists: Sequence[pa.Table], k: float) -> pa.Table:
    """Several tables of ITEMS, each sorted by query and best first, as one, sorted likewise.

    Scores are sums of 1 / (k + rank): the order of a list counts, ties included (reciprocal rank fusion; Cormack,
    Clarke and Büttcher, SIGIR 2009).
    """
    items = pa.concat_tables(lists)
    pairs, first, pair = np.unique(_pairs(items), return_index=True, return_inverse=True)
    shares = 1.0 / (k + np.concatenate([_ranks(table) for table in lists]))
    scores = np.bincount(pair, shares, len(pairs)).astype(np.float32).astype(np.float64)
    query, document = pairs >> 32, pairs & 0xFFFFFFFF
    order = np.lexsort((document, -scores, query))
    doc_ids = items["doc_id"].take(pa.array(first[order]))
    arrays = [pa.array(query[order].astype(np.int32)), doc_ids, pa.array(scores[order])]
    return pa.Table.from_arrays(arrays, schema=ITEMS)


def candidates(items: pa.Table, ids: Sequence[str], depth: int) -> pa.Table:
    """ITEMS, sorted by query and best first, as CANDIDATES: ranks from 1, up to `depth`."""
    query_ids, numbers = pa.array(ids, pa.string()).take(items["query"]), pa.array(_ranks(items))
    rows = pa.Table.from_arrays([query_ids, items["doc_id"], items["score"], numbers], schema=CANDIDATES)
    return rows.filter(pc.less_equal(rows["first_stage_rank"], depth))


def filled(rows: pa.Table, query_ids: Sequence[str], doc_ids: Sequence[str], ranked: bool) -> pa.Table:
    """CANDIDATES with the other documents, in their order, after each query's own: no scores; ranks go on, or none."""
    lists: dict[str, dict[str, float | None]] = {query_id: {} for query_id in query_ids}
    for query_id, doc_id, score in zip(*(rows[name].to_pylist() for name in CANDIDATES.names[:3]), strict=True):
        lists[query_id][doc_id] = score
    whole = [(query_id, own | dict.fromkeys([d for d in doc_ids if d not in own])) for query_id, own in lists.items()]
    columns = (
        [query_id for query_id, scores in whole for _ in scores],
        [doc_id for _, scores in whole for doc_id in scores],
        [score for _, scores in whole for score in scores.values()],
        [rank if ranked else None for _, scores in whole for rank in range(1, len(scores) + 1)],
    )
    return pa.Table.from_pydict(dict(zip(CANDIDATES.names, columns, strict=True)), CANDIDATES)


def _pairs(items: pa.Table) -> Int64:
    """A number for each item's pair (P,): the query's in the upper half, the document's in the order of ids below."""
    queries: Int64 = items["query"].to_numpy().astype(np.int64)
    return queries << 32 | _codes(items["doc_id"])


def _codes(doc_ids: pa.ChunkedArray) -> Int64:
    """Numbers (P,) of ids (P,) in their order."""
    coded = doc_ids.combine_chunks().dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.unify_dictionaries().combine_chunks()
    order = pc.sort_indices(coded.dictionary).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return np.asarray(place[coded.indices.to_numpy()])


def _ranks(items: pa.Table) -> np.ndarray:
    """Ranks (P,) int32 from 1 within each query of ITEMS that come sorted by query."""
    return ranks(np.diff(items["query"].to_numpy(), prepend=-1) != 0)
