"""One file of lists made from the results of several passes: what each scorer said of a pair meets, and is combined."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.fusion import Fusion, cascade_order, fused, last_scorer, list_order, mean_relevance
from lakerank.ranking import labels, ranks, relevance
from lakerank.schemas import COMBINED, REJECTED
from lakerank.spark.rank.write import SCORED, Listed, first_stage_ranks

#: What a pass found out about a pair: SCORED, or without `logit` why it could not be scored.
STAGE_RESULTS = pa.schema([*SCORED, ("pass", pa.int8()), ("reason", pa.string()), ("detail", pa.string())])

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class FusionRule:
    """How the logits of several passes become relevance, labels and ranks; without `fusion` they are a cascade."""

    logit_biases: tuple[float, ...]
    fusion: Fusion | None
    thresholds: tuple[float, ...]
    depth: int | None


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The distinct pairs (P,) of some results, sorted by query and doc_id, and what each pass (S) has of them.

    `row` (S, P) is where a pass's result of a pair stands in the results, -1 for none.
    """

    query: Int64
    document: Int64
    row: Int64
    logits: Float32

    @property
    def any_row(self) -> Int64:
        """A result of each pair, of whichever pass: (P,)."""
        return np.asarray(self.row.max(axis=0))

    @property
    def refused(self) -> Int64:
        """The result of the first pass that could not score the pair: (P,), -1 for none."""
        rejected = (self.row >= 0) & np.isnan(self.logits)
        first = rejected.argmax(axis=0)
        return np.where(rejected.any(axis=0), self.row[first, np.arange(len(first))], -1)

    def only(self, kept: Bools | Int64) -> _Pairs:
        """Some of the pairs."""
        return _Pairs(self.query[kept], self.document[kept], self.row[:, kept], self.logits[:, kept])


def combine(results: pa.Table, ids: tuple[int, pa.Array], rule: FusionRule) -> tuple[Listed, pa.Table]:
    """The list of a run of several passes, and the pairs (REJECTED) that none of them could score.

    Args:
        results: STAGE_RESULTS.
        ids: the number of the file's first query, and the ids of all its queries.
    """
    results = results.combine_chunks()
    pairs = _met(results, len(rule.logit_biases))
    scored: Bools = np.asarray(~np.isnan(pairs.logits).all(axis=0))
    table = _ranked(results, pairs.only(scored), ids, rule)
    mine: Bools = np.asarray((_of_pairs(results["own"], pairs.row) & (pairs.row >= 0)).any(axis=0))
    own = int(mine[scored].sum())
    return Listed(table, own, rule.fusion is not None, _counts(results)), _rejects(results, pairs.only(~scored), ids)


def _met(results: pa.Table, passes: int) -> _Pairs:
    query = results["query"].to_numpy().astype(np.int64)
    coded = results["doc_id"].combine_chunks().dictionary_encode()
    ordinal = np.empty(len(coded.dictionary), np.int64)
    ordinal[pc.sort_indices(coded.dictionary).to_numpy()] = np.arange(len(coded.dictionary))
    document = ordinal[coded.indices.to_numpy()]
    keys, at = np.unique(query * max(1, len(ordinal)) + document, return_inverse=True)
    number = results["pass"].to_numpy().astype(np.int64) - 1
    row = np.full((passes, len(keys)), -1, np.int64)
    row[number, at] = np.arange(results.num_rows)
    logits = np.full((passes, len(keys)), np.nan, np.float32)
    logits[number, at] = results["logit"].fill_null(np.nan).to_numpy()
    query, document = np.divmod(keys, max(1, len(ordinal)))
    return _Pairs(query, document, row, logits)


def _ranked(results: pa.Table, pairs: _Pairs, ids: tuple[int, pa.Array], rule: FusionRule) -> pa.Table:
    """Pairs that some pass scored, as COMBINED, in order."""
    first, names = ids
    relevances = np.stack([relevance(own, bias) for own, bias in zip(pairs.logits, rule.logit_biases, strict=True)])
    if rule.fusion is not None:
        score = fused(pairs.query, pairs.logits, pairs.document, rule.fusion)
        shown = mean_relevance(relevances, rule.fusion.weights)
        order = list_order(pairs.query, score, pairs.document)
        of = ~np.isnan(pairs.logits)
    else:
        last = last_scorer(pairs.logits)
        each = np.arange(len(last))
        score, shown = pairs.logits[last, each], relevances[last, each]
        order = cascade_order(pairs.query, last, score, pairs.document)
        of = np.arange(len(pairs.logits))[:, None] == last
    truncated: Bools = np.asarray((_of_pairs(results["truncated"], pairs.row) & of).any(axis=0))
    pairs, score, shown = pairs.only(order), score[order], shown[order]
    rows = results.take(pa.array(pairs.any_row))
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
        "reason": _taken(results["reason"], pairs.refused),
    }
    return pa.Table.from_arrays([columns[name] for name in COMBINED.names], schema=COMBINED)


def _of_pairs(column: pa.ChunkedArray, row: Int64) -> Bools:
    """A flag of each pass's result of each pair: (S, P); of no meaning where there is none."""
    flags = np.append(column.to_numpy(zero_copy_only=False), False).astype(bool)
    return np.asarray(flags[row])


def _scored_by(logits: Float32) -> pa.ListArray:
    """The numbers of the passes that have a logit for each pair."""
    pair, number = np.nonzero(~np.isnan(logits.T))
    offsets = np.searchsorted(pair, np.arange(logits.shape[1] + 1)).astype(np.int32)
    kind = COMBINED.field("scored_by").type
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array((number + 1).astype(np.int8)), type=kind)


def _taken(column: pa.ChunkedArray, rows: Int64) -> pa.Array:
    """Values of some rows, null where the row is -1."""
    return column.combine_chunks().take(pa.array(rows, mask=rows < 0))


def _rejects(results: pa.Table, pairs: _Pairs, ids: tuple[int, pa.Array]) -> pa.Table:
    """Pairs that no pass could score, with what the first said."""
    first, names = ids
    rows = results.take(pa.array(pairs.refused))
    columns = {"query_id": names.take(pa.array(pairs.query - first))}
    arrays = [columns[name] if name in columns else rows[name] for name in REJECTED.names]
    return pa.Table.from_arrays(arrays, schema=REJECTED)


def _counts(results: pa.Table) -> dict[str, int]:
    """Each pass's results, by its number, and by its number and the reason of those without a score."""
    groups = results.group_by(["pass", "reason"]).aggregate([([], "count_all")]).to_pylist()
    found: Counter[str] = Counter()
    for group in groups:
        number, reason = group["pass"], group["reason"]
        found[f"{number}" if reason is None else f"{number} {reason}"] += group["count_all"]
    return dict(found)
