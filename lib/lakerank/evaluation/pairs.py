"""Whole queries with all their pairs as columns, built from the rows of every table."""

from __future__ import annotations

import json
from collections.abc import Mapping
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

#: Integers of a query: its candidates, the documents judged relevant, those of them that are candidates, and the rank
#: from 1 of the first relevant one in the first stage's list and in the run's.
COUNTS = ("candidates", "relevant", "relevant_candidates", "first_relevant_before", "first_relevant")


class InputTable(IntEnum):
    """The table that a row comes from; RANKED is the run's, BASELINE that of the baseline run."""

    QUERY = 0
    QREL = 1
    CANDIDATE = 2
    RANKED = 3
    BASELINE = 4


#: `score` is the first stage's or the logit, `grade` the judgement or the label; `modality` is the query's or the
#: document's code (see MODALITY_NAMES). `labels` holds a query's extra columns as JSON.
ROWS = pa.schema({
    "query_id": pa.string(),
    "doc_id": pa.string(),
    "table": pa.int8(),
    "rank": pa.int32(),
    "score": pa.float64(),
    "relevance": pa.float32(),
    "grade": pa.int32(),
    "modality": pa.int8(),
    "labels": pa.string(),
})  # fmt: skip


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

    def counts(self) -> dict[str, pa.Array]:
        """Columns COUNTS of the queries, (Q,) each; null where no relevant document is in a list."""
        relevant = self.judged & (self.judgement > 0)
        listed = relevant & (self.first_stage >= 0)

        def count(rows: Bools) -> pa.Array:
            return pa.array(np.bincount(self.query[rows], minlength=len(self.query_ids)))

        def first_relevant(ranks: Ints) -> pa.Array:
            rows, missing = relevant & (ranks >= 0), np.iinfo(np.int64).max
            first = np.full(len(self.query_ids), missing)
            np.minimum.at(first, self.query[rows], ranks[rows] + 1)
            return pa.array(first, mask=first == missing)

        values = count(self.first_stage >= 0), count(relevant), count(listed)
        return dict(zip(COUNTS, (*values, *map(first_relevant, (self.first_stage, self.ranked))), strict=True))

    def modalities(self) -> list[str]:
        """Modality of each query → modality of its candidates."""
        names = np.array(MODALITY_NAMES)
        has = np.zeros((len(self.query_ids), len(names)), bool)
        listed = (self.first_stage >= 0) & (self.modality > 0)
        has[self.query[listed], self.modality[listed]] = True
        count = has.sum(axis=1)
        of_candidates = np.where(count == 0, "nothing", np.where(count > 1, "mixed", names[has.argmax(axis=1)]))
        of_query = names[self.query_modality]
        return [f"{query}→{docs}" for query, docs in zip(of_query.tolist(), of_candidates.tolist(), strict=True)]


def pair_up(rows: pa.Table) -> Pairs:
    """Pairs of the rows (ROWS, sorted by query and document) of whole queries.

    A pair with several rows of a table counts once: at its better rank or score, and with its higher judgement.
    """
    rows = rows.combine_chunks()
    starts = _changes(rows["query_id"])
    query_of_row = np.cumsum(starts) - 1
    is_query = rows["table"].to_numpy() == InputTable.QUERY
    query_ids = rows["query_id"].filter(pa.array(starts)).to_pylist()
    query_columns = _of_queries(rows.filter(pa.array(is_query)), query_of_row[is_query], len(query_ids))
    pairs, query = rows.filter(pa.array(~is_query)), query_of_row[~is_query]
    first_rows = _changes(pairs["doc_id"])
    first_rows[1:] |= query[1:] != query[:-1]
    query, pair, tables = query[first_rows], np.cumsum(first_rows) - 1, pairs["table"].to_numpy()
    values = {
        name: pc.fill_null(pc.cast(pairs[name], pa.float64()), float("nan")).to_numpy()
        for name in ("rank", "score", "relevance", "grade", "modality")
    }

    def listed(table: InputTable) -> Bools:
        """(P,) whether a pair has a row of a table."""
        return np.bincount(pair[tables == table], minlength=len(query)) > 0

    def largest(name: str, table: InputTable, sign: int = 1) -> Floats:
        """(P,) the largest value of each pair's rows of a table, or of the negative values; NaN where there is none."""
        chosen = (tables == table) & ~np.isnan(values[name])
        result = np.full(len(query), -np.inf)
        np.maximum.at(result, pair[chosen], sign * values[name][chosen])
        return np.where(np.isneginf(result), np.nan, result)

    def whole(name: str, table: InputTable) -> Ints:
        return np.nan_to_num(largest(name, table)).astype(np.int64)

    def ranks(table: InputTable, *scores: Floats) -> Ints:
        return _ranks(query, listed(table), largest("rank", table, -1), *scores)

    first_stage_score = largest("score", InputTable.CANDIDATE)
    return Pairs(
        query_ids,
        *query_columns,
        query=query,
        doc_ids=pairs["doc_id"].filter(pa.array(first_rows)).combine_chunks(),
        judged=listed(InputTable.QREL),
        judgement=whole("grade", InputTable.QREL),
        modality=whole("modality", InputTable.CANDIDATE),
        first_stage_score=first_stage_score,
        first_stage=ranks(InputTable.CANDIDATE, first_stage_score),
        ranked=ranks(InputTable.RANKED),
        baseline=ranks(InputTable.BASELINE),
        logit=largest("score", InputTable.RANKED),
        relevance=largest("relevance", InputTable.RANKED),
        label=whole("grade", InputTable.RANKED),
    )


def _ranks(query: Ints, listed: Bools, *keys: Floats) -> Ints:
    """Ranks from 0 in each query's list, -1 for unlisted pairs: by falling keys, unknown ones last, then by id."""
    chosen = np.flatnonzero(listed)
    # Stable: ids, which rise, decide last.
    ordered = chosen[np.lexsort((*(-key[chosen] for key in reversed(keys)), query[chosen]))]
    ranks = np.full(len(query), -1, np.int64)
    ranks[ordered] = np.arange(len(ordered)) - np.searchsorted(query[ordered], query[ordered])
    return ranks


def _of_queries(rows: pa.Table, query: Ints, queries: int) -> tuple[list[Mapping[str, str]], Bools, Ints]:
    """Labels, presence in the queries table, and modality of each query; of rows that share an id one counts."""
    labels: list[Mapping[str, str]] = [{}] * queries
    known, modality = np.zeros(queries, bool), np.zeros(queries, np.int64)
    values = zip(rows["labels"].to_pylist(), rows["modality"].to_pylist(), strict=True)
    for number, (text, code) in sorted(zip(query.tolist(), values, strict=True), reverse=True):
        labels[number], known[number], modality[number] = _parsed(text or "{}"), True, code or 0
    return labels, known, modality


@lru_cache(maxsize=10_000)
def _parsed(labels: str) -> Mapping[str, str]:
    return dict(json.loads(labels))


def _changes(column: pa.ChunkedArray) -> Bools:
    """Where a value differs from the one before it; the first does."""
    if not len(column):
        return np.zeros(0, bool)
    return np.append(True, pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy())
