"""The measures of ranked lists, computed by trec_eval from the ranks of the judged documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytrec_eval
from ir_measures import AP, RR, Judged, R, Success, nDCG

from lakerank.evaluation.metrics.gain import Floats, Ints, random_baseline, ratio

#: The measures and their names, in the order of a figures array's columns. Gains and cut-offs are trec_eval's.
MEASURES = {
    nDCG @ 5: "nDCG@5",
    nDCG @ 10: "nDCG@10",
    R @ 10: "Recall@10",
    R @ 100: "Recall@100",
    RR @ 10: "RR@10",
    AP: "AP",
    Success @ 5: "Success@5",
    Success @ 10: "Success@10",
    Judged @ 10: "Judged@10",
}
NAMES = tuple(MEASURES.values())

#: The measure in headlines and sort orders, and the one shown beside it.
PRIMARY = "nDCG@10"
SECONDARY = "Recall@10"

#: trec_eval's names of the measures that it computes. RR@10 is its reciprocal rank within the first ten documents.
_TREC_EVAL = {
    "nDCG@5": "ndcg_cut_5",
    "nDCG@10": "ndcg_cut_10",
    "Recall@10": "recall_10",
    "Recall@100": "recall_100",
    "AP": "map",
    "Success@5": "success_5",
    "Success@10": "success_10",
}
_TREC_EVAL_MEASURES = {"ndcg_cut.5,10", "recall.10,100", "map", "success.5,10", "recip_rank"}

#: Queries passed to trec_eval in one call.
_BATCH_QUERIES = 20_000


@dataclass(frozen=True, slots=True)
class QueryFigures:
    """Figures of Q queries: (Q, M) of each list, (Q, len(RANDOM_BASELINE)) of a random order of the candidates.

    `first_stage` is None where candidates have no order, `baseline` where there is no baseline run.
    """

    reranked: Floats
    first_stage: Floats | None
    random: Floats
    baseline: Floats | None = None

    @property
    def lists(self) -> dict[str, Floats]:
        """The figures of each list by its name."""
        lists = {"reranked": self.reranked, "first_stage": self.first_stage, "baseline": self.baseline}
        return {name: table for name, table in lists.items() if table is not None}

    def take(self, queries: npt.NDArray[np.int64]) -> QueryFigures:
        """Those of some of the queries."""
        first, baseline = (None if table is None else table[queries] for table in (self.first_stage, self.baseline))
        return QueryFigures(self.reranked[queries], first, self.random[queries], baseline)

    @classmethod
    def concatenate(cls, parts: Sequence[QueryFigures]) -> QueryFigures:
        """The figures of all parts' queries in order. The parts have the same lists, and there is one at least."""
        lists = {name: np.concatenate([part.lists[name] for part in parts]) for name in parts[0].lists}
        random = np.concatenate([part.random for part in parts])
        return cls(lists["reranked"], lists.get("first_stage"), random, lists.get("baseline"))

    @property
    def gain(self) -> Floats:
        """(Q,) change of the primary measure over the first stage, or over the random baseline where there is none."""
        column = NAMES.index(PRIMARY)
        before = self.random[:, 1] if self.first_stage is None else self.first_stage[:, column]
        return self.reranked[:, column] - before


def list_figures(lists: Sequence[Sequence[str]], judgements: Sequence[Mapping[str, int]]) -> Floats:
    """Figures of Q lists of document ids, best first, each with its query's judgements by document: (Q, M)."""
    return figures([len(doc_ids) for doc_ids in lists], *_judgement_columns(lists, judgements))


def list_random_baseline(candidates: Sequence[Sequence[str]], judgements: Sequence[Mapping[str, int]]) -> Floats:
    """Expected figures of a random order of each query's candidates: (Q, len(RANDOM_BASELINE))."""
    query, rank, grade = _judgement_columns(candidates, judgements)
    return random_baseline(np.array([len(doc_ids) for doc_ids in candidates], np.int64), query, grade, rank >= 0)


def _judgement_columns(
    lists: Sequence[Sequence[str]], judgements: Sequence[Mapping[str, int]]
) -> tuple[Ints, Ints, Ints]:
    """The list, the rank in it (-1 where it is not listed), and the grade of each judged document: (J,) each."""
    ranks = [{doc_id: rank for rank, doc_id in enumerate(doc_ids)} for doc_ids in lists]
    rows = [
        (query, ranks[query].get(doc_id, -1), grade)
        for query, grades in enumerate(judgements)
        for doc_id, grade in grades.items()
    ]
    query, rank, grade = np.array(rows, np.int64).reshape(-1, 3).T
    return query, rank, grade


def figures(lengths: Sequence[int] | Ints, query: Ints, rank: Ints, relevance: Ints) -> Floats:
    """Figures of Q lists: (Q, M), equal to ir_measures', from trec_eval's own code.

    A list is given by its length and the ranks of its judged documents. trec_eval reads documents named by their ranks
    with falling scores, so there are no ties for it to break by name. A judgement below 0 counts as 0. A list without
    documents scores 0, as with `trec_eval -c`. ir_measures takes four times as long: it makes one Python object a
    figure. The tests hold both equal.

    Args:
        lengths: (Q,) documents in each list.
        query: (J,) the list, 0 ≤ query < Q, of each judgement, ascending.
        rank: (J,) the judged document's rank in the list, from 0; -1 where it is not listed.
        relevance: (J,) the judgement.
    """
    lengths = np.asarray(lengths, np.int64)
    table = np.zeros((len(lengths), len(MEASURES)))
    for first in range(0, len(lengths), _BATCH_QUERIES):
        last = min(first + _BATCH_QUERIES, len(lengths))
        batch = slice(*np.searchsorted(query, [first, last]))
        _fill(table, range(first, last), lengths, (query[batch], rank[batch], relevance[batch]))
    judged_in_ten = np.bincount(query[(rank >= 0) & (rank < 10)], minlength=len(lengths))
    table[:, NAMES.index("Judged@10")] = ratio(judged_in_ten, np.minimum(lengths, 10))
    return table


def _fill(table: Floats, queries: range, lengths: Ints, judgements: tuple[Ints, Ints, Ints]) -> None:
    """Fill in trec_eval's measures for some of the lists."""
    query, rank, relevance = judgements
    qrels: dict[str, dict[str, int]] = {str(number): {} for number in queries}
    for row, (number, position, grade) in enumerate(zip(*(part.tolist() for part in judgements), strict=True)):
        qrels[str(number)][str(position) if position >= 0 else f"absent {row}"] = max(grade, 0)
    best_rank = np.full(len(lengths), np.iinfo(np.int64).max)
    is_hit = (relevance > 0) & (rank >= 0)
    np.minimum.at(best_rank, query[is_hit], rank[is_hit])
    run = {str(number): _documents(int(lengths[number])) for number in queries if lengths[number]}
    columns = [(NAMES.index(name), trec_name) for name, trec_name in _TREC_EVAL.items()]
    reciprocal_rank = NAMES.index("RR@10")
    for name, values in pytrec_eval.RelevanceEvaluator(qrels, _TREC_EVAL_MEASURES).evaluate(run).items():
        row_of_query = table[int(name)]
        for column, trec_name in columns:
            row_of_query[column] = values[trec_name]
        row_of_query[reciprocal_rank] = values["recip_rank"] if best_rank[int(name)] < 10 else 0.0


@lru_cache(maxsize=4096)
def _documents(length: int) -> dict[str, float]:
    """A list of documents named by their ranks, as a run: shared by all lists of one length."""
    return {str(rank): float(-rank) for rank in range(length)}
