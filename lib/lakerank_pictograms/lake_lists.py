"""A lake's candidates and judgements as lists by query, for lakes small enough to be held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from lakerank import schemas
from lakerank.evaluation.inputs import LakeTables
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.records import Candidate


@dataclass(slots=True)
class LakeLists:
    """Everything about a lake by query. `ordered` says whether the first stage gave its candidates an order."""

    judgements: dict[str, dict[str, int]] = field(default_factory=dict)
    candidates: dict[str, list[Candidate]] = field(default_factory=dict)
    ordered: bool = False


def read_lake_lists(storage: Storage, tables: LakeTables) -> LakeLists:
    """Judgements, and candidates as the first stage orders them.

    Raises:
        StorageError: a table is not there.
        SchemaError: a table lacks a column.
    """
    lists = LakeLists()
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
