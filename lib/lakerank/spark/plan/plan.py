"""A run's plan as it stands in the lake: its counts, and where its files are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lakerank.cost import CostProfile, Sizing
from lakerank.errors import StorageError
from lakerank.lake.runs import RunPaths
from lakerank.lake.scores import PlannedUnits, read_reused_units
from lakerank.lake.storage import Storage, join
from lakerank.spark.plan.queries import QueryList
from lakerank.spark.rank.lists import Lists


@dataclass(frozen=True, slots=True)
class Plan:
    """What plan.json holds. Counts are of distinct pairs, costs in tokens.

    `dropped`: candidates of the last published run that are no longer listed. `cost`, `patches`, `fetch_bytes` (text
    and images of the documents, as they are stored) and `read_bytes` (of the row groups they are in) are of the new
    pairs. `unit_counts` says how many units each list of units names, `lists` how the lists are cut into files.
    """

    attempt: str
    scorer: str
    made_from: str
    candidates: int
    duplicates: int
    new: int
    reused: int
    rejected: int
    dropped: int
    documents: int
    new_documents: int
    queries_listed: int
    cost: int
    pairwise_cost: int
    patches: int
    fetch_bytes: int
    read_bytes: int
    largest_unit: int
    bits: int
    unit_counts: tuple[int, ...]
    first_queries: tuple[int, ...]
    boundaries: tuple[str, ...]
    inputs: Mapping[str, Any]

    @property
    def units(self) -> int:
        """How many work units there are."""
        return sum(self.unit_counts)


@dataclass(frozen=True, slots=True)
class Tables:
    """Addresses of the tables a run reads."""

    documents: str
    queries: str
    candidates: str


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """How costs are estimated and units cut. `readings`: of all pairs, or of those of texts and those with an image."""

    document: Sizing
    query: Sizing
    max_queries_per_group: int
    unit_tokens: int
    rows_per_file: int
    readings: tuple[CostProfile, ...] = (CostProfile(),)


def plan_folder(paths: RunPaths, attempt: str) -> str:
    """Where an attempt at planning leaves its files; only the one that plan.json names counts."""
    return join(paths.plan, attempt)


def units_folder(paths: RunPaths, attempt: str) -> str:
    """Where the plan keeps one file of document groups for each unit."""
    return join(plan_folder(paths, attempt), "units")


def sources_address(paths: RunPaths, attempt: str) -> str:
    """The file with the versions of the tables' files that the plan was made from."""
    return join(plan_folder(paths, attempt), "sources.parquet")


def query_list(storage: Storage, paths: RunPaths, plan: Plan) -> QueryList:
    """The plan's queries, numbered."""
    return QueryList(storage, join(plan_folder(paths, plan.attempt), "queries"), plan.queries_listed)


def planned_units(storage: Storage, paths: RunPaths, plan: Plan) -> PlannedUnits:
    """Names of the plan's units, in file order."""
    return PlannedUnits(storage, plan_folder(paths, plan.attempt), plan.unit_counts)


def reused_units(storage: Storage, paths: RunPaths, plan: Plan) -> list[str]:
    """Names of earlier runs' units whose scores this run uses again: what must not be deleted for it."""
    return read_reused_units(storage, plan_folder(paths, plan.attempt))


def planned_lists(storage: Storage, paths: RunPaths, plan: Plan) -> Lists:
    """How the run's lists are spread over files."""
    return Lists(query_list(storage, paths, plan), plan.first_queries, plan.boundaries)


def load_plan(storage: Storage, paths: RunPaths) -> Plan | None:
    """The plan of a run, or None if it has not been planned.

    Raises:
        StorageError: what is there is not a plan of this version of lakerank.
    """
    address = paths.plan_file
    if not storage.exists(address):
        return None
    values = json.loads(storage.read_bytes(address))
    lists: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return Plan(**lists)
    except TypeError as error:
        raise StorageError(f"{address}: written by another version of lakerank; use another --run-id") from error


def verify_plan_files(storage: Storage, paths: RunPaths, plan: Plan) -> None:
    """Raises StorageError when files of the plan have been deleted."""
    names = set(storage.list_names(units_folder(paths, plan.attempt)))
    missing = sum(f"{unit}.parquet" not in names for unit in planned_units(storage, paths, plan))
    if missing:
        raise StorageError(f"{units_folder(paths, plan.attempt)}: {missing} unit files are gone; use another --run-id")
