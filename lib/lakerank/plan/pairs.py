"""The join step: candidates grouped by document, matched with queries and documents, and validated.

Rows meet in parts by a hash of their document id. Reject reasons that need no content are found here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.fingerprint import splitmix64
from lakerank.plan.index import QueryList, TableIndex
from lakerank.plan.plan import with_columns
from lakerank.records import RejectReason
from lakerank.schemas import GROUP_IDS, NO_RANK

LISTS = [("queries", pa.list_(pa.int32())), ("ranks", pa.list_(pa.int32()))]

#: A document id and the queries that list it, by number, each with its first-stage rank.
CANDIDATE_LISTS = pa.schema([("doc_id", pa.string()), *LISTS])

#: A candidate whose query is not in the lake (`number` -1), or whose document has no id.
UNMATCHED = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("number", pa.int32())])

_LOCATED = [("doc_id", pa.string()), ("document", pa.int64()), ("hash", pa.string()), *GROUP_IDS]

#: A row of the documents table by its number.
LOCATED_DOCUMENTS = pa.schema([*_LOCATED, ("empty", pa.bool_())])

#: A document that can be scored: 128 bits that its content is told apart by, its number, and the part of its id.
_CONTENT_KEY = [("high", pa.uint64()), ("low", pa.uint64())]
CONTENTS = pa.schema([*_CONTENT_KEY, ("document", pa.int64()), ("part", pa.int32())])

#: A document whose content an earlier one of the table has, and the `first` that has it.
REPEATED = pa.schema([("document", pa.int64()), ("first", pa.int64()), ("part", pa.int32())])

#: Record types of the join.
CANDIDATE, UNMATCHED_CANDIDATE, DOCUMENT, CONTENT = 0, 1, 2, 3
JOIN_RECORDS = {CANDIDATE: CANDIDATE_LISTS, UNMATCHED_CANDIDATE: UNMATCHED}
JOIN_RECORDS |= {DOCUMENT: LOCATED_DOCUMENTS, CONTENT: CONTENTS}

#: Pairs that can be scored, a document a row: its number, its content, and its queries by number.
PAIRS = pa.schema([*_LOCATED, *LISTS])

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
_CODES = {reason: code for code, reason in enumerate(REASONS)}
_VALID = len(REASONS)
_VALUES = pa.array([reason.value for reason in REASONS])

_MAX_WEIGHTS = 4096
_WEIGHTS = splitmix64(np.arange(1, _MAX_WEIGHTS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
_LOW_WEIGHTS = splitmix64(_WEIGHTS) | np.uint64(1)

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]


def key_hash(keys: pa.Array, key_weights: UInt64 = _WEIGHTS) -> UInt64:
    """A 64-bit hash of each string, the same in every process and version: (N,) -> (N,); null hashes as "".

    Multilinear hashing: each byte is multiplied by a weight of its position, and the sum is mixed. The hash only
    spreads keys over partitions; keys themselves are compared wherever two must be the same.
    """
    keys = keys.cast(pa.binary()).fill_null(b"")
    _, offsets_buffer, data_buffer = keys.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[keys.offset : keys.offset + len(keys) + 1].astype(np.int64)
    data, lengths = np.frombuffer(data_buffer or b"", np.uint8), np.diff(offsets)
    sums, by_length = np.zeros(len(keys), np.uint64), np.argsort(lengths, kind="stable")
    for same in np.split(by_length, np.flatnonzero(np.diff(lengths[by_length])) + 1):
        length, is_all = int(lengths[same].max(initial=0)), len(same) == len(keys)
        weights = np.resize(key_weights, length)
        places = slice(offsets[0], offsets[-1]) if is_all else offsets[same][:, None] + np.arange(length)
        sums[same] = data[places].reshape(len(same), length) @ weights + weights.sum() + np.uint64(length)
    return splitmix64(sums)


def hash_parts(keys: pa.Array | pa.ChunkedArray, bits: int) -> npt.NDArray[np.int32]:
    """The partition of 2^bits that each key goes to: (N,) -> (N,). Twice as many partitions split each in two."""
    if not bits:
        return np.zeros(len(keys), np.int32)
    return high_bits(key_hash(keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys), bits)


def high_bits(hashes: UInt64, bits: int) -> npt.NDArray[np.int32]:
    """The partition of 2^bits of each hash: (N,) -> (N,)."""
    return np.asarray((hashes >> np.uint64(64 - bits)).astype(np.int32)) if bits else np.zeros(len(hashes), np.int32)


def located_documents(index: TableIndex, chunks: Sequence[int]) -> Iterator[pa.Table]:
    """The documents of chunks as LOCATED_DOCUMENTS."""
    for rows in index.read(chunks, ["id", "number", "hash", *GROUP_IDS.names, "empty"]):
        yield rows.rename_columns(LOCATED_DOCUMENTS.names)


def grouped_candidates(rows: pa.Table, queries: QueryList) -> tuple[pa.Table, pa.Table]:
    """Candidates as CANDIDATE_LISTS, so that each document id is stored once, and those without a match (UNMATCHED)."""
    query_ids = rows["query_id"].combine_chunks().dictionary_encode()
    numbers = np.append(queries.numbers(query_ids.dictionary), -1)[query_ids.indices.fill_null(-1).to_numpy()]
    doc_ids = rows["doc_id"].combine_chunks().dictionary_encode()
    codes = doc_ids.indices.fill_null(-1).to_numpy().astype(np.int64)
    unmatched = (numbers < 0) | (codes < 0)
    pairs = rows.select(["query_id", "doc_id"]).append_column("number", pa.array(numbers.astype(np.int32)))
    keys = (codes[~unmatched] << 32) | numbers[~unmatched]
    order = np.argsort(keys)
    keys = keys[order]
    ranks = rows["first_stage_rank"].fill_null(NO_RANK).to_numpy()[~unmatched][order]
    starts, *lists = _grouped(keys >> 32, keys & 0xFFFFFFFF, ranks)
    arrays = [doc_ids.dictionary.take(pa.array(keys[starts] >> 32)), *lists]
    grouped = pa.Table.from_arrays(arrays, schema=CANDIDATE_LISTS)
    return grouped, pairs.filter(pa.array(unmatched)).cast(UNMATCHED)


def scorable_contents(documents: pa.Table, contents: pa.ChunkedArray, parts: npt.NDArray[np.int32]) -> pa.Table:
    """CONTENTS of LOCATED_DOCUMENTS, given what their contents are told apart by and the parts of their ids."""
    whole = contents.combine_chunks()
    keys = [pa.array(key_hash(whole, weights)) for weights in (_WEIGHTS, _LOW_WEIGHTS)]
    rows = pa.Table.from_arrays([*keys, documents["document"], pa.array(parts)], schema=CONTENTS)
    scorable = pc.and_not(pc.is_valid(documents["doc_id"]), documents["empty"])
    return rows if pc.all(scorable).as_py() else rows.filter(scorable)


def repeated_contents(rows: pa.Table) -> pa.Table:
    """REPEATED of some CONTENTS, which have all that are equal."""
    keys, names = rows["high"].to_numpy(), [name for name, _ in _CONTENT_KEY]
    rising = np.sort(keys)
    rows = rows.filter(pa.array(np.isin(keys, rising[1:][rising[1:] == rising[:-1]])))
    first = rows.group_by(names).aggregate([("document", "min")]).rename_columns([*names, "first"])
    repeated = rows.join(first, names, join_type="inner")
    return repeated.filter(pc.not_equal(repeated["document"], repeated["first"])).select(REPEATED.names).cast(REPEATED)


class ValidatedPairs(NamedTuple):
    """The candidates of one part: PAIRS in the order of the documents table, REJECTS, and counts."""

    pairs: pa.Table
    rejects: pa.Table
    duplicates: int
    documents: int


def validate_pairs(records: Mapping[int, pa.Table], queries: QueryList) -> ValidatedPairs:
    """Validate the candidates among a part's records (JOIN_RECORDS), each pair once at its lowest first-stage rank."""
    candidates, unmatched = records[CANDIDATE], records[UNMATCHED_CANDIDATE]
    ids = candidates["doc_id"].combine_chunks().dictionary_encode()
    keys, ranks, duplicates = _distinct(ids.indices.to_numpy().astype(np.int64), candidates)
    documents, numbers = keys >> 32, keys & 0xFFFFFFFF
    located, document_faults = _locate(ids.dictionary, records[DOCUMENT])
    query_faults = pc.index_in(queries.column("reason"), value_set=_VALUES).fill_null(_VALID).to_numpy()
    fault = np.minimum(document_faults[documents], query_faults[numbers])
    bad = fault < _VALID
    unmatched_rejects = _unmatched_rejects(unmatched)
    query_ids = queries.column("query_id").take(pa.array(numbers[bad]))
    doc_ids = ids.dictionary.take(pa.array(documents[bad]))
    rejects = pa.Table.from_arrays([query_ids, doc_ids, _VALUES.take(pa.array(fault[bad]))], schema=REJECTS)
    pairs = _by_location(records[DOCUMENT], located[documents[~bad]], numbers[~bad], ranks[~bad])
    unseen = {*unmatched["doc_id"].to_pylist()} - {*ids.dictionary.to_pylist()} if unmatched.num_rows else set()
    return ValidatedPairs(
        pairs,
        pa.concat_tables([unmatched_rejects, rejects]),
        duplicates + unmatched.num_rows - unmatched_rejects.num_rows,
        len(ids.dictionary) + len(unseen - {None}),
    )


