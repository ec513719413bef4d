"""Sorted batches are cut between queries, never within one."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lakerank.spark.evaluate import whole_queries


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 12), st.integers(1, 6))
def test_whole_queries(sizes, block_rows, batch_rows):
    ids = [f"q{number:02}" for number, size in enumerate(sizes) for _ in range(size)]
    batches = pa.table({"query_id": pa.array(ids, pa.string())}).to_batches(max_chunksize=batch_rows)
    blocks = [table["query_id"].to_pylist() for table in whole_queries(batches, block_rows)]
    assert [name for block in blocks for name in block] == ids
    seen = [name for block in blocks for name in set(block)]
    assert len(seen) == len(set(seen)), "no query is in two blocks"
    assert all(len(block) < block_rows + batch_rows + 9 for block in blocks)
