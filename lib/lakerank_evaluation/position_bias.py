"""Position bias: how much the order in which a run's lister is given lists changes the order that it puts them in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from statistics import fmean
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.audit import TOP
from lakerank.errors import EvaluationError
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import fragments, read_table_file
from lakerank.model.registry import LoadedListReranker
from lakerank.plan.index import query_list
from lakerank.plan.pairs import key_hash
from lakerank.plan.plan import read_part, sources_address
from lakerank.plan.units import GROUPS, PlannedGroup, planned_groups, unit_rows
from lakerank.records import CandidateList, ScoredPair
from lakerank.rerank.run import Rerank, planned_stages
from lakerank.rerank.score import read_lists
from lakerank.rerank.stage import PlannedStage
from lakerank.schemas import QRELS
from lakerank_evaluation.metrics.measures import NAMES, list_figures


def position_bias(storage: Storage, job: Rerank, qrels: str, most: int) -> dict[str, Any]:
    """Score a sample of a run's lists in the order that they were given, reversed and shuffled.

    Returns for the two other orders the means, over those `lists` of the `sampled` that can be read, of Kendall's tau,
    the share of the first ten that are the same, and by how many ranks a document moves; for each order the mean
    nDCG@10 of the `judged` lists, None without.

    Raises:
        EvaluationError: the run has no stage that scores lists.
        RunConflictError: it was made by another model than the config's.
    """
    planned = planned_stages(storage, job)
    stage = planned[-1].stage
    if stage.limits.listwise is None:
        raise EvaluationError(f"--position-bias: run {job.paths.run_id} has no stage that scores lists; leave it out")
    sampled = _sampled(storage, planned, most)
    sources = sources_address(planned[0].paths, planned[0].plan.attempt)
    lists = read_lists(storage, sources, stage.max_image_bytes, sampled)
    lister = cast(LoadedListReranker, stage.factory(stage.device))
    orders = {"given": [of.documents for of in lists], "reversed": [of.documents[::-1] for of in lists]}
    orders["shuffled"] = [tuple(Random(of.query.query_id).sample(of.documents, len(of.documents))) for of in lists]
    ranked = {
        name: _ranked(lister, [replace(of, documents=d) for of, d in zip(lists, documents, strict=True)])
        for name, documents in orders.items()
    }
    judgements = _judgements(storage, qrels, [*ranked["given"]])
    figures = {name: _changes(ranked["given"], ranked[name]) for name in ("reversed", "shuffled")}
    for name, of_query in ranked.items():
        of_lists = list_figures([of_query[query] for query in judgements], [*judgements.values()])
        ndcg = of_lists[:, NAMES.index("nDCG@10")].tolist()
        figures.setdefault(name, {})["nDCG@10"] = fmean(ndcg) if ndcg else None
    counts = {"sampled": len({group.queries[0].query_id for group in sampled}), "lists": len(ranked["given"])}
    return {**counts, "judged": len(judgements), **figures}


def _sampled(storage: Storage, planned: Sequence[PlannedStage], most: int) -> list[PlannedGroup]:
    """The lists of the queries with the lowest hashes of their ids, those of earlier runs' scores as well."""
    first, last = planned[0], planned[-1]
    queries, sample = query_list(storage, first.paths, first.plan), GROUPS.empty_table()
    for folder in (join(last.folder, name) for name in ("groups", "lists")):
        for name in storage.list_names(folder):
            rows = pa.concat_tables([sample, read_part(storage, join(folder, name), GROUPS)])
            numbers = rows["queries"].combine_chunks().flatten()
            hashes = key_hash(queries.column("query_id").take(numbers))
            sample = rows.filter(pa.array(hashes <= np.unique(hashes)[:most].max(initial=0)))
    return planned_groups(unit_rows(sample, queries))


def _judgements(storage: Storage, qrels: str, query_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Relevance by document, of those of some queries that are judged."""
    ids, judgements = pa.array(query_ids, pa.string()), defaultdict[str, dict[str, int]](dict)
    for file in fragments(storage, qrels, QRELS):
        for *_, batch in read_table_file(storage, file.file, QRELS):
            for row in batch.filter(pc.is_in(batch["query_id"], ids)).to_pylist():
                grades = judgements[row["query_id"]]
                grades[row["doc_id"]] = max(row["relevance"], grades.get(row["doc_id"], 0))
    return judgements


def _ranked(lister: LoadedListReranker, lists: Sequence[CandidateList]) -> dict[str, list[str]]:
    """The ids of each list's documents, best first, without those that cannot be read; no list is without any."""
    scored = [pair for pair in lister.score_lists(lists) if isinstance(pair, ScoredPair)]
    ranked: dict[str, list[str]] = {}
    for pair in sorted(scored, key=lambda pair: (-pair.logit, pair.doc_id)):
        ranked.setdefault(pair.query_id, []).append(pair.doc_id)
    return ranked


def _changes(given: Mapping[str, list[str]], other: Mapping[str, list[str]]) -> dict[str, float | None]:
    """Means over lists; Kendall's tau of those of two documents and more."""
    ranks = [np.array([*map(other[query].index, before)]) for query, before in given.items()]
    overlaps = [np.mean(rank[:TOP] < TOP) for rank in ranks]
    moves = [np.abs(rank - np.arange(len(rank))).mean() for rank in ranks]
    swaps = [(np.triu(np.greater.outer(rank, rank)).sum(), len(rank) * (len(rank) - 1)) for rank in ranks]
    taus = [1 - 4 * swapped / pairs for swapped, pairs in swaps if pairs]
    means = {"kendall_tau": taus, "overlap@10": overlaps, "displacement": moves}
    return {name: float(fmean(values)) if values else None for name, values in means.items()}