def flat(lists: pa.Table) -> tuple[Int64, Int64, Int64]:
    """Rows of PAIRS pair by pair: the number of its row, of its query, and its first-stage rank; (P,) each."""
    queries, ranks = (lists[name].combine_chunks() for name in ("queries", "ranks"))
    counts = pc.list_value_length(queries).to_numpy()
    rows = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return rows, queries.flatten().to_numpy().astype(np.int64), ranks.flatten().to_numpy().astype(np.int64)


def _grouped(keys: Int64, queries: Int64, ranks: npt.NDArray[np.integer]) -> tuple[Int64, pa.ListArray, pa.ListArray]:
    """Pairs sorted by key as lists: the first pair of each key (D,), and the queries and ranks of its pairs."""
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    offsets = pa.array(np.append(starts, len(keys)).astype(np.int32))
    lists = (pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.int32))) for values in (queries, ranks))
    return starts, *lists


def chosen_pairs(pairs: pa.Table, chosen: pa.Table) -> pa.Table:
    """Those of some PAIRS that are named by `doc_id` and `query`."""
    rows, queries, ranks = flat(pairs)
    positions = pc.index_in(chosen["doc_id"].combine_chunks(), value_set=pairs["doc_id"].combine_chunks())
    keys = (positions.fill_null(-1).to_numpy().astype(np.int64) << 32) | chosen["query"].to_numpy()
    kept = np.isin((rows << 32) | queries, keys)
    starts, *lists = _grouped(rows[kept], queries[kept], ranks[kept])
    return with_columns(pairs.take(pa.array(rows[kept][starts])), PAIRS, queries=lists[0], ranks=lists[1])


