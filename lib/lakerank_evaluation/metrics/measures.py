"""The measures of ranked lists, computed by trec_eval from the ranks of the judged documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytrec_eval

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: The measures, in the order of a figures array's columns. Gains and cut-offs are trec_eval's.
NAMES = ("nDCG@5", "nDCG@10", "Recall@10", "Recall@100", "RR@10", "AP", "Success@5", "Success@10", "Judged@10")

#: trec_eval's names of all of them but the last.
_TREC_EVAL = ("ndcg_cut_5", "ndcg_cut_10", "recall_10", "recall_100", "recip_rank", "map", "success_5", "success_10")

#: The measure in headlines and sort orders, and the one shown beside it.
PRIMARY = "nDCG@10"
SECONDARY = "Recall@10"

#: The column of the primary measure; the random baseline's first columns are those of the measures.
_PRIMARY_COLUMN = NAMES.index(PRIMARY)

#: Measures of the random baseline, in the order of its columns.
RANDOM_BASELINE = NAMES[:4]

#: Queries passed to trec_eval in one call.
_BATCH_QUERIES = 20_000


@dataclass(frozen=True, slots=True)
class QueryFigures:
    """Figures of Q queries: (Q, M) of each list, (Q, len(RANDOM_BASELINE)) of a random order of the candidates.

    Lists: `reranked`, `first_stage` where the candidates have an order, `baseline` where there is a baseline run, and
    `ceiling`, a perfect order of the candidates, where somebody asks.
    """

    lists: Mapping[str, Floats]
    random: Floats

    def take(self, queries: Ints) -> QueryFigures:
        """Those of some of the queries."""
        return QueryFigures({name: table[queries] for name, table in self.lists.items()}, self.random[queries])

    @classmethod
    def concatenate(cls, parts: Sequence[QueryFigures]) -> QueryFigures:
        """The figures of all parts' queries in order. The parts have the same lists, and there is one at least."""
        lists = {name: np.concatenate([part.lists[name] for part in parts]) for name in parts[0].lists}
        return cls(lists, np.concatenate([part.random for part in parts]))

    @property
    def gain(self) -> Floats:
        """(Q,) change of the primary measure over the first stage, or over the random baseline where there is none."""
        before = self.lists.get("first_stage", self.random)
        return self.lists["reranked"][:, _PRIMARY_COLUMN] - before[:, _PRIMARY_COLUMN]


def list_figures(lists: Sequence[Sequence[str]], judgements: Sequence[Mapping[str, int]]) -> Floats:
    """Figures of Q lists of document ids, best first, each with its query's judgements by document: (Q, M)."""
    return figures([len(doc_ids) for doc_ids in lists], *_judgement_columns(lists, judgements))


def list_random_baseline(candidates: Sequence[Sequence[str]], judgements: Sequence[Mapping[str, int]]) -> Floats:
    """Expected figures of a random order of each query's candidates: (Q, len(RANDOM_BASELINE))."""
    query, rank, grade = _judgement_columns(candidates, judgements)
    return random_baseline(np.array([len(doc_ids) for doc_ids in candidates], np.int64), query, grade, rank >= 0)


def _judgement_columns(lists: Sequence[Sequence[str]], judgements: Sequence[Mapping[str, int]]) -> Ints:
    """The list, the rank in it (-1 where it is not listed), and the grade of each judged document: (3, J)."""
    ranks = [{doc_id: rank for rank, doc_id in enumerate(doc_ids)} for doc_ids in lists]
    rows = [
        (query, ranks[query].get(doc_id, -1), grade)
        for query, grades in enumerate(judgements)
        for doc_id, grade in grades.items()
    ]
    return np.array(rows, np.int64).reshape(-1, 3).T


