"""Plans of a run's passes after the first: they take over its tables, queries and pairs, for another scorer."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from pyspark.sql import SparkSession

from lakerank.errors import RunConflictError
from lakerank.fingerprint import fingerprint
from lakerank.lake.blobs import ChangedFile
from lakerank.lake.runs import read_json
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, fragments
from lakerank.schemas import DOCUMENTS
from lakerank.spark.plan.builder import OF_NEW_PAIRS, Making, total_of
from lakerank.spark.plan.files import Counts, read_sources
from lakerank.spark.plan.plan import Plan, Tables, load_plan, planned_lists, query_list, sources_address
from lakerank.spark.plan.ranges import stripes_of
from lakerank.spark.plan.top_k import count_pairs, write_best_pairs
from lakerank.spark.plan.upper_bound import Bound, upper_bound
from lakerank.spark.stage import PlannedStage, Stage

logger = logging.getLogger(__name__)


def ensure_later_plan(
    spark: SparkSession, storage: Storage, tables: Tables, before: Sequence[PlannedStage], one: Stage
) -> Plan:
    """The plan of the pass after some others, made now unless an earlier attempt has made it.

    A pass over the best of each query is planned from the scores of the pass before it, which must be there.

    Raises:
        RunConflictError: it was planned for another scorer, or for another number of pairs a query.
        ChangedFile: a file of the documents is not what it was when the first pass was planned.
    """
    found = find_later_plan(storage, before, one)
    if found is not None:
        return found
    paths = before[0].paths.of_stage(len(before) + 1)
    making = Making(spark, storage, paths, secrets.token_hex(4), one.limits)
    made = _plan(making, tables, before, one)
    if storage.create(paths.plan_file, json.dumps(asdict(made), indent=1, ensure_ascii=False).encode()):
        return made
    logger.warning("pass %d was planned by another driver meanwhile: going on with its plan", paths.stage)
    return find_later_plan(storage, before, one) or made


def find_later_plan(storage: Storage, before: Sequence[PlannedStage], one: Stage) -> Plan | None:
    """The plan of the pass after some others; None if it has not been planned.

    Raises:
        RunConflictError: it was planned for another scorer, or for another number of pairs a query.
    """
    paths = before[0].paths.of_stage(len(before) + 1)
    plan = load_plan(storage, paths)
    if plan is not None and plan.made_from != _made_from(before, one):
        raise RunConflictError(
            f"{paths.plan}: pass {paths.stage} of run {paths.run_id!r} was planned for another model, other "
            "limits or another `top`; use another --run-id, or the config in the run's folder"
        )
    return plan


def ensure_bound(
    spark: SparkSession, storage: Storage, tables: Tables, first: PlannedStage, number: int, one: Stage
) -> Bound:
    """What a pass over the best of each query costs at most, computed once a run."""
    address = join(first.paths.of_stage(number).plan, "at_most.json")
    key = fingerprint({"first": first.plan.attempt, "top": one.top, "limits": asdict(one.limits)})
    known = read_json(storage, address)
    if known is not None and known.pop("of") == key:
        return Bound(**known)
    making = Making(spark, storage, first.paths, first.plan.attempt, one.limits)
    documents = making.index("documents", planned_fragments(storage, tables, first))
    bound = upper_bound(
        spark,
        storage,
        first.folder,
        documents,
        planned_lists(storage, first.paths, first.plan),
        one.top or first.plan.candidates,
        one.limits,
    )
    storage.replace(address, json.dumps({"of": key} | asdict(bound)).encode())
    return bound


def planned_fragments(storage: Storage, tables: Tables, first: PlannedStage) -> list[Fragment]:
    """The files of the documents that the first pass was planned from, in its order; those added since are left out.

    Raises:
        ChangedFile: one of them has been replaced, or is gone.
    """
    planned = read_sources(storage, sources_address(first.paths, first.plan.attempt))
    rows = [one for one in fragments(storage, tables.documents, DOCUMENTS) if one.file.uri in planned]
    for one in rows:
        if planned[one.file.uri] != one.file.version:
            raise ChangedFile(one.file.uri, "replaced since the run was planned")
    if len(rows) != first.plan.inputs["documents"]["files"]:
        raise ChangedFile(tables.documents, "files are gone since the run was planned")
    return rows


def _made_from(before: Sequence[PlannedStage], one: Stage) -> str:
    limits = asdict(one.limits)
    attempts = [planned.plan.attempt for planned in (before[:1] if one.top is None else before)]
    return fingerprint({"passes": attempts, "scorer": one.scorer, "top": one.top, "limits": limits})


def _plan(making: Making, tables: Tables, before: Sequence[PlannedStage], one: Stage) -> Plan:
    """Make the plan's files, step by step, from the first pass's."""
    spark, storage, first = making.spark, making.storage, before[0]
    documents = making.index("documents", planned_fragments(storage, tables, first))
    queries = query_list(storage, first.paths, first.plan)
    stripes = stripes_of(documents.chunks)
    if one.top is None:
        pairs_in = first.folder
        pairs: Counts = count_pairs(spark, storage, pairs_in, stripes)
    else:
        pairs_in = making.folder
        lists = planned_lists(storage, first.paths, first.plan)
        results = before[-1].results(storage)
        bits = first.plan.bits
        pairs = write_best_pairs(spark, results, lists, one.top, first.folder, pairs_in, stripes, bits)
    split: Counts = making.split(one.scorer, documents, queries, pairs_in, pairs, first.plan.bits)
    units, largest = making.units(split.get("cost", {}), queries)
    work: Any = {name: total_of(split, name) for name in OF_NEW_PAIRS}
    return replace(
        first.plan,
        attempt=making.attempt,
        scorer=one.scorer,
        made_from=_made_from(before, one),
        candidates=total_of(pairs, "candidates"),
        documents=total_of(pairs, "documents"),
        duplicates=0,
        rejected=0,
        dropped=0,
        **work,
        cost=sum(split.get("cost", {}).values()),
        largest_unit=largest,
        unit_counts=units,
    )