def _distinct(documents: Int64, candidates: pa.Table) -> tuple[Int64, Int64, int]:
    """Keys `document << 32 | query`, each once and rising, with their lowest rank, and how many were repeated."""
    rows, queries, ranks = flat(candidates)
    keys = (documents[rows] << 32) | queries
    order = np.argsort(keys)
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    return keys[order[starts]], np.minimum.reduceat(ranks[order], starts), len(keys) - len(starts)


def _locate(ids: pa.Array, documents: pa.Table) -> tuple[Int64, Int64]:
    """The row of the first document with each id, and the code of what is wrong with it: (D,) each."""
    known = documents["doc_id"].combine_chunks().dictionary_encode()
    codes, numbers = known.indices.fill_null(-1).to_numpy().astype(np.int64), documents["document"].to_numpy()
    order = np.lexsort((numbers, codes))
    order = order[codes[order] >= 0]
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    contents = documents["hash"].combine_chunks().dictionary_encode().indices.to_numpy()[order]
    conflict = np.minimum.reduceat(contents, starts) != np.maximum.reduceat(contents, starts)
    first = order[starts]
    fault = np.where(documents["empty"].to_numpy()[first], _CODES[RejectReason.EMPTY_DOCUMENT], _VALID)
    fault = np.where(conflict, _CODES[RejectReason.DUPLICATE_DOCUMENT_ID], fault)
    position = pc.index_in(ids, value_set=known.dictionary).fill_null(-1).to_numpy()
    missing = _CODES[RejectReason.MISSING_DOCUMENT]
    return np.append(first, -1)[position], np.append(fault, missing)[position]


def _unmatched_rejects(unmatched: pa.Table) -> pa.Table:
    """Each unmatched pair once, with its reason."""
    known = pc.greater_equal(unmatched["number"], 0)
    reason = pc.if_else(known, RejectReason.MISSING_DOCUMENT.value, RejectReason.MISSING_QUERY.value)
    rows = unmatched.select(["query_id", "doc_id"]).append_column("reason", reason)
    return rows.group_by(["query_id", "doc_id", "reason"]).aggregate([]).select(REJECTS.names).cast(REJECTS)


def _by_location(located: pa.Table, documents: Int64, queries: Int64, ranks: Int64) -> pa.Table:
    """Pairs as PAIRS, in the order of the documents table; `documents` are rows of LOCATED_DOCUMENTS."""
    numbers = located["document"].to_numpy()[documents]
    order = np.argsort(numbers, kind="stable")
    starts, *lists = _grouped(numbers[order], queries[order], ranks[order])
    return with_columns(located.take(pa.array(documents[order][starts])), PAIRS, queries=lists[0], ranks=lists[1])
