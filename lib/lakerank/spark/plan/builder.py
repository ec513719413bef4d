"""Plan a run: which pairs are new, already scored or rejected, and the work units for the new ones.

The steps hand each other files below the plan's folder and blocks of keys; the driver holds counts alone.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from lakerank.errors import RunConflictError, StorageError
from lakerank.fingerprint import fingerprint
from lakerank.lake.blobs import ChangedFile
from lakerank.lake.runs import RunPaths, current_run
from lakerank.lake.scores import write_reused_units
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, fragments
from lakerank.schemas import CANDIDATES, DOCUMENTS, QUERIES
from lakerank.spark.plan.cut import Cuts
from lakerank.spark.plan.dropped import LastPairs
from lakerank.spark.plan.files import (
    Counts,
    pair_blocks,
    write_bins,
    write_pairs,
    write_sources,
    write_units,
)
from lakerank.spark.plan.index import TableIndex, table_index
from lakerank.spark.plan.join import candidate_blocks, document_blocks
from lakerank.spark.plan.lookup import score_index, stored_blocks
from lakerank.spark.plan.partitions import STORED_KIND, Bin
from lakerank.spark.plan.plan import (
    Plan,
    PlanLimits,
    Tables,
    load_plan,
    plan_folder,
    query_list,
    sources_address,
)
from lakerank.spark.plan.queries import QueryList, write_query_list
from lakerank.spark.plan.ranges import even_edges, stripes_of
from lakerank.spark.runtime.frames import describe_job, gather, parallelism

logger = logging.getLogger(__name__)

#: Pairs of one part or bin, about: what a task holds at a time.
PAIRS_A_TASK = 2**19

#: Pairs that are worth a task of their own where there are fewer.
PAIRS_AT_LEAST = 4096

#: Buckets of neighbouring queries that pairs are counted in, to cut ranked files of even size.
BUCKETS_A_FILE = 32
MIN_BUCKETS, MAX_BUCKETS = 1024, 65_536

_OF_CANDIDATES = ("candidates", "duplicates", "rejected", "documents")
#: What a plan counts of the pairs that are to be scored, and of those that need not be.
OF_NEW_PAIRS = ("new", "reused", "new_documents", "pairwise_cost", "patches", "fetch_bytes", "read_bytes")
_IDS = pa.schema([("query_id", pa.string())])


def ensure_plan(
    spark: SparkSession, storage: Storage, paths: RunPaths, tables: Tables, scorer: str, limits: PlanLimits
) -> Plan:
    """The run's plan, made now unless an earlier attempt at this run has made it.

    Raises:
        RunConflictError: the run was planned from other tables or for another scorer.
        SchemaError, StorageError: a table cannot be read as the contract says.
    """
    made_from = fingerprint({"tables": asdict(tables), "scorer": scorer, "limits": asdict(limits)})
    plan = load_plan(storage, paths)
    if plan is None:
        made = Making(spark, storage, paths, secrets.token_hex(4), limits).plan(tables, scorer, made_from)
        address = paths.plan_file
        if storage.create(address, json.dumps(asdict(made), indent=1, ensure_ascii=False).encode()):
            return made
        logger.warning("run %s was planned by another driver meanwhile: going on with its plan", paths.run_id)
        plan = load_plan(storage, paths)
    if plan is None or plan.made_from != made_from:
        raise RunConflictError(
            f"{paths.plan}: run {paths.run_id!r} was planned from other tables, another model or other limits; "
            "use another --run-id, or the config in its folder"
        )
    logger.info("plan: found, made by an earlier attempt at run %s", paths.run_id)
    return plan


@dataclass(frozen=True, slots=True)
class Making:
    """One attempt at a plan."""

    spark: SparkSession
    storage: Storage
    paths: RunPaths
    attempt: str
    limits: PlanLimits

    @property
    def folder(self) -> str:
        return plan_folder(self.paths, self.attempt)

    def plan(self, tables: Tables, scorer: str, made_from: str) -> Plan:
        """Make the plan's files, step by step, from the tables."""
        spark, storage = self.spark, self.storage
        inputs = {
            "documents": fragments(storage, tables.documents, DOCUMENTS),
            "queries": fragments(storage, tables.queries, QUERIES),
            "candidates": fragments(storage, tables.candidates, CANDIDATES),
        }
        write_sources(storage, sources_address(self.paths, self.attempt), [*inputs["documents"], *inputs["queries"]])
        documents = self.index("documents", inputs["documents"])
        queries_index = self.index("queries", inputs["queries"])
        describe_job(spark, "plan: sort and number the queries")
        queries = write_query_list(spark, storage, join(self.folder, "queries"), queries_index)
        listed = sum(file.rows for file in inputs["candidates"])
        bits = int(np.ceil(np.log2(self._tasks(listed))))
        rows = self._bucket_rows(listed, queries)
        last = last_pairs(storage, self.paths)
        describe_job(spark, f"plan: join {listed} candidates with documents and queries")
        blocks = [
            candidate_blocks(spark, storage, inputs["candidates"], queries, bits),
            document_blocks(spark, documents, bits),
        ]
        stripes = stripes_of(documents.chunks)
        judged = write_pairs(storage, self.folder, blocks, queries, stripes, bits, rows, last)
        split = self.split(scorer, documents, queries, self.folder, judged, bits)
        cost = sum(split.get("cost", {}).values())
        units, largest = self.units(split.get("cost", {}), queries)
        firsts = self._first_queries(judged, rows)
        for name, address in asdict(tables).items():
            _check_unchanged(storage, address, inputs[name])
        return Plan(
            attempt=self.attempt,
            scorer=scorer,
            made_from=made_from,
            **{name: total_of(judged, name) for name in _OF_CANDIDATES},
            **{name: total_of(split, name) for name in OF_NEW_PAIRS},
            dropped=last.candidates - total_of(judged, "kept") if last else 0,
            queries_listed=queries.count,
            cost=cost,
            largest_unit=largest,
            bits=bits,
            unit_counts=units,
            first_queries=firsts,
            boundaries=self._query_ids(queries, firsts),
            inputs={name: _describe(files) for name, files in inputs.items()},
        )

    def index(self, table: Any, files: Sequence[Fragment]) -> TableIndex:
        """The index of `documents` or `queries`, with costs by this plan's limits."""
        sizing = self.limits.document if table == "documents" else self.limits.query
        return table_index(self.spark, self.storage, self.paths.output, table, files, sizing)

    def _tasks(self, pairs: int) -> int:
        """How many tasks pairs are spread over."""
        return max(1, pairs // PAIRS_A_TASK, min(2 * parallelism(self.spark), pairs // PAIRS_AT_LEAST))

    def split(
        self, scorer: str, documents: TableIndex, queries: QueryList, pairs_in: str, judged: Counts, bits: int
    ) -> Counts:
        """Bins of documents in file order, with new pairs told from those that have a score.

        Args:
            pairs_in: the plan folder whose `pairs/` they are.
            judged: how many pairs each stripe has.
        """
        stripes = stripes_of(documents.chunks)
        pairs = judged.get("stripe", {})
        edges = even_edges(pairs, self._tasks(sum(pairs.values())))
        bins = len(edges) + 1
        scores = score_index(self.spark, self.storage, self.paths.output, scorer)
        blocks = [pair_blocks(self.spark, self.storage, pairs_in, stripes, edges)]
        if scores.names:
            found = stored_blocks(self.spark, scores, documents, queries, stripes, edges, STORED_KIND, bits)
            blocks.append(found)
        describe_job(self.spark, f"plan: tell new pairs from scored ones, {bins} bins")
        content = Bin(documents, queries, self.limits.max_queries_per_group, self.limits.readings)
        split = write_bins(self.storage, self.folder, blocks, bins, content)
        reused = sorted(what.removeprefix("unit ") for what in split if what.startswith("unit "))
        write_reused_units(self.storage, self.folder, reused)
        return split

    def units(self, costs: Mapping[int, int], queries: QueryList) -> tuple[tuple[int, ...], int]:
        """Cut the groups of bins with these costs into units: how many each list names, and the largest's cost."""
        total = sum(costs.values())
        target = max(1, min(self.limits.unit_tokens, total // (2 * parallelism(self.spark))))
        cuts = Cuts.near(total, target)
        describe_job(self.spark, f"plan: cut {cuts.units} units")
        units, largest = write_units(self.spark, self.storage, self.folder, costs, cuts, queries)
        return units.counts, largest

    def _bucket_rows(self, listed: int, queries: QueryList) -> int:
        """Neighbouring queries that are counted together: few enough for even files, and not so few that the counts
        weigh as much as the pairs."""
        files = -(-listed // self.limits.rows_per_file)
        buckets = min(MAX_BUCKETS, max(MIN_BUCKETS, BUCKETS_A_FILE * files))
        return -(-max(1, queries.count) // buckets)

    def _first_queries(self, judged: Counts, rows: int) -> tuple[int, ...]:
        """First queries of all ranked files but the first. They depend on the tables alone, so that files repeat."""
        buckets = judged.get("bucket", {})
        files = -(-total_of(judged, "candidates") // self.limits.rows_per_file)
        return tuple(int(edge) * rows for edge in even_edges(buckets, files))

    def _query_ids(self, queries: QueryList, numbers: Sequence[int]) -> tuple[str, ...]:
        """Ids of a few queries, looked up by a task: the driver holds no table."""
        if not numbers:
            return ()

        def look_up(_: int) -> Any:
            ids = queries.column("query_id").take(pa.array(numbers))
            yield pa.RecordBatch.from_arrays([ids], schema=_IDS)

        return tuple(gather(self.spark, [0], look_up, _IDS)["query_id"].to_pylist())


def last_pairs(storage: Storage, paths: RunPaths) -> LastPairs | None:
    """The pairs of the last published run, if their files are still there."""
    current = current_run(storage, paths.output)
    if current is None:
        return None
    last = RunPaths(paths.output, current["run_id"])
    try:
        plan = load_plan(storage, last)
    except StorageError as error:
        logger.warning("%s; candidates that were dropped since are not counted", error)
        return None
    if plan is None or not storage.exists(join(plan_folder(last, plan.attempt), "queries")):
        return None
    queries = query_list(storage, last, plan)
    return LastPairs(storage, plan_folder(last, plan.attempt), plan.bits, plan.candidates, queries)


def total_of(counts: Counts, what: str) -> int:
    """What was counted under a name, in all."""
    return counts.get(what, {}).get(0, 0)


def _check_unchanged(storage: Storage, address: str, files: Sequence[Fragment]) -> None:
    """One more listing: a plan made while a table was being written would mix its versions."""
    now = {file.uri: file.version for file in storage.list_parquet(address)}
    for planned in (fragment.file for fragment in files):
        if now.get(planned.uri) != planned.version:
            raise ChangedFile(planned.uri, "replaced while the run was being planned")


def _describe(files: Sequence[Fragment]) -> dict[str, int]:
    return {"files": len(files), "rows": sum(f.rows for f in files), "bytes": sum(f.file.size for f in files)}
