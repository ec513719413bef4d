"""Flat tables in a notebook and in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow.parquet as pq
import pytest
from postgresql import postgresql, why_no_server

from lakerank.schemas import GOLDEN, RANKED


@pytest.fixture(scope="module")
def database() -> Iterator[psycopg.Connection[Any]]:
    """A PostgreSQL server of its own, reached through a socket in its folder."""
    if why := why_no_server():
        pytest.skip(why)
    with (
        postgresql() as folder,
        psycopg.connect(host=str(folder), user="lakerank", dbname="postgres", autocommit=True) as connection,
    ):
        yield connection


def rows_of(lists) -> list[tuple[object, ...]]:
    return [tuple(getattr(row, name) for name in RANKED.names) for ranking in lists for row in ranking.rows]


def test_postgresql_loads_the_csv_and_looks_a_query_up(database, lists, write):
    database.execute(
        "CREATE TABLE ranked (query_id text, doc_id text, rank int, logit real, relevance real, label smallint,"
        " first_stage_rank int, truncated boolean, PRIMARY KEY (query_id, rank))"
    )
    with database.cursor() as cursor, cursor.copy("COPY ranked FROM STDIN WITH (FORMAT csv, HEADER true)") as copy:
        copy.write(write("csv", lists).read_bytes())
    for ranking in lists:
        result = database.execute("SELECT * FROM ranked WHERE query_id = %s ORDER BY rank", (ranking.key,)).fetchall()
        assert [tuple(map(_as_float32, row)) for row in result] == rows_of([ranking])
    assert database.execute("SELECT count(*) FROM ranked").fetchone() == (sum(len(ranking.rows) for ranking in lists),)


def _as_float32(value: object) -> object:
    """psycopg gives a `real` as the double of its shortest digits."""
    return float(np.float32(value)) if isinstance(value, float) else value


def test_parquet_is_the_ranked_table(lists, write):
    table = pq.read_table(write("parquet", lists))
    assert table.schema.equals(RANKED)
    assert [tuple(row.values()) for row in table.to_pylist()] == rows_of(lists)


def test_pandas_reads_the_csv(lists, write):
    frame = pd.read_csv(
        write("csv", lists), dtype={"query_id": str, "doc_id": str}, keep_default_na=False, lineterminator="\n"
    )
    assert list(frame.columns) == RANKED.names
    assert list(zip(frame["query_id"], frame["doc_id"], strict=True)) == [row[:2] for row in rows_of(lists)]


def test_golden_pairs_are_what_an_audit_reads(lists, write):
    table = pq.read_table(write("golden-pairs", lists))
    assert table.schema.equals(GOLDEN)
    assert table["logit"].to_pylist() == [row.logit for ranking in lists for row in ranking.rows]
