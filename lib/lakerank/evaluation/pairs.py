"""Whole queries with all their pairs, as columns: what rows of every table come to when they are brought together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.evaluation.rows import Source

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Q queries and their P pairs. Every array below `query` is (P,), in the order of query and document id.

    `first`, `ranked` and `against` are places from 0 in the first stage's list, in the run's, and in the other run's;
    -1 where the document is not in it. `judgement` is 0 where `judged` is false. What is not known is NaN.
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
    has_order: Bools
    first_stage_score: Floats
    first: Ints
    ranked: Ints
    against: Ints
    logit: Floats
    relevance: Floats
    label: Ints

    def lengths(self, places: Ints) -> Ints:
        """(Q,) documents in each query's list."""
        return np.bincount(self.query[places >= 0], minlength=len(self.query_ids)).astype(np.int64)


def pair_up(rows: pa.Table) -> Pairs:
    """Bring together the rows (ROWS, in the order of query and document) of whole queries.

    A pair that stands in a table twice counts once: at its better rank or score, and with its higher judgement.
    """
    rows = rows.combine_chunks()
    starts = _changes(rows["query_id"])
    query_of_row = np.cumsum(starts) - 1
    source = rows["source"].to_numpy()
    is_query = source == Source.QUERY
    ids = rows["query_id"].filter(pa.array(starts)).to_pylist()
    labels, known, query_modality = _of_queries(rows.filter(pa.array(is_query)), query_of_row[is_query], len(ids))
    pairs = rows.filter(pa.array(~is_query))
    query = query_of_row[~is_query]
    first_rows = _changes(pairs["doc_id"])
    first_rows[1:] |= query[1:] != query[:-1]
    pair = np.cumsum(first_rows) - 1
    columns = _Columns(pairs, pair, int(first_rows.sum()), source[~is_query])
    of_pair = query[first_rows]
    rank, score = columns.least("place", Source.CANDIDATE), columns.most("score", Source.CANDIDATE)
    return Pairs(
        query_ids=ids,
        labels=labels,
        is_known=known,
        query_modality=query_modality,
        query=of_pair,
        doc_ids=pairs["doc_id"].filter(pa.array(first_rows)).combine_chunks(),
        judged=columns.has(Source.QREL),
        judgement=np.nan_to_num(columns.most("grade", Source.QREL)).astype(np.int64),
        modality=np.nan_to_num(columns.most("modality", Source.CANDIDATE)).astype(np.int64),
        has_order=np.isfinite(rank) | ~np.isnan(score),
        first_stage_score=score,
        first=_places(of_pair, columns.has(Source.CANDIDATE), rank, score),
        ranked=_places(of_pair, columns.has(Source.RANKED), columns.least("place", Source.RANKED)),
        against=_places(of_pair, columns.has(Source.AGAINST), columns.least("place", Source.AGAINST)),
        logit=columns.most("score", Source.RANKED),
        relevance=columns.most("relevance", Source.RANKED),
        label=np.nan_to_num(columns.most("grade", Source.RANKED)).astype(np.int64),
    )


class _Columns:
    """Columns of rows, scattered to their pairs: a pair has a row of some of the tables, or several."""

    def __init__(self, rows: pa.Table, pair: Ints, pairs: int, source: npt.NDArray[np.int8]) -> None:
        self._rows = rows
        self._pair = pair
        self._pairs = pairs
        self._source = source
        self._values: dict[str, Floats] = {}

    def has(self, source: Source) -> Bools:
        found = np.zeros(self._pairs, bool)
        found[self._pair[self._source == source]] = True
        return found

    def most(self, name: str, source: Source) -> Floats:
        """The largest value of each pair; NaN where there is none."""
        found = np.full(self._pairs, -np.inf)
        values, pair = self._of(name, source)
        np.maximum.at(found, pair, values)
        found[np.isneginf(found)] = np.nan
        return found

    def least(self, name: str, source: Source) -> Floats:
        """The smallest value of each pair; infinite where there is none."""
        found = np.full(self._pairs, np.inf)
        values, pair = self._of(name, source)
        np.minimum.at(found, pair, values)
        return found

    def _of(self, name: str, source: Source) -> tuple[Floats, Ints]:
        if name not in self._values:
            column = pc.cast(self._rows[name], pa.float64())
            self._values[name] = pc.fill_null(column, float("nan")).to_numpy()
        values = self._values[name]
        mine = (self._source == source) & ~np.isnan(values)
        return values[mine], self._pair[mine]


def _places(query: Ints, listed: Bools, rank: Floats, score: Floats | None = None) -> Ints:
    """Places from 0 in each query's list, -1 for what is not listed: by rank, else by falling score, then by id."""
    chosen = np.flatnonzero(listed)
    by_score = np.zeros(len(chosen)) if score is None else np.where(np.isnan(score[chosen]), np.inf, -score[chosen])
    order = np.lexsort((by_score, rank[chosen], query[chosen]))  # stable: ids, which rise, decide last
    ordered = chosen[order]
    within = np.arange(len(ordered)) - np.searchsorted(query[ordered], query[ordered])
    places = np.full(len(query), -1, np.int64)
    places[ordered] = within
    return places


def _of_queries(rows: pa.Table, query: Ints, queries: int) -> tuple[list[Mapping[str, str]], Bools, Ints]:
    """Labels, whether the queries table has it, and modality of each query; of rows that share an id one counts."""
    labels: list[Mapping[str, str]] = [{}] * queries
    known = np.zeros(queries, bool)
    modality = np.zeros(queries, np.int64)
    texts = zip(rows["labels"].to_pylist(), rows["modality"].to_pylist(), strict=True)
    for number, (text, code) in sorted(zip(query.tolist(), texts, strict=True), reverse=True):
        labels[number], known[number], modality[number] = _parsed(text or "{}"), True, code or 0
    return labels, known, modality


@lru_cache(maxsize=10_000)
def _parsed(labels: str) -> Mapping[str, str]:
    return dict(json.loads(labels))


def _changes(column: pa.ChunkedArray) -> Bools:
    """Where a value differs from the one before it; the first does."""
    found = np.ones(len(column), bool)
    if len(column) > 1:
        found[1:] = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy()
    return found
