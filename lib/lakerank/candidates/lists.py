"""Lists of several first stages: cut, fused into one, and written as rows of the candidates table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.candidates.bm25 import Int64
from lakerank.candidates.inputs import ITEMS
from lakerank.ranking import Float64, Fusion, fused
from lakerank.schemas import CANDIDATES


def best_of(items: pa.Table, depth: int) -> pa.Table:
    """The `depth` best ITEMS of each query, each document once, sorted by query, score descending and doc_id."""
    order = [("query", "ascending"), ("score", "descending"), ("doc_id", "ascending")]
    items = items.sort_by(order).combine_chunks()
    _, first = np.unique(_pairs(items), return_index=True)
    items = items.take(pa.array(np.sort(first)))
    return items.filter(pa.array(_ranks(items["query"].to_numpy()) <= depth))


def fuse(lists: Sequence[pa.Table], fusion: Fusion) -> pa.Table:
    """Several tables of ITEMS, each sorted by query and best first, as one, sorted likewise; scores are the fused."""
    items = pa.concat_tables(lists)
    source = np.repeat(np.arange(len(lists)), [len(table) for table in lists])
    pairs, first, pair = np.unique(_pairs(items), return_index=True, return_inverse=True)
    query, document = pairs >> 32, pairs & 0xFFFFFFFF
    if fusion.method == "reciprocal_rank":  # the order of a list counts, ties included
        scores: Float64 = -np.concatenate([_ranks(table["query"].to_numpy()) for table in lists]).astype(np.float64)
    else:
        scores = items["score"].to_numpy()
    by_list = np.full((len(lists), len(query)), np.nan, np.float32)
    by_list[source, pair] = scores
    score = fused(query, by_list, document, fusion).astype(np.float64)
    order = np.lexsort((document, -score, query))
    doc_ids = items["doc_id"].take(pa.array(first[order]))
    return pa.Table.from_arrays(
        [pa.array(query[order].astype(np.int32)), doc_ids, pa.array(score[order])], schema=ITEMS
    )


def candidates(items: pa.Table, ids: Sequence[str], depth: int, skip_same_id: bool) -> pa.Table:
    """ITEMS, sorted by query and best first, as CANDIDATES: ranks from 1, up to `depth`."""
    query_ids = pa.array(ids, pa.string()).take(items["query"])
    if skip_same_id:
        differs = pc.not_equal(query_ids, items["doc_id"])
        items, query_ids = items.filter(differs), query_ids.filter(differs)
    ranks = pa.array(_ranks(items["query"].to_numpy()).astype(np.int32))
    arrays = [query_ids, items["doc_id"], items["score"], ranks]
    rows = pa.Table.from_arrays(arrays, schema=CANDIDATES)
    return rows.filter(pc.less_equal(rows["first_stage_rank"], depth))


def filled(rows: pa.Table, query_ids: Sequence[str], doc_ids: Sequence[str], skip_same_id: bool) -> pa.Table:
    """CANDIDATES with the other documents, in their order, after each query's own; scores are null, ranks go on."""
    lists: dict[str, list[tuple[str, float | None]]] = {query_id: [] for query_id in query_ids}
    for query_id, doc_id, score in zip(*(rows[name].to_pylist() for name in CANDIDATES.names[:3]), strict=True):
        lists[query_id].append((doc_id, score))
    columns: list[tuple[str, str, float | None, int]] = []
    for query_id, listed in lists.items():
        known = {doc_id for doc_id, _ in listed} | ({query_id} if skip_same_id else set())
        whole = [*listed, *((doc_id, None) for doc_id in doc_ids if doc_id not in known)]
        columns += [(query_id, doc_id, score, rank) for rank, (doc_id, score) in enumerate(whole, start=1)]
    return pa.Table.from_pylist([dict(zip(CANDIDATES.names, row, strict=True)) for row in columns], CANDIDATES)


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


def _ranks(queries: Int64) -> Int64:
    """Ranks from 1 within each query of queries (P,) that come sorted."""
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    lengths = np.diff(np.append(starts, len(queries)))
    return np.arange(len(queries)) - np.repeat(starts, lengths) + 1
