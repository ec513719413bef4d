"""A run's tables, and the lake's, as lists by query."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from lakerank import schemas
from lakerank.evaluation.lists import QueryLists
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.records import Candidate, RankedDocument


@dataclass(frozen=True, slots=True)
class LakeTables:
    """Where the lake's tables are."""

    documents: str
    queries: str
    candidates: str
    qrels: str


@dataclass(slots=True)
class RunLists:
    """Everything about a run by query. `ordered` says whether the first stage gave its candidates an order."""

    judgements: dict[str, dict[str, int]] = field(default_factory=dict)
    candidates: dict[str, list[Candidate]] = field(default_factory=dict)
    ranked: dict[str, list[RankedDocument]] = field(default_factory=dict)
    rejects: Counter[str] = field(default_factory=Counter)
    ordered: bool = False

    def of_query(self, query_id: str) -> QueryLists:
        """What the measures need of one query."""
        return QueryLists(
            query_id,
            tuple(candidate.doc_id for candidate in self.candidates.get(query_id, ())),
            tuple(document.doc_id for document in self.ranked.get(query_id, ())),
            self.judgements.get(query_id, {}),
        )


def read_run_lists(storage: Storage, tables: LakeTables, paths: RunPaths) -> RunLists:
    """Read judgements, candidates, ranked lists and rejects.

    Raises:
        StorageError: a table is not there: the run has not been published, or a path is wrong.
        SchemaError: a table lacks a column.
    """
    lists = read_lake_lists(storage, tables)
    for row in _rows(storage, paths.ranked, schemas.RANKED):
        lists.ranked.setdefault(row["query_id"], []).append(RankedDocument(**row))
    for documents in lists.ranked.values():
        documents.sort(key=lambda document: document.rank)
    if storage.list_names(paths.rejected):  # a run without rejects may have no such folder
        for row in _rows(storage, paths.rejected, schemas.REJECTED):
            lists.rejects[row["reason"]] += 1
    return lists


def read_lake_lists(storage: Storage, tables: LakeTables) -> RunLists:
    """Judgements, and candidates as the first stage orders them; nothing is ranked yet.

    Raises:
        StorageError: a table is not there.
        SchemaError: a table lacks a column.
    """
    lists = RunLists()
    for row in _rows(storage, tables.qrels, schemas.QRELS):
        lists.judgements.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    candidates: defaultdict[str, dict[str, Candidate]] = defaultdict(dict)
    for row in _rows(storage, tables.candidates, schemas.CANDIDATES):
        candidates[row["query_id"]].setdefault(row["doc_id"], Candidate(**row))
    for query_id, found in candidates.items():
        lists.candidates[query_id] = sorted(found.values(), key=first_stage_order)
    lists.ordered = any(_has_order(one) for found in lists.candidates.values() for one in found)
    return lists


def first_stage_order(candidate: Candidate) -> tuple[float, float, str]:
    """Sorts as the first stage does: by rank, else by falling score; what has neither comes last, by id."""
    rank, score = candidate.first_stage_rank, candidate.first_stage_score
    by_rank = float("inf") if rank is None else float(rank)
    by_score = float("inf") if score is None or score != score else -score
    return by_rank, by_score, candidate.doc_id


def _has_order(candidate: Candidate) -> bool:
    return candidate.first_stage_rank is not None or candidate.first_stage_score is not None


def _rows(storage: Storage, uri: str, expected: pa.Schema) -> Iterator[dict[str, Any]]:
    for fragment in fragments(storage, uri, expected):
        for _, _, batch in read_table_file(storage, fragment.file.uri, expected):
            yield from batch.to_pylist()