def figures(lengths: Sequence[int] | Ints, query: Ints, rank: Ints, relevance: Ints) -> Floats:
    """Figures of Q lists: (Q, M), equal to ir_measures' (the tests see to it), from trec_eval's own code.

    A list is given by its length and the ranks of its judged documents. trec_eval reads documents named by their ranks
    with falling scores, so there are no ties for it to break by name. A judgement below 0 counts as 0. A list without
    documents scores 0, as with `trec_eval -c`.

    Args:
        lengths: (Q,) documents in each list.
        query: (J,) the list, 0 ≤ query < Q, of each judgement, ascending.
        rank: (J,) the judged document's rank in the list, from 0; -1 where it is not listed.
        relevance: (J,) the judgement.
    """
    lengths = np.asarray(lengths, np.int64)
    table = np.zeros((len(lengths), len(NAMES)))
    for first in range(0, len(lengths), _BATCH_QUERIES):
        numbers = range(first, min(first + _BATCH_QUERIES, len(lengths)))
        run = {str(number): _documents(int(lengths[number])) for number in numbers if lengths[number]}
        qrels: dict[str, dict[str, int]] = {str(number): {} for number in numbers}
        rows = range(*np.searchsorted(query, [first, first + _BATCH_QUERIES]))
        for row, number, position, grade in zip(
            rows, *(part[rows.start : rows.stop].tolist() for part in (query, rank, relevance)), strict=True
        ):
            qrels[str(number)][str(position) if position >= 0 else f"absent {row}"] = max(grade, 0)
        for name, values in pytrec_eval.RelevanceEvaluator(qrels, set(_TREC_EVAL)).evaluate(run).items():
            table[int(name), : len(_TREC_EVAL)] = [values[trec_name] for trec_name in _TREC_EVAL]
    reciprocal_rank = table[:, NAMES.index("RR@10")]
    reciprocal_rank[reciprocal_rank < 1 / 10] = 0  # trec_eval's is of the whole list
    judged_in_ten = np.bincount(query[(rank >= 0) & (rank < 10)], minlength=len(lengths))
    table[:, NAMES.index("Judged@10")] = _ratio(judged_in_ten, np.minimum(lengths, 10))
    return table


@lru_cache(maxsize=4096)
def _documents(length: int) -> dict[str, float]:
    """A list of documents named by their ranks, as a run: shared by all lists of one length."""
    return {str(rank): float(-rank) for rank in range(length)}


def random_baseline(candidates: Ints, query: Ints, relevance: Ints, is_candidate: Bools) -> Floats:
    """Expected figures of a random order of the candidates, exactly: (Q, len(RANDOM_BASELINE)).

    Every candidate is equally likely at every rank, so the expected gain at each is the mean gain of the candidates,
    and E[DCG@k] = mean gain × Σ_{i ≤ min(k, n)} 1 / log2(i + 1). The ideal DCG is that of all judgements.

    Args:
        candidates: (Q,) candidates of each query.
        query, relevance, is_candidate: (J,) each judgement's query, ascending; its grade; whether its document is a
            candidate.
    """
    queries = len(candidates)
    gain = np.maximum(relevance, 0).astype(np.float64)
    order = np.lexsort((-gain, query))
    starts = np.searchsorted(query, np.arange(queries))
    discount = 1 / np.log2(np.arange(len(query)) - starts[query] + 2)  # of each judgement at its ideal rank
    candidate_gain = np.bincount(query, gain * is_candidate, queries)
    relevant_candidates = np.bincount(query, (gain > 0) & is_candidate, queries)
    relevant = np.bincount(query, gain > 0, queries)
    columns = []
    for depth in (5, 10):
        counted = np.where(discount >= 1 / np.log2(depth + 1) - 1e-12, discount, 0)
        ideal = np.bincount(query[order], gain[order] * counted, queries)
        sums = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(depth) + 2))])
        expected = _ratio(candidate_gain, candidates) * sums[np.minimum(candidates, depth)]
        columns.append(_ratio(expected, ideal))
    for depth in (10, 100):
        share_listed = _ratio(np.minimum(candidates, depth), candidates)
        columns.append(_ratio(share_listed * relevant_candidates, relevant))
    return np.stack(columns, axis=1)


def perfect_ranks(query: Ints, relevance: Ints, is_candidate: Bools) -> Ints:
    """(J,) the rank of each judged document in the best order of the candidates, from 0; -1 for other documents.

    `query`, `relevance` and `is_candidate` are (J,) as in `random_baseline`.
    """
    order = np.lexsort((-relevance, ~is_candidate, query))
    ranks = np.empty(len(query), np.int64)
    ranks[order] = np.arange(len(query)) - np.searchsorted(query, query[order])
    return np.where(is_candidate, ranks, -1)


def _ratio(part: Floats | Ints, whole: Floats | Ints) -> Floats:
    """part / whole element by element, 0 where whole is 0."""
    result: Floats = np.divide(part, whole, out=np.zeros(len(part)), where=whole != 0)
    return result
