"""Position bias: how much the order in which a run's lister is given lists changes the order that it puts them in."""

from __future__ import annotations

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
from lakerank.plan.units import GROUPS, planned_groups, unit_rows
from lakerank.records import CandidateList, ScoredPair
from lakerank.rerank.compare import TOP_DOCUMENTS, ndcg
from lakerank.rerank.run import Rerank, planned_stages
from lakerank.rerank.score import read_lists
from lakerank.rerank.stage import PlannedStage
from lakerank.schemas import QRELS


def position_bias(storage: Storage, job: Rerank, qrels: str, most: int) -> dict[str, Any]:
    """Score a sample of a run's lists in the order that they were given, reversed and shuffled.

    Returns for the two other orders the means, over `lists`, of Kendall's tau, the share of the first ten that are the
    same, and by how many ranks a document moves; for each order the mean nDCG@10 of the `judged` lists, None without.

    Raises:
        EvaluationError: the run has no stage that scores lists.
        RunConflictError: it was made by another model than the config's.
    """
    planned = planned_stages(storage, job)
    stage = planned[-1].stage
    if stage.limits.listwise is None:
        raise EvaluationError(f"--position-bias: run {job.paths.run_id} has no stage that scores lists; leave it out")
    lists = _sampled(storage, planned, most)
    lister = cast(LoadedListReranker, stage.factory(stage.device))
    orders = {"given": [of.documents for of in lists], "reversed": [of.documents[::-1] for of in lists]}
    orders["shuffled"] = [tuple(Random(of.query.query_id).sample(of.documents, len(of.documents))) for of in lists]
    ranked = {
        name: _ranked(lister, [replace(of, documents=d) for of, d in zip(lists, documents, strict=True)])
        for name, documents in orders.items()
    }
    judgements = _judgements(storage, qrels, [*ranked["given"]])
    figures = {name: _changes(ranked["given"], ranked[name]) for name in ("reversed", "shuffled")}
    for name, of_query in zip(ranked, ndcg(judgements, *map(_table, ranked.values())), strict=True):
        figures.setdefault(name, {})["nDCG@10"] = fmean(of_query) if of_query else None
    return {"lists": len(ranked["given"]), "judged": len(pc.unique(judgements["query_id"])), **figures}


def _sampled(storage: Storage, planned: Sequence[PlannedStage], most: int) -> list[CandidateList]:
    """The lists of the queries with the lowest hashes of their ids, those of earlier runs' scores as well."""
    first, last = planned[0], planned[-1]
    queries, sample = query_list(storage, first.paths, first.plan), GROUPS.empty_table()
    for folder in (join(last.folder, name) for name in ("groups", "lists")):
        for name in storage.list_names(folder):
            rows = pa.concat_tables([sample, read_part(storage, join(folder, name), GROUPS)])
            numbers = rows["queries"].combine_chunks().flatten()
            hashes = key_hash(queries.column("query_id").take(numbers))
            sample = rows.filter(pa.array(hashes <= np.unique(hashes)[:most].max(initial=0)))
    sources, lists = sources_address(first.paths, first.plan.attempt), planned_groups(unit_rows(sample, queries))
    return read_lists(storage, sources, last.stage.max_image_bytes, lists)


def _judgements(storage: Storage, qrels: str, query_ids: Sequence[str]) -> pa.Table:
    """The QRELS of some queries."""
    ids, files = pa.array(query_ids, pa.string()), fragments(storage, qrels, QRELS)
    batches = (batch for file in files for *_, batch in read_table_file(storage, file.file, QRELS))
    tables = (pa.Table.from_batches([batch.filter(pc.is_in(batch["query_id"], ids))]).cast(QRELS) for batch in batches)
    return pa.concat_tables([QRELS.empty_table(), *tables])


def _ranked(lister: LoadedListReranker, lists: Sequence[CandidateList]) -> dict[str, list[str]]:
    """The ids of each list's documents, best first, without those that cannot be read; no list is without any."""
    scored = [pair for pair in lister.score_lists(lists) if isinstance(pair, ScoredPair)]
    ranked: dict[str, list[str]] = {}
    for pair in sorted(scored, key=lambda pair: (-pair.logit, pair.doc_id)):
        ranked.setdefault(pair.query_id, []).append(pair.doc_id)
    return ranked


def _table(ranked: Mapping[str, list[str]]) -> pa.Table:
    rows = [(query, doc_id, rank) for query, of in ranked.items() for rank, doc_id in enumerate(of[:TOP], start=1)]
    return pa.Table.from_pylist([dict(zip(TOP_DOCUMENTS.names, row, strict=True)) for row in rows], TOP_DOCUMENTS)


def _changes(given: Mapping[str, list[str]], other: Mapping[str, list[str]]) -> dict[str, float | None]:
    """Means over lists; Kendall's tau of those of two documents and more."""
    from scipy.stats import kendalltau  # of the report's extra

    ranks = [np.array([*map(other[query].index, before)]) for query, before in given.items()]
    overlaps = [np.mean(rank[:TOP] < TOP) for rank in ranks]
    moves = [np.abs(rank - np.arange(len(rank))).mean() for rank in ranks]
    taus = [kendalltau(np.arange(len(rank)), rank).statistic for rank in ranks if len(rank) > 1]
    means = {"kendall_tau": taus, "overlap@10": overlaps, "displacement": moves}
    return {name: float(fmean(values)) if values else None for name, values in means.items()}
