"""Candidates grouped and validated, stored scores chosen: compared with the same done slowly, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lakerank.lake.storage import Storage
from lakerank.plan.index import INDEX, Chunk, QueryList, number_queries, row_numbers
from lakerank.plan.lookup import DOCUMENT_SCORES, best_scores
from lakerank.plan.pairs import (
    CANDIDATE,
    DOCUMENT,
    JOIN_RECORDS,
    NO_RANK,
    UNMATCHED_CANDIDATE,
    flat,
    grouped_candidates,
    hash_parts,
    key_hash,
    validate_pairs,
)
from lakerank.plan.partitions import document_ranges, even_edges

IDS = st.text(st.sampled_from("ab\u00e9\U0001f34e"), max_size=3)
RANKS = st.one_of(st.none(), st.integers(1, 5))


@given(st.lists(IDS, max_size=20), st.integers(0, 6), st.integers(0, 19))
def test_a_key_hashes_alike_wherever_it_stands(keys, bits, skip):
    whole = key_hash(pa.array(keys, pa.string()))
    assert key_hash(pa.array(["ab", *keys], pa.string())[1:]).tolist() == whole.tolist()
    assert key_hash(pa.array(keys, pa.string())[skip:]).tolist() == whole[skip:].tolist()
    repeated = pa.chunked_array([["", *keys], [None, *keys]], pa.string())
    parts, finer = hash_parts(repeated, bits), hash_parts(repeated, bits + 1)
    assert (finer >> 1).tolist() == parts.tolist()
    assert parts[: len(keys) + 1].tolist() == parts[len(keys) + 1 :].tolist()
    assert parts[1 : len(keys) + 1].tolist() == [(int(number) << bits) >> 64 for number in whole]


def test_keys_spread_evenly_over_parts():
    for keys in ([f"doc-{n:09d}" for n in range(20_000)], [str(n) for n in range(20_000)]):
        hashes = key_hash(pa.array(keys))
        assert len(set(hashes.tolist())) == len(keys)
        sizes = np.bincount(hash_parts(pa.array(keys), 6), minlength=64)
        assert sizes.max() < 1.3 * sizes.mean()


def index_rows(rows: list[dict[str, object]]) -> pa.Table:
    base = {"file": "f", "row_group": 0, "text_bytes": 1, "image_bytes": 0, "empty": False, "hash": "h"}
    created = [base | {"row": place} | row for place, row in enumerate(rows)]
    numbers, costs = (pa.array(values, pa.int64()) for values in (range(len(created)), [5] * len(created)))
    return pa.Table.from_pylist(created, schema=INDEX).append_column("number", numbers).append_column("cost", costs)


CONTENTS = st.sampled_from(["h1", "h2"])


@given(st.lists(st.tuples(IDS, CONTENTS, st.booleans()), min_size=1, max_size=12))
def test_queries_are_numbered_by_id_at_their_first_place(rows):
    listed = number_queries(index_rows([{"id": i, "hash": h, "empty": e} for i, h, e in rows])).to_pylist()
    assert [row["query_id"].encode() for row in listed] == sorted({i.encode() for i, *_ in rows})
    for row in listed:
        same = [(place, h, e) for place, (i, h, e) in enumerate(rows) if i == row["query_id"]]
        assert row["row"] == same[0][0]
        conflict = len({h for _, h, _ in same}) > 1
        assert row["reason"] == ("duplicate_query_id" if conflict else "empty_query" if same[0][2] else None)
        assert listed[row["same_as"]]["hash"] == row["hash"]


@dataclass(frozen=True)
class QueriesInMemory(QueryList):
    rows: pa.Table

    def column(self, name: str) -> pa.Array:
        return self.rows[name].combine_chunks()


def in_memory(rows: pa.Table) -> QueryList:
    return QueriesInMemory(Storage(), "", rows.num_rows, rows)


@given(st.sets(IDS, max_size=12), st.lists(st.one_of(st.none(), IDS, st.just("zz")), max_size=12))
def test_a_query_is_found_by_its_id_wherever_it_stands(known, asked):
    by_bytes = sorted(known, key=str.encode)
    listed = in_memory(pa.table({"query_id": pa.array(by_bytes, pa.string())}))
    result = listed.numbers(pa.array(asked, pa.string())).tolist()
    assert result == [by_bytes.index(ident) if ident in known else -1 for ident in asked]


LISTED = st.tuples(st.one_of(st.none(), IDS), st.one_of(st.none(), IDS), RANKS)


@given(
    st.lists(LISTED, max_size=25),
    st.lists(st.tuples(IDS, CONTENTS, st.booleans()), min_size=1, max_size=5),
    st.lists(st.tuples(IDS, CONTENTS, st.booleans()), min_size=1, max_size=6),
)
def test_every_candidate_is_validated_once_as_row_by_row(candidates, queries, documents):
    listed = in_memory(number_queries(index_rows([{"id": i, "hash": h, "empty": e} for i, h, e in queries])))
    schema = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("first_stage_rank", pa.int32())])
    rows = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in candidates], schema=schema)
    records = {record_type: record_schema.empty_table() for record_type, record_schema in JOIN_RECORDS.items()}
    if candidates:
        records[CANDIDATE], records[UNMATCHED_CANDIDATE] = grouped_candidates(rows.combine_chunks(), listed)
    located = [(i, number, h, None, e) for number, (i, h, e) in enumerate(documents)]
    columns = dict(zip(JOIN_RECORDS[DOCUMENT].names, zip(*located, strict=True), strict=True))
    records[DOCUMENT] = pa.Table.from_pydict(columns, schema=JOIN_RECORDS[DOCUMENT])
    validated = validate_pairs(records, listed)
    expected = slowly(candidates, queries, documents)
    places, numbers, ranks = flat(validated.pairs)
    ids = listed.column("query_id").to_pylist()
    pairs = {
        (ids[q], validated.pairs["doc_id"][int(d)].as_py()): (validated.pairs["document"][int(d)].as_py(), int(r))
        for d, q, r in zip(places, numbers, ranks, strict=True)
    }
    rejects = {(row["query_id"], row["doc_id"]): row["reason"] for row in validated.rejects.to_pylist()}
    assert len(rejects) == validated.rejects.num_rows
    assert pairs == {pair: result for pair, result in expected.items() if isinstance(result, tuple)}
    assert rejects == {pair: result for pair, result in expected.items() if isinstance(result, str)}
    assert validated.duplicates == len(candidates) - len(expected)
    assert validated.documents == len({d for _, d, _ in candidates} - {None})


def slowly(candidates, queries, documents):
    """Each distinct pair with its reason, or its document's place and best rank."""
    expected: dict[tuple[str | None, str | None], object] = {}
    for query, document, rank in candidates:
        reason = None
        same_query = [(h, e) for i, h, e in queries if i == query]
        same_document = [(place, h, e) for place, (i, h, e) in enumerate(documents) if i == document]
        if not same_query:
            reason = "missing_query"
        elif not same_document:
            reason = "missing_document"
        elif len({h for h, _ in same_query}) > 1:
            reason = "duplicate_query_id"
        elif len({h for _, h, _ in same_document}) > 1:
            reason = "duplicate_document_id"
        elif same_query[0][1]:
            reason = "empty_query"
        elif same_document[0][2]:
            reason = "empty_document"
        before = expected.get((query, document))
        best = min(NO_RANK if rank is None else rank, before[1] if isinstance(before, tuple) else NO_RANK)
        expected[query, document] = reason or (same_document[0][0], best)
    return expected


