"""What tasks hand to each other: rows packed by part, read in chunks, and sorted into lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, parquet_bytes
from lakerank.plan.index import table_chunks
from lakerank.rerank.plan.steps import concatenated
from lakerank.rerank.rank.write import rank_order
from lakerank.runner import BATCHES, pack, unpack
from lakerank.schemas import CANDIDATES

IDS = st.text(st.sampled_from("ab\u00e9\U0001f34e"), max_size=3)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-1.5, 0.0, 2.25]), IDS), unique=True, max_size=30))
def test_lists_are_by_query_then_logit_then_id(rows):
    query, logit, ids = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    order = rank_order(np.array(query, np.int64), np.array(logit, np.float32), pa.array(ids, pa.string()))
    result = [(query[at], -logit[at], ids[at].encode()) for at in order.tolist()]
    assert result == sorted(result)


@pytest.mark.parametrize(("row_groups", "rows_a_group"), [(1, 1000), (40, 25), (3, 400)])
def test_chunks_cover_a_file_once_however_it_is_cut(tmp_path, row_groups, rows_a_group):
    count = row_groups * rows_a_group
    table = pa.table({"query_id": [f"q{n}" for n in range(count)], "doc_id": ["d"] * count})
    address = join(str(tmp_path), "c.parquet")
    Storage().replace(address, parquet_bytes(table, rows_a_group))
    chunks = table_chunks(fragments(Storage(), address, CANDIDATES), 64)
    assert len(chunks) == min(row_groups, -(-count // 64))
    read = (batch for chunk in chunks for *_, batch in chunk.read(Storage(), CANDIDATES, ["query_id"], 30))
    tables = [*concatenated(read, 64)]
    assert all(64 <= rows.num_rows < 64 + 30 for rows in tables[:-1])
    assert pa.concat_tables(tables)["query_id"].to_pylist() == table["query_id"].to_pylist()


def test_rows_are_packed_in_one_batch_a_part():
    rows = pa.table({"x": pa.array(range(6))})
    (batch,) = pack(3, np.array([2, 0, 5, 2, 0, 2]), rows)
    assert batch.schema == BATCHES
    assert batch.column("part").to_pylist() == [0, 2, 5]
    assert batch.column("kind").to_pylist() == [3, 3, 3]
    sent = [unpack([batch.slice(part, 1)], {3: rows.schema})[3] for part in range(3)]
    assert [part.column("x").to_pylist() for part in sent] == [[1, 4], [0, 3, 5], [2]]
    assert list(pack(3, np.zeros(0, np.int32), rows.slice(0, 0))) == []
