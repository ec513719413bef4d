"""Candidates as blocks, judged and found again: held against the same done slowly, row by row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import parquet_bytes
from lakerank.spark.plan import join as inputs
from lakerank.spark.plan.index import INDEX
from lakerank.spark.plan.join import KINDS, NO_RANK, Slice
from lakerank.spark.plan.lookup import FOUND, best_found
from lakerank.spark.plan.pairs import flat, judge
from lakerank.spark.plan.queries import QUERY_LIST, QueryList, number_queries
from lakerank.spark.plan.ranges import even_edges, stripes_of
from lakerank.spark.rank.write import rank_order
from lakerank.spark.runtime.shuffle import BATCHES, decompress, key_hash, pack, part_of

IDS = st.text(st.sampled_from("ab\u00e9\U0001f34e"), max_size=3)
RANKS = st.one_of(st.none(), st.integers(1, 5))


@given(st.lists(IDS, max_size=20), st.integers(0, 6), st.integers(0, 19))
def test_a_key_hashes_alike_wherever_it_stands(keys, bits, skip):
    whole = key_hash(pa.array(keys, pa.string()))
    assert key_hash(pa.array(["ab", *keys], pa.string())[1:]).tolist() == whole.tolist()
    assert key_hash(pa.array(keys, pa.string())[skip:]).tolist() == whole[skip:].tolist()
    parts, finer = part_of(whole, bits), part_of(whole, bits + 1)
    assert (finer >> 1).tolist() == parts.tolist()


def test_keys_spread_evenly_over_parts():
    for keys in ([f"doc-{n:09d}" for n in range(20_000)], [str(n) for n in range(20_000)]):
        hashes = key_hash(pa.array(keys))
        assert len(set(hashes.tolist())) == len(keys)
        sizes = np.bincount(part_of(hashes, 6), minlength=64)
        assert sizes.max() < 1.3 * sizes.mean()


def index_rows(rows: list[dict[str, object]]) -> pa.Table:
    base = {"file": "f", "row_group": 0, "text_bytes": 1, "image_bytes": 0, "empty": False, "hash": "h"}
    made = [base | {"row": place} | row for place, row in enumerate(rows)]
    return pa.Table.from_pylist(made, schema=INDEX).append_column("cost", pa.array([5] * len(made), pa.int64()))


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


def unpacked(blocks: Iterator[pa.RecordBatch]) -> dict[int, pa.Table]:
    """All blocks of all parts, as the exchange would bring them to one part."""
    rows: dict[int, list[pa.RecordBatch]] = {kind: [] for kind in KINDS}
    for batch in blocks:
        for row in batch.to_pylist():
            rows[row["kind"]].append(
                pa.ipc.read_record_batch(decompress(pa.py_buffer(row["batch"])), KINDS[row["kind"]])
            )
    return {kind: pa.Table.from_batches(batches, schema=KINDS[kind]) for kind, batches in rows.items()}


class HeldQueries(QueryList):
    """A list that is in memory."""

    rows: pa.Table

    def column(self, name: str) -> pa.Array:
        return type(self).rows[name].combine_chunks()


def held(rows: pa.Table) -> HeldQueries:
    HeldQueries.rows = rows
    return HeldQueries(Storage(), "", rows.num_rows)


@given(st.sets(IDS, max_size=12), st.lists(st.one_of(st.none(), IDS, st.just("zz")), max_size=12))
def test_a_query_is_found_by_its_id_wherever_it_stands(known, asked):
    by_bytes = sorted(known, key=str.encode)
    listed = held(pa.table({"query_id": pa.array(by_bytes, pa.string())}))
    found = listed.numbers(pa.array(asked, pa.string())).tolist()
    assert found == [by_bytes.index(ident) if ident in known else -1 for ident in asked]


CANDIDATE = st.tuples(st.one_of(st.none(), IDS), st.one_of(st.none(), IDS), RANKS)


@given(
    st.lists(CANDIDATE, max_size=25),
    st.lists(st.tuples(IDS, CONTENTS, st.booleans()), min_size=1, max_size=5),
    st.lists(st.tuples(IDS, CONTENTS, st.booleans()), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_every_candidate_is_judged_once_as_row_by_row(candidates, queries, documents, bits):
    listed = held(number_queries(index_rows([{"id": i, "hash": h, "empty": e} for i, h, e in queries])))
    schema = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("first_stage_rank", pa.int32())])
    rows = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in candidates], schema=schema)
    blocks = unpacked(inputs._listed_blocks(rows.combine_chunks(), listed, bits)) if candidates else unpacked(iter(()))
    placed = [(i, place, int(h[1]), e) for place, (i, h, e) in enumerate(documents)]
    columns = [pa.array(values) for values in zip(*placed, strict=True)]
    columns[2] = columns[2].cast(pa.uint64())
    judged = judge(
        blocks[inputs.LISTED_KIND],
        blocks[inputs.LOOSE_KIND],
        pa.Table.from_arrays(columns, schema=inputs.PLACED),
        listed.column("query_id"),
        listed.column("reason"),
    )
    expected = slowly(candidates, queries, documents)
    places, numbers, ranks = flat(judged.pairs)
    ids = listed.column("query_id").to_pylist()
    pairs = {
        (ids[q], judged.pairs["doc_id"][int(d)].as_py()): (judged.pairs["document"][int(d)].as_py(), int(r))
        for d, q, r in zip(places, numbers, ranks, strict=True)
    }
    rejects = {(row["query_id"], row["doc_id"]): row["reason"] for row in judged.rejects.to_pylist()}
    assert len(rejects) == judged.rejects.num_rows
    assert pairs == {pair: found for pair, found in expected.items() if isinstance(found, tuple)}
    assert rejects == {pair: found for pair, found in expected.items() if isinstance(found, str)}
    assert judged.duplicates == len(candidates) - len(expected)
    assert judged.documents == len({d for _, d, _ in candidates} - {None})


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


FOUND_ROWS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(0, 2),
        st.sampled_from([None, "image_undecodable", "out_of_memory"]),
        st.sampled_from(["u1", "u2", "u3"]),
    ),
    max_size=20,
)


@given(FOUND_ROWS)
def test_of_several_stored_scores_a_logit_goes_first_and_what_may_pass_last(rows):
    made = [{"document": d, "query": q, "logit": None if r else 1.0, "reason": r, "unit": u} for d, q, r, u in rows]
    keys, best = best_found(pa.Table.from_pylist(made, schema=FOUND), np.array([1, 3, 4]))
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


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-1.5, 0.0, 2.25]), IDS), unique=True, max_size=30))
def test_lists_are_by_query_then_logit_then_id(rows):
    query, logit, ids = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    order = rank_order(np.array(query, np.int64), np.array(logit, np.float32), pa.array(ids, pa.string()))
    found = [(query[at], -logit[at], ids[at].encode()) for at in order.tolist()]
    assert found == sorted(found)


@given(st.dictionaries(st.integers(0, 300), st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 8))
def test_bins_are_even_but_for_what_cannot_be_cut(sizes, bins):
    edges = even_edges(sizes, bins)
    assert len(edges) < bins
    loads = np.zeros(len(edges) + 1, int)
    for number, size in sizes.items():
        loads[np.searchsorted(edges, number, side="right")] += size
    assert (loads > 0).all()
    assert loads.max() <= sum(sizes.values()) / bins + 2 * max(sizes.values())


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 40))
def test_stripes_rise_with_documents(rows, wanted):
    from lakerank.spark.plan.index import PLACE_BITS, Chunk

    stripes = stripes_of([Chunk("f", 0, 1, count, "i") for count in rows], wanted)
    # A chunk may hold more rows than it was taken for.
    numbers = [(chunk << PLACE_BITS) + place for chunk, count in enumerate(rows) for place in range(count + 3)]
    found = stripes.of(np.array(numbers))
    assert (np.diff(found) >= 0).all()
    assert found.max() <= wanted + len(rows)


@pytest.mark.parametrize(("row_groups", "rows_a_group"), [(1, 1000), (40, 25), (3, 400)])
def test_slices_cover_a_file_once_however_it_is_cut(tmp_path, monkeypatch, row_groups, rows_a_group):
    from lakerank.lake.tables import fragments
    from lakerank.schemas import CANDIDATES

    monkeypatch.setattr(inputs, "ROWS_AT_ONCE", 64)
    count = row_groups * rows_a_group
    table = pa.table({"query_id": [f"q{n}" for n in range(count)], "doc_id": ["d"] * count})
    address = join(str(tmp_path), "c.parquet")
    Storage().replace(address, parquet_bytes(table, rows_a_group))
    files = fragments(Storage(), address, CANDIDATES)
    slices = inputs._slices(files, 4)
    assert len(slices) >= 4
    read = [b for one in slices for b in inputs._read_slice(Storage(), one, ["query_id"])]
    assert [q for batch in read for q in batch.column(0).to_pylist()] == table["query_id"].to_pylist()
    assert all(isinstance(one, Slice) for one in slices)


def test_packed_blocks_are_one_a_part():
    rows = pa.table({"x": pa.array(range(6))})
    (batch,) = pack(3, np.array([0, 0, 2, 2, 2, 5]), rows)
    assert batch.schema == BATCHES
    assert batch.column("part").to_pylist() == [0, 2, 5]
    assert batch.column("kind").to_pylist() == [3, 3, 3]
    assert list(pack(3, np.zeros(0, np.int32), rows.slice(0, 0))) == []
    assert set(QUERY_LIST.names) >= {"query_id", "same_as"}