SCORES = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(0, 2),
        st.sampled_from([None, "image_undecodable", "out_of_memory"]),
        st.sampled_from(["u1", "u2", "u3"]),
    ),
    max_size=20,
)


@given(SCORES)
def test_of_several_stored_scores_a_logit_goes_first_and_what_may_pass_last(rows):
    created = [{"document": d, "query": q, "logit": None if r else 1.0, "reason": r, "unit": u} for d, q, r, u in rows]
    keys, best = best_scores(pa.Table.from_pylist(created, schema=DOCUMENT_SCORES), np.array([1, 3, 4]))
    order = {None: 0, "image_undecodable": 1, "out_of_memory": 2}
    expected = {}
    for d, q, r, u in rows:
        if d in (1, 3, 4):
            key = [1, 3, 4].index(d) << 32 | q
            expected[key] = min(expected.get(key, (9, "")), (order[r], u, r), key=lambda found: found[:2])
    assert keys.tolist() == sorted(expected)
    assert best["reason"].to_pylist() == [expected[key][2] for key in sorted(expected)]
    assert best["unit"].to_pylist() == [expected[key][1] for key in sorted(expected)]
    assert best["lasting"].to_pylist() == [expected[key][0] < 2 for key in sorted(expected)]


@given(st.dictionaries(st.integers(0, 300), st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 8))
def test_partitions_are_even_but_for_what_cannot_be_cut(sizes, partitions):
    edges = even_edges(sizes, partitions)
    assert len(edges) < partitions
    loads = np.zeros(len(edges) + 1, int)
    for number, size in sizes.items():
        loads[np.searchsorted(edges, number, side="right")] += size
    assert (loads > 0).all()
    assert loads.max() <= sum(sizes.values()) / partitions + 2 * max(sizes.values())


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 40))
def test_document_ranges_rise_with_documents(rows, target):
    ranges = document_ranges([Chunk("f", 0, 1, count, "i") for count in rows], target)
    # A chunk may hold more rows than it was taken for.
    numbers = np.concatenate([row_numbers(chunk, count + 3) for chunk, count in enumerate(rows)])
    result = ranges.of(numbers)
    assert (np.diff(result) >= 0).all()
    assert result.max() <= target + len(rows)
