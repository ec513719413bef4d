"""Whole queries with all their pairs as columns, built from the rows of every table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank import schemas
from lakerank_evaluation.metrics.measures import Bools, Floats, Ints

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


_KEYS = ["query_id", "doc_id"]

#: The columns that are read of the tables of pairs.
PAIR_COLUMNS: dict[int, pa.Schema] = {
    table: pa.schema([(name, schema.field(name).type) for name in (*_KEYS, *names)])
    for table, schema, names in (
        (InputTable.QREL, schemas.QRELS, ("relevance",)),
        (InputTable.CANDIDATE, schemas.CANDIDATES, ("first_stage_rank", "first_stage_score")),
        (InputTable.RANKED, schemas.RANKED, ("rank", "logit", "relevance", "label")),
        (InputTable.BASELINE, schemas.RANKED, ("rank",)),
    )
}

#: The columns of joined tables by where they are from: a pair with several rows of a table counts once, at its better
#: rank or score, and with its higher judgement.
_JOINED: dict[InputTable, dict[str, tuple[str | list[str], str]]] = {
    InputTable.QREL: {"judged": ([], "count_all"), "judgement": ("relevance", "max")},
    InputTable.CANDIDATE: {
        "listed": ([], "count_all"), "first_stage_rank": ("first_stage_rank", "min"),
        "first_stage_score": ("first_stage_score", "max"), "modality": ("modality", "max"),
    },
    InputTable.RANKED: {
        "rank": ("rank", "min"), "logit": ("logit", "max"), "relevance": ("relevance", "max"), "label": ("label", "max")
    },
    InputTable.BASELINE: {"baseline": ("rank", "min")},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pairs:
    """Q queries, with columns of labels, and their P pairs. Every array from `query` on is (P,), in the order of ids.

    `first_stage`, `ranked` and `baseline` are ranks from 0 in the first stage's list, the run's, and the baseline
    run's; -1 where the document is not listed. `judgement` is 0 where `judged` is false. Unknown values are NaN.
    """

    query_ids: list[str]
    labels: pa.Table
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


def joined(tables: Mapping[int, pa.Table]) -> pa.Table:
    """The rows of qrels, candidates (with a column `modality`) and lists as one row a pair, sorted by its ids."""
    grouped = [
        tables[table].group_by(_KEYS).aggregate(list(columns.values())).rename_columns([*_KEYS, *columns])
        for table, columns in _JOINED.items()
    ]
    pairs = reduce(lambda one, other: one.join(other, _KEYS, join_type="full outer"), grouped)
    return pairs.sort_by([(key, "ascending") for key in _KEYS])


def pair_up(queries: pa.Table, rows: pa.Table) -> Pairs:
    """Pairs of whole queries: of `rows` as of `joined`; `queries` has their ids, modalities and labels.

    Of rows that share a query's id the smallest values count.
    """
    names = queries.column_names[1:]
    known = queries.group_by("query_id").aggregate([(name, "min") for name in names])
    known = known.rename_columns(["query_id", *names]).combine_chunks()
    ids = pc.unique(pa.chunked_array([*known["query_id"].chunks, *rows["query_id"].chunks], pa.string())).sort()
    labels = known.take(pc.index_in(ids, value_set=known["query_id"].combine_chunks()))
    query = pc.index_in(rows["query_id"], value_set=ids).to_numpy().astype(np.int64)

    def floats(name: str) -> Floats:
        return np.asarray(pc.fill_null(pc.cast(rows[name], pa.float64()), float("nan")), np.float64)

    def whole(name: str, table: pa.Table = rows) -> Ints:
        return np.asarray(pc.fill_null(table[name], 0), np.int64)

    def ranks(listed: str, rank: str, *scores: Floats) -> Ints:
        return _ranks(query, rows[listed].is_valid().to_numpy(), -floats(rank), *scores)

    first_stage_score = floats("first_stage_score")
    return Pairs(
        ids.to_pylist(),
        labels.drop_columns(["query_id", "modality"]),
        is_known=labels["query_id"].is_valid().to_numpy(),
        query_modality=whole("modality", labels),
        query=query,
        doc_ids=rows["doc_id"].combine_chunks(),
        judged=rows["judged"].is_valid().to_numpy(),
        judgement=whole("judgement"),
        modality=whole("modality"),
        first_stage_score=first_stage_score,
        first_stage=ranks("listed", "first_stage_rank", first_stage_score),
        ranked=ranks("rank", "rank"),
        baseline=ranks("baseline", "baseline"),
        logit=floats("logit"),
        relevance=floats("relevance"),
        label=whole("label"),
    )


def _ranks(query: Ints, listed: Bools, *keys: Floats) -> Ints:
    """Ranks from 0 in each query's list, -1 for unlisted pairs: by falling keys, unknown ones last, then by id."""
    chosen = np.flatnonzero(listed)
    # Stable: ids, which rise, decide last.
    ordered = chosen[np.lexsort((*(-key[chosen] for key in reversed(keys)), query[chosen]))]
    ranks = np.full(len(query), -1, np.int64)
    ranks[ordered] = np.arange(len(ordered)) - np.searchsorted(query[ordered], query[ordered])
    return ranks
