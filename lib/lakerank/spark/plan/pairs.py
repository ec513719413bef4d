"""Candidates of some documents, judged: which pairs can be scored, and why the others cannot. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.records import RejectReason

#: Pairs that can be scored, a document a row: its number, and its queries by number.
PAIRS = pa.schema(
    [
        ("doc_id", pa.string()),
        ("document", pa.int64()),
        ("queries", pa.list_(pa.int32())),
        ("ranks", pa.list_(pa.int32())),
    ]
)

#: Pairs that cannot.
REJECTS = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("reason", pa.string())])

#: Reasons that a plan can know; of several the first counts.
REASONS = (
    RejectReason.MISSING_QUERY,
    RejectReason.MISSING_DOCUMENT,
    RejectReason.DUPLICATE_QUERY_ID,
    RejectReason.DUPLICATE_DOCUMENT_ID,
    RejectReason.EMPTY_QUERY,
    RejectReason.EMPTY_DOCUMENT,
)
_CODES = {reason.value: code for code, reason in enumerate(REASONS)}
_FINE = len(REASONS)

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Judged:
    """The candidates of one part."""

    pairs: pa.Table
    rejects: pa.Table
    duplicates: int
    documents: int


def judge(listed: pa.Table, loose: pa.Table, placed: pa.Table, query_ids: pa.Array, query_reasons: pa.Array) -> Judged:
    """Merge the candidates of one part, each pair once at its better first-stage rank, and judge them.

    Args:
        listed, loose, placed: of the kinds in `inputs`.
        query_ids, query_reasons: of the query list, by query number.
    """
    wanted = listed["doc_id"].combine_chunks().dictionary_encode()
    documents, ranks, duplicates = _distinct(
        wanted.indices.to_numpy().astype(np.int64), listed["queries"].combine_chunks(), listed["ranks"].combine_chunks()
    )
    codes, queries = documents >> 32, documents & 0xFFFFFFFF
    place, fault = _find(wanted.dictionary, placed)
    code = np.minimum(fault[codes], _query_faults(query_reasons)[queries])
    bad = code < _FINE
    early = _loose_rejects(loose)
    late = pa.Table.from_arrays(
        [
            query_ids.take(pa.array(queries[bad])),
            wanted.dictionary.take(pa.array(codes[bad])),
            pa.array([reason.value for reason in REASONS]).take(pa.array(code[bad])),
        ],
        schema=REJECTS,
    )
    pairs = _by_document(wanted.dictionary, place, codes[~bad], queries[~bad], ranks[~bad])
    seen = {*loose["doc_id"].to_pylist()} - {*wanted.dictionary.to_pylist()} if loose.num_rows else set()
    duplicates += loose.num_rows - early.num_rows
    return Judged(pairs, pa.concat_tables([early, late]), duplicates, len(wanted.dictionary) + len(seen - {None}))


def flat(lists: pa.Table | pa.RecordBatch) -> tuple[Int64, Int64, Int64]:
    """Rows of PAIRS pair by pair: the number of its row, of its query, and its first-stage rank; (P,) each."""
    queries = lists.column("queries")
    ranks = lists.column("ranks")
    if isinstance(queries, pa.ChunkedArray):
        queries, ranks = queries.combine_chunks(), ranks.combine_chunks()
    counts = pc.list_value_length(queries).to_numpy()
    rows = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return rows, queries.flatten().to_numpy().astype(np.int64), ranks.flatten().to_numpy().astype(np.int64)


def grouped(codes: Int64, queries: Int64, ranks: Int64) -> tuple[Int64, pa.ListArray, pa.ListArray]:
    """Pairs sorted by code as lists: the distinct codes (D,), and each one's queries and ranks."""
    distinct, starts = np.unique(codes, return_index=True)
    offsets = pa.array(np.append(starts, len(codes)).astype(np.int32))
    lists = (pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.int32))) for values in (queries, ranks))
    return distinct, *lists


def _distinct(codes: Int64, queries: pa.ListArray, ranks: pa.ListArray) -> tuple[Int64, Int64, int]:
    """Keys `code << 32 | query`, each once and rising, with their lowest rank, and how many were repeated."""
    counts = pc.list_value_length(queries).to_numpy()
    keys = (np.repeat(codes, counts) << 32) | queries.flatten().to_numpy().astype(np.int64)
    order = np.argsort(keys)
    keys = keys[order]
    if not len(keys):
        return keys, keys, 0
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    lowest = np.minimum.reduceat(ranks.flatten().to_numpy()[order].astype(np.int64), starts)
    return keys[starts], lowest, len(keys) - len(starts)


def _find(ids: pa.Array, placed: pa.Table) -> tuple[Int64, Int64]:
    """Where each id first stands in the documents table, and the code of what is wrong with it: (D,) each."""
    if not placed.num_rows:
        return np.full(len(ids), -1), np.full(len(ids), _CODES[RejectReason.MISSING_DOCUMENT])
    known = placed["doc_id"].combine_chunks().dictionary_encode()
    codes, places = known.indices.fill_null(-1).to_numpy().astype(np.int64), placed["document"].to_numpy()
    order = np.lexsort((places, codes))
    order = order[codes[order] >= 0]
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    contents = placed["content"].to_numpy()[order]
    conflict = np.minimum.reduceat(contents, starts) != np.maximum.reduceat(contents, starts)
    first = order[starts]
    fault = np.where(
        conflict,
        _CODES[RejectReason.DUPLICATE_DOCUMENT_ID],
        np.where(placed["empty"].to_numpy()[first], _CODES[RejectReason.EMPTY_DOCUMENT], _FINE),
    )
    found = pc.index_in(ids, value_set=known.dictionary).fill_null(-1).to_numpy()
    missing = _CODES[RejectReason.MISSING_DOCUMENT]
    return np.append(places[first], -1)[found], np.append(fault, missing)[found]


def _query_faults(reasons: pa.Array) -> Int64:
    distinct = reasons.dictionary_encode()
    codes = [_CODES[reason] for reason in distinct.dictionary.to_pylist()] + [_FINE]
    each = np.asarray(codes, dtype=np.int64)
    return np.asarray(each[distinct.indices.fill_null(-1).to_numpy()])


def _loose_rejects(loose: pa.Table) -> pa.Table:
    """Each loose pair once, with its reason."""
    known = pc.greater_equal(loose["number"], 0)
    reason = pc.if_else(known, RejectReason.MISSING_DOCUMENT.value, RejectReason.MISSING_QUERY.value)
    rows = loose.select(["query_id", "doc_id"]).append_column("reason", reason)
    return rows.group_by(["query_id", "doc_id", "reason"]).aggregate([]).select(REJECTS.names).cast(REJECTS)


def _by_document(ids: pa.Array, place: Int64, codes: Int64, queries: Int64, ranks: Int64) -> pa.Table:
    """Pairs as PAIRS, in the order of the documents table."""
    order = np.argsort(place[codes], kind="stable")
    codes, queries, ranks = codes[order], queries[order], ranks[order]
    places, query_lists, rank_lists = grouped(place[codes], queries, ranks)
    first = np.searchsorted(place[codes], places)
    arrays = [ids.take(pa.array(codes[first])), pa.array(places), query_lists, rank_lists]
    return pa.Table.from_arrays(arrays, schema=PAIRS)
