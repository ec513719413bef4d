"""Whole queries with all their pairs as columns, made from the rows of every table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: Names of the modalities by their codes: 1 for a text plus 2 for an image.
MODALITY_NAMES = ("nothing", "text", "image", "text+image")


class InputTable(IntEnum):
    """The table that a row comes from; RANKED is the run's, BASELINE that of the baseline run."""

    QUERY = 0
    QREL = 1
    CANDIDATE = 2
    RANKED = 3
    BASELINE = 4


#: `score` is the first stage's or the logit, `grade` the judgement or the label; `modality` is the query's or the
#: document's code (see MODALITY_NAMES). `labels` holds a query's extra columns as JSON.
ROWS = pa.schema(
    [
        pa.field("query_id", pa.string()),
        pa.field("doc_id", pa.string()),
        pa.field("table", pa.int8()),
        pa.field("rank", pa.int32()),
        pa.field("score", pa.float64()),
        pa.field("relevance", pa.float32()),
        pa.field("grade", pa.int32()),
        pa.field("modality", pa.int8()),
        pa.field("labels", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Q queries and their P pairs. Every array from `query` on is (P,), in the order of query and document id.

    `first_stage`, `ranked` and `baseline` are ranks from 0 in the first stage's list, the run's, and the baseline
    run's; -1 where the document is not listed. `judgement` is 0 where `judged` is false. Unknown values are NaN.
    """

    query_ids: list[str]
    labels: list[Mapping[str, str]]
    is_known: Bools
    query_modality: Ints
    query: Ints
    doc_ids: pa.Array
    judged: Bools
    judgement: Ints
    modality: Ints
    first_stage_score: Floats
    first_stage: Ints
    ranked: Ints
    baseline: Ints
    logit: Floats
    relevance: Floats
    label: Ints

    def lengths(self, ranks: Ints) -> Ints:
        """(Q,) documents in each query's list."""
        return np.bincount(self.query[ranks >= 0], minlength=len(self.query_ids)).astype(np.int64)


def pair_up(rows: pa.Table) -> Pairs:
    """Pairs of the rows (ROWS, sorted by query and document) of whole queries.

    A pair with several rows of a table counts once: at its better rank or score, and with its higher judgement.
    """
    rows = rows.combine_chunks()
    starts = _changes(rows["query_id"])
    query_of_row = np.cumsum(starts) - 1
    table = rows["table"].to_numpy()
    is_query = table == InputTable.QUERY
    query_ids = rows["query_id"].filter(pa.array(starts)).to_pylist()
    query_columns = _of_queries(rows.filter(pa.array(is_query)), query_of_row[is_query], query_ids)
    pairs = rows.filter(pa.array(~is_query))
    query = query_of_row[~is_query]
    first_rows = _changes(pairs["doc_id"])
    first_rows[1:] |= query[1:] != query[:-1]
    columns = _Columns(pairs, np.cumsum(first_rows) - 1, int(first_rows.sum()), table[~is_query])
    query_of_pair = query[first_rows]
    first_stage_score = columns.largest("score", InputTable.CANDIDATE)

    def ranks(table: InputTable, score: Floats | None = None) -> Ints:
        return _ranks(query_of_pair, columns.has(table), columns.smallest("rank", table), score)

    return Pairs(
        *query_columns,
        query=query_of_pair,
        doc_ids=pairs["doc_id"].filter(pa.array(first_rows)).combine_chunks(),
        judged=columns.has(InputTable.QREL),
        judgement=np.nan_to_num(columns.largest("grade", InputTable.QREL)).astype(np.int64),
        modality=np.nan_to_num(columns.largest("modality", InputTable.CANDIDATE)).astype(np.int64),
        first_stage_score=first_stage_score,
        first_stage=ranks(InputTable.CANDIDATE, first_stage_score),
        ranked=ranks(InputTable.RANKED),
        baseline=ranks(InputTable.BASELINE),
        logit=columns.largest("score", InputTable.RANKED),
        relevance=columns.largest("relevance", InputTable.RANKED),
        label=np.nan_to_num(columns.largest("grade", InputTable.RANKED)).astype(np.int64),
    )


class _Columns:
    """Values of rows by pair; a pair may have several rows of a table, or none."""

    def __init__(self, rows: pa.Table, pair: Ints, pairs: int, table: npt.NDArray[np.int8]) -> None:
        self._rows = rows
        self._pair = pair
        self._pairs = pairs
        self._table = table
        self._values: dict[str, Floats] = {}

    def has(self, table: InputTable) -> Bools:
        """(P,) whether a pair has a row of a table."""
        has_row = np.zeros(self._pairs, bool)
        has_row[self._pair[self._table == table]] = True
        return has_row

    def largest(self, name: str, table: InputTable) -> Floats:
        """The largest value of each pair; NaN where there is none."""
        result = np.full(self._pairs, -np.inf)
        values, pair = self._of(name, table)
        np.maximum.at(result, pair, values)
        result[np.isneginf(result)] = np.nan
        return result

    def smallest(self, name: str, table: InputTable) -> Floats:
        """The smallest value of each pair; infinite where there is none."""
        result = np.full(self._pairs, np.inf)
        values, pair = self._of(name, table)
        np.minimum.at(result, pair, values)
        return result

    def _of(self, name: str, table: InputTable) -> tuple[Floats, Ints]:
        if name not in self._values:
            column = pc.cast(self._rows[name], pa.float64())
            self._values[name] = pc.fill_null(column, float("nan")).to_numpy()
        values = self._values[name]
        chosen = (self._table == table) & ~np.isnan(values)
        return values[chosen], self._pair[chosen]


def _ranks(query: Ints, listed: Bools, rank: Floats, score: Floats | None) -> Ints:
    """Ranks from 0 in each query's list, -1 for unlisted pairs: by rank, else by falling score, then by id."""
    chosen = np.flatnonzero(listed)
    by_score = np.zeros(len(chosen)) if score is None else np.where(np.isnan(score[chosen]), np.inf, -score[chosen])
    order = np.lexsort((by_score, rank[chosen], query[chosen]))  # stable: ids, which rise, decide last
    ordered = chosen[order]
    ranks = np.full(len(query), -1, np.int64)
    ranks[ordered] = np.arange(len(ordered)) - np.searchsorted(query[ordered], query[ordered])
    return ranks


def _of_queries(
    rows: pa.Table, query: Ints, query_ids: list[str]
) -> tuple[list[str], list[Mapping[str, str]], Bools, Ints]:
    """Id, labels, presence in the queries table, and modality of each query; of rows that share an id one counts."""
    labels: list[Mapping[str, str]] = [{}] * len(query_ids)
    known = np.zeros(len(query_ids), bool)
    modality = np.zeros(len(query_ids), np.int64)
    values = zip(rows["labels"].to_pylist(), rows["modality"].to_pylist(), strict=True)
    for number, (text, code) in sorted(zip(query.tolist(), values, strict=True), reverse=True):
        labels[number], known[number], modality[number] = _parsed(text or "{}"), True, code or 0
    return query_ids, labels, known, modality


@lru_cache(maxsize=10_000)
def _parsed(labels: str) -> Mapping[str, str]:
    return dict(json.loads(labels))


def _changes(column: pa.ChunkedArray) -> Bools:
    """Where a value differs from the one before it; the first does."""
    changes = np.ones(len(column), bool)
    if len(column) > 1:
        changes[1:] = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy()
    return changes


def whole_queries(batches: Iterable[pa.RecordBatch], block_rows: int) -> Iterator[pa.Table]:
    """Batches sorted by query as tables of about so many rows, none of which ends within a query."""
    buffered: list[pa.Table] = []
    rows = 0
    for batch in batches:
        buffered.append(pa.Table.from_batches([batch]))
        rows += batch.num_rows
        if rows < block_rows:
            continue
        table = pa.concat_tables(buffered)
        last = pc.index(table["query_id"], table["query_id"][-1]).as_py()
        if last:
            yield table.slice(0, last)
        buffered, rows = [table.slice(last)], table.num_rows - last
    if rows:
        yield pa.concat_tables(buffered)


def judged_only(rows: pa.Table) -> tuple[pa.Table, int]:
    """The rows (ROWS) of the queries that have a judgement, and the number of queries that have none."""
    table = rows["table"]
    judged_ids = pc.unique(rows["query_id"].filter(pc.equal(table, InputTable.QREL)))
    is_judged = pc.is_in(rows["query_id"], value_set=judged_ids)
    is_unjudged_query = pc.and_(pc.equal(table, InputTable.QUERY), pc.invert(is_judged))
    return rows.filter(is_judged), pc.count_distinct(rows["query_id"].filter(is_unjudged_query)).as_py()
