"""Position bias: how much the order in which a run's lister is given lists changes the order that it puts them in."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.errors import EvaluationError
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, read_table_file
from lakerank.model.registry import LoadedListReranker
from lakerank.plan.index import query_list
from lakerank.plan.pairs import key_hash
from lakerank.plan.plan import read_part, sources_address
from lakerank.plan.units import GROUPS, planned_groups, unit_rows
from lakerank.records import CandidateList, Document, ScoredPair
from lakerank.rerank.run import Rerank, existing_plans
from lakerank.rerank.score import read_lists
from lakerank.rerank.stage import PlannedStage
from lakerank.schemas import QRELS

#: Documents that are the top of a list.
TOP = 10


def position_bias(storage: Storage, job: Rerank, qrels: str, most: int) -> dict[str, Any]:
    """Score a sample of a run's lists in the order that they were given, reversed and shuffled.

    Returns for the two other orders the means, over `lists`, of Kendall's tau, the share of the first ten that are the
    same, and by how many ranks a document moves; for each order the mean nDCG@10 of the `judged` lists, None without.

    Raises:
        EvaluationError: the run has no stage that scores lists.
        RunConflictError: it was made by another model than the config's.
    """
    planned = existing_plans(storage, job)
    stage = planned[-1].stage
    if stage.limits.listwise is None:
        raise EvaluationError(f"--position-bias: run {job.paths.run_id} has no stage that scores lists; leave it out")
    lists = _sampled(storage, planned, most)
    judgements = _judgements(storage, qrels, [given.query.query_id for given in lists])
    lister = cast(LoadedListReranker, stage.factory(stage.device))
    given = _ranked(lister, lists)
    orders = {"reversed": [of.documents[::-1] for of in lists], "shuffled": [_shuffled(of) for of in lists]}
    figures: dict[str, Any] = {"given": {"nDCG@10": _ndcg(given, judgements)}}
    for name, documents in orders.items():
        ranked = _ranked(lister, [replace(of, documents=d) for of, d in zip(lists, documents, strict=True)])
        figures[name] = _changes(given, ranked) | {"nDCG@10": _ndcg(ranked, judgements)}
    return {"lists": len(given), "judged": len(given.keys() & judgements.keys()), **figures}


def _shuffled(given: CandidateList) -> tuple[Document, ...]:
    return tuple(random.Random(given.query.query_id).sample(given.documents, len(given.documents)))


def _sampled(storage: Storage, planned: Sequence[PlannedStage], most: int) -> list[CandidateList]:
    """The lists of the queries with the lowest hashes of their ids, those of earlier runs' scores as well."""
    first, last = planned[0], planned[-1]
    queries, sample = query_list(storage, first.paths, first.plan), GROUPS.empty_table()
    for folder in (join(last.folder, name) for name in ("groups", "lists")):
        for name in storage.list_names(folder):
            rows = pa.concat_tables([sample, read_part(storage, join(folder, name), GROUPS)])
            numbers = rows["queries"].combine_chunks().flatten()
            hashes = key_hash(queries.column("query_id").take(numbers))
            bound = np.unique(hashes)[:most].max(initial=0)
            sample = rows.filter(pa.array(hashes <= bound))
    sources = sources_address(first.paths, first.plan.attempt)
    return read_lists(storage, last.stage.max_image_bytes, sources, planned_groups(unit_rows(sample, queries)))


def _judgements(storage: Storage, qrels: str, query_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
    judgements: dict[str, dict[str, int]] = {}
    for fragment in fragments(storage, qrels, QRELS):
        for *_, batch in read_table_file(storage, fragment.file, QRELS):
            for row in batch.filter(pc.is_in(batch["query_id"], pa.array(query_ids, pa.string()))).to_pylist():
                judgements.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    return judgements


def _ranked(lister: LoadedListReranker, lists: Sequence[CandidateList]) -> dict[str, list[str]]:
    """The ids of each list's documents, best first, without those that cannot be read; no list is without any."""
    logits: dict[str, dict[str, float]] = {}
    for result in lister.score_lists(lists):
        if isinstance(result, ScoredPair):
            logits.setdefault(result.query_id, {})[result.doc_id] = result.logit
    return {query: sorted(of, key=lambda doc_id: (-of[doc_id], doc_id)) for query, of in logits.items()}


def _changes(given: Mapping[str, list[str]], other: Mapping[str, list[str]]) -> dict[str, float | None]:
    """Means over lists; Kendall's tau of those of two documents and more."""
    from scipy.stats import kendalltau  # of the report's extra

    taus, overlaps, moves = [], [], []
    for query, before in given.items():
        after = other[query]
        rank = {doc_id: number for number, doc_id in enumerate(after)}
        ranks = np.array([rank[doc_id] for doc_id in before])
        overlaps.append(len({*before[:TOP]} & {*after[:TOP]}) / min(TOP, len(before)))
        moves.append(float(np.abs(ranks - np.arange(len(ranks))).mean()))
        if len(before) > 1:
            taus.append(float(kendalltau(np.arange(len(ranks)), ranks).statistic))
    means = {"kendall_tau": taus, "overlap@10": overlaps, "displacement": moves}
    return {name: fmean(values) if values else None for name, values in means.items()}


def _ndcg(ranked: Mapping[str, list[str]], judgements: Mapping[str, Mapping[str, int]]) -> float | None:
    from lakerank.evaluation.metrics.measures import NAMES, list_figures

    judged = [query for query in ranked if query in judgements]
    if not judged:
        return None
    figures = list_figures([ranked[query] for query in judged], [judgements[query] for query in judged])
    return float(figures[:, NAMES.index("nDCG@10")].mean())
