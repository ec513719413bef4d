"""Combines the results of several scorers, a cascade's stages or an ensemble, into one file of ranked lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.ranking import (
    Fusion,
    cascade_order,
    fused,
    labels,
    last_scorer,
    list_order,
    mean_relevance,
    ranks,
    relevance,
)
from lakerank.rerank.rank.write import SCORED, Duplicates, FileLists, first_stage_ranks
from lakerank.schemas import COMBINED, MEMBERSHIPS, REJECTED

#: A stage's result for a pair: SCORED, or without `logit` why it could not be scored. Stages count from 1.
STAGE_RESULTS = pa.schema([*SCORED, ("stage", pa.int8()), ("reason", pa.string()), ("detail", pa.string())])

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class FusionRule:
    """How the logits of several scorers become relevance, labels and ranks; without `fusion` they are a cascade's."""

    logit_biases: tuple[float, ...]
    fusion: Fusion | None
    thresholds: tuple[float, ...]
    depth: int | None
    per_group: int | None = None
    duplicates: Duplicates = "keep"


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The distinct pairs (P,) of some results, sorted by query and doc_id, and each stage's (S) result for them.

    `row` (S, P) is the row of a stage's result for a pair, -1 for none.
    """

    query: Int64
    document: Int64
    row: Int64
    logits: Float32

    @property
    def refused(self) -> Int64:
        """The row of the first stage that could not score the pair: (P,), -1 for none."""
        rejected = (self.row >= 0) & np.isnan(self.logits)
        first = rejected.argmax(axis=0)
        return np.where(rejected.any(axis=0), self.row[first, np.arange(len(first))], -1)

    def take(self, chosen: Bools | Int64) -> _Pairs:
        """Some of the pairs."""
        return _Pairs(self.query[chosen], self.document[chosen], self.row[:, chosen], self.logits[:, chosen])


def combine(results: pa.Table, ids: tuple[int, pa.Array], rule: FusionRule) -> tuple[FileLists, pa.Table]:
    """The lists of a run of several scorers; and the pairs (REJECTED) that none could score, with the first's reason.

    Args:
        results: STAGE_RESULTS.
        ids: the number of the file's first query, and the ids of all its queries.
    """
    results = results.combine_chunks()
    pairs = _pairs(results, len(rule.logit_biases))
    scored: Bools = np.asarray(~np.isnan(pairs.logits).all(axis=0))
    table = _ranked(results, pairs.take(scored), ids, rule)
    new: Bools = np.asarray((_flags(results["new"], pairs.row) & (pairs.row >= 0)).any(axis=0))
    counts = results.group_by(["stage", "reason"]).aggregate([([], "count_all")]).rename_columns({"count_all": "count"})
    lists = FileLists(table, int(new[scored].sum()), rule.fusion is not None, counts.to_pylist())
    rejected, (first, names) = pairs.take(~scored), ids
    rows = results.take(pa.array(rejected.refused))
    rows = rows.append_column("query_id", names.take(pa.array(rejected.query - first)))
    return lists, rows.select(REJECTED.names).cast(REJECTED)


def _pairs(results: pa.Table, stages: int) -> _Pairs:
    query = results["query"].to_numpy().astype(np.int64)
    coded = results["doc_id"].combine_chunks().dictionary_encode()
    ordinal = pc.rank(coded.dictionary).to_numpy().astype(np.int64) - 1
    document = ordinal[coded.indices.to_numpy()]
    keys, at = np.unique(query * max(1, len(ordinal)) + document, return_inverse=True)
    stage = results["stage"].to_numpy().astype(np.int64) - 1
    row = np.full((stages, len(keys)), -1, np.int64)
    row[stage, at] = np.arange(results.num_rows)
    logits = np.full((stages, len(keys)), np.nan, np.float32)
    logits[stage, at] = results["logit"].fill_null(np.nan).to_numpy()
    query, document = np.divmod(keys, max(1, len(ordinal)))
    return _Pairs(query, document, row, logits)


def _ranked(results: pa.Table, pairs: _Pairs, ids: tuple[int, pa.Array], rule: FusionRule) -> pa.Table:
    """Pairs that some stage scored, as COMBINED and MEMBERSHIPS, in order."""
    first, names = ids
    scorers = zip(pairs.logits, rule.logit_biases, strict=True)
    relevances = np.stack([relevance(logits, bias) for logits, bias in scorers])
    if rule.fusion is not None:
        score = fused(pairs.query, pairs.logits, pairs.document, rule.fusion)
        shown = mean_relevance(relevances, rule.fusion.weights)
        order = list_order(pairs.query, score, pairs.document)
        counted = ~np.isnan(pairs.logits)
    else:
        last = last_scorer(pairs.logits)
        each = np.arange(len(last))
        score, shown = pairs.logits[last, each], relevances[last, each]
        order = cascade_order(pairs.query, last, score, pairs.document)
        counted = np.arange(len(pairs.logits))[:, None] == last
    truncated: Bools = np.asarray((_flags(results["truncated"], pairs.row) & counted).any(axis=0))
    pairs, score, shown = pairs.take(order), score[order], shown[order]
    rows = results.take(pa.array(pairs.row.max(axis=0)))  # some stage's result for each pair
    columns = {
        "query_id": names.take(pa.array(pairs.query - first)),
        "doc_id": rows["doc_id"],
        "rank": pa.array(ranks(np.diff(pairs.query, prepend=-1) != 0)),
        "logit": pa.array(score),
        "relevance": pa.array(shown),
        "label": pa.array(labels(shown, rule.thresholds)),
        "first_stage_rank": first_stage_ranks(rows["rank"]),
        "truncated": pa.array(truncated[order]),
        "scored_by": _scored_by(pairs.logits),
        "reason": results["reason"].combine_chunks().take(pa.array(pairs.refused, mask=pairs.refused < 0)),
        **{name: rows[name] for name in MEMBERSHIPS.names},
    }
    schema = pa.schema([*COMBINED, *MEMBERSHIPS])
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _flags(column: pa.ChunkedArray, row: Int64) -> Bools:
    """A flag of each stage's result for each pair: (S, P); meaningless where there is none."""
    flags = np.append(column.to_numpy(zero_copy_only=False), False).astype(bool)
    return np.asarray(flags[row])


def _scored_by(logits: Float32) -> pa.ListArray:
    """The numbers of the stages that have a logit for each pair."""
    pair, number = np.nonzero(~np.isnan(logits.T))
    offsets = np.searchsorted(pair, np.arange(logits.shape[1] + 1)).astype(np.int32)
    kind = COMBINED.field("scored_by").type
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array((number + 1).astype(np.int8)), type=kind)
