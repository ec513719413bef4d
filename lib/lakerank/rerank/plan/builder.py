"""Plan a run, step by step: which pairs are new, already scored or rejected, and the work units for the new ones."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lakerank.cost import Sizing
from lakerank.duplicates.clusters import Clusters
from lakerank.errors import RunConflictError
from lakerank.fingerprint import fingerprint
from lakerank.lake import absolute
from lakerank.lake.blobs import ChangedFile, check_unchanged
from lakerank.lake.checksums import json_bytes
from lakerank.lake.formats import SPARK_TABLE, resolve
from lakerank.lake.formats.planned import planned_address
from lakerank.lake.ids import written_as
from lakerank.lake.runs import RunPaths
from lakerank.lake.scores import write_reused_units
from lakerank.lake.snapshot import TableSnapshot
from lakerank.lake.states import state_files
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import Fragment, fragments
from lakerank.plan.index import QueryList, TableIndex, TableName
from lakerank.plan.lookup import ScoreIndex, previous_candidates
from lakerank.plan.partitions import Partitions, Splitter, document_ranges, even_edges
from lakerank.plan.plan import (
    TABLE_SCHEMAS,
    Plan,
    PlanLimits,
    Tables,
    group_id_type,
    is_one_chunk,
    load_plan,
    plan_folder,
    sources_address,
    write_sources,
)
from lakerank.plan.units import GroupFiles
from lakerank.rerank.plan.clusters import Clustering
from lakerank.rerank.plan.steps import (
    Join,
    PairFiles,
    kept_records,
    number_queries,
    pair_records,
    score_index,
    split_pairs,
    table_index,
    write_units,
)
from lakerank.rerank.stage import PLANNING
from lakerank.runner import Counts, Runner, gather, total_of

logger = logging.getLogger(__name__)

#: Pairs that are worth a task of their own where there are fewer than a task may have.
PAIRS_AT_LEAST = 4096

#: Buckets of neighbouring queries that pairs are counted in, to cut ranked files of even size.
BUCKETS_A_FILE = 32
MIN_BUCKETS, MAX_BUCKETS = 1024, 65_536

_OF_CANDIDATES = ("candidates", "duplicates", "rejected", "documents")
_OF_NEW_PAIRS = ("new", "reused", "shared", "near", "lists", "reused_lists")
_SIZES = ("new_documents", "pairwise_cost", "patches", "fetch_bytes", "read_bytes")
_IDS = pa.schema([("query_id", pa.string())])


def ensure_plan(
    runner: Runner, storage: Storage, paths: RunPaths, tables: Tables, scorer: str, limits: PlanLimits
) -> Plan:
    """The run's plan: an earlier attempt's, else a new one.

    Raises:
        RunConflictError: the run was planned from other tables or for another scorer.
        SchemaError, StorageError: a table cannot be read as the contract says.
    """
    identity = {"tables": asdict(tables), "scorer": scorer, "limits": limits.identity()}
    columns = {name: storage.columns[uri] for name, uri in asdict(tables).items() if storage.columns.get(uri)}
    made_from = fingerprint(identity | ({"columns": columns} if columns else {}))
    conflict = (
        f"run {paths.run_id!r} was planned from other tables, another model or other limits; use another --run-id, or "
        "the config in its folder"
    )
    builder = PlanBuilder(runner, storage, paths, secrets.token_hex(4), limits)
    return PlanOrigin(paths, made_from, conflict).ensure(storage, lambda: builder.plan(tables, scorer, made_from))


class PlanOrigin(NamedTuple):
    """What the plan of a run or of a later stage is made from, and what a plan made from something else conflicts
    with."""

    paths: RunPaths
    made_from: str
    conflict: str

    def find(self, storage: Storage) -> Plan | None:
        """The plan, if there is one. Raises RunConflictError: it was made from something else."""
        plan = load_plan(storage, self.paths)
        if plan is not None and plan.made_from != self.made_from:
            raise RunConflictError(f"{self.paths.plan}: {self.conflict}")
        return plan

    def ensure(self, storage: Storage, make_plan: Callable[[], Plan]) -> Plan:
        """The plan, as of `find`; else one is made, and stored unless another driver has stored one meanwhile."""
        plan = self.find(storage)
        if plan is not None:
            logger.info("plan: reused from an earlier attempt at run %s", self.paths.run_id)
            return plan
        started = time.monotonic()
        plan = make_plan()
        if storage.create(self.paths.plan_file, json_bytes(asdict(plan))):
            storage.replace(join(self.paths.plan, PLANNING), json_bytes({"seconds": time.monotonic() - started}))
            return plan
        logger.warning("%s was written by another driver meanwhile: resuming with its plan", self.paths.plan_file)
        return self.find(storage) or plan


@dataclass(frozen=True, slots=True)
class PlanBuilder:
    """One attempt at a plan: its steps hand each other files in the attempt's folder, and counts."""

    runner: Runner
    storage: Storage
    paths: RunPaths
    attempt: str
    limits: PlanLimits

    @property
    def folder(self) -> str:
        return plan_folder(self.paths, self.attempt)

    def plan(self, tables: Tables, scorer: str, made_from: str) -> Plan:
        """Plan a run from its tables: index, number, join, split, cut."""
        storage = self.storage
        snapshots = {name: resolve(storage, address) for name, address in asdict(tables).items()}
        inputs = {name: fragments(storage, snapshots[name], TABLE_SCHEMAS[name], is_one_chunk) for name in snapshots}
        id_types = {"group_id": group_id_type(storage, snapshots["documents"])} if self.limits.with_group_ids else {}
        write_sources(storage, self.paths, self.attempt, inputs)
        documents = self.index("documents", inputs["documents"])
        indexed = self.index("queries", inputs["queries"])
        queries, instructed = number_queries(self.runner, indexed, join(self.folder, "queries"))
        candidates = sum(file.rows for file in inputs["candidates"])
        bits = int(np.ceil(np.log2(self._tasks(candidates))))
        bucket_rows = self._bucket_rows(candidates, queries)
        previous = previous_candidates(storage, self.paths)
        ranges = document_ranges(documents.chunks)
        sharing = self.clusters(documents) if self.limits.share else None
        step = Join(storage, self.folder, queries, ranges, bits, bucket_rows, previous, sharing)
        joined = step.run(self.runner, inputs["candidates"], documents)
        split = self.split(scorer, documents, queries, joined, (self.folder, self.folder, bits))
        counts: Any = {name: total_of(joined, name) for name in _OF_CANDIDATES}
        first_queries = self._first_queries(joined, bucket_rows)
        for snapshot in snapshots.values():
            if snapshot.schema is None:
                _check_unchanged(storage, snapshot)
            else:
                planned_files = {file.uri: file for file in snapshot.files if file.version}
                check_unchanged(storage, planned_files, planned_files)
        return Plan(
            attempt=self.attempt,
            scorer=scorer,
            made_from=made_from,
            **counts,
            **split,
            dropped=previous.count - total_of(joined, "retained") if previous else 0,
            dropped_from={"run_id": previous.run_id, "candidates": previous.count} if previous else None,
            queries_listed=queries.count,
            instructed=instructed,
            bits=bits,
            first_queries=first_queries,
            boundaries=self._query_ids(queries, first_queries),
            id_types=id_types
            | {
                name: written_as(fragment.id_type for fragment in inputs[table])
                for name, table in (("query_id", "queries"), ("doc_id", "documents"))
            },
            inputs={name: _describe(self._pinned(name, snapshots[name]), files) for name, files in inputs.items()},
        )

    def _pinned(self, name: str, snapshot: TableSnapshot) -> TableSnapshot:
        """A snapshot by the address that later stages and commands read it by: without Spark, by the plan's files."""
        if not snapshot.address.startswith(SPARK_TABLE):
            return snapshot
        return replace(snapshot, address=planned_address(absolute(sources_address(self.paths, self.attempt)), name))

    def index(self, table: TableName, files: Sequence[Fragment]) -> TableIndex:
        """The index of `documents` or `queries`, with costs and group ids by this plan's limits."""
        sizing = self.limits.document if table == "documents" else self.limits.query
        index = self._index(table, files, sizing)
        if table == "documents" and self.limits.with_group_ids:
            index = replace(index, groups=self._index("groups", files, sizing))
        if table == "documents" and self.limits.likeness is not None:
            index = replace(index, sketches=self._index("sketches", files, sizing))
        return index

    def _index(self, table: TableName, files: Sequence[Fragment], sizing: Sizing) -> TableIndex:
        return table_index(self.runner, self.storage, self.paths, table, files, sizing)

    def clusters(self, documents: TableIndex) -> Clusters | None:
        if documents.sketches is None or (likeness := self.limits.likeness) is None:
            return None
        return Clustering(self.storage, self.paths.output, documents, documents.sketches, likeness).ensure(self.runner)

    def split(
        self, scorer: str, documents: TableIndex, queries: QueryList, pairs: Counts, files: tuple[str, str, int]
    ) -> dict[str, Any]:
        """Split new pairs from scored ones, cut the new ones into units: the plan's fields that depend on the scorer.

        Args:
            pairs: how many pairs each document range has.
            files: the plan folder whose `pairs/` they are, the first stage's, and the bits of both.
        """
        partitions = self.partitions(documents, pairs)
        clusters = self.clusters(documents)
        splitter = Splitter(documents, queries, self.limits.max_queries_per_group, self.limits.readings, clusters)
        scores = score_index(self.runner, ScoreIndex(self.storage, self.paths.output, scorer))
        sharing = clusters if self.limits.share else None
        pair_files = PairFiles(self.storage, *files, sharing)
        records = [pair_records(self.runner, pair_files, partitions)]
        states = state_files(self.storage, self.paths.output, self.limits.encoder)
        if scores.names or states:
            records.append(kept_records(self.runner, scores, states, queries, pair_files, partitions))
        self.runner.describe(f"plan: split new pairs from scored ones, {partitions.count} partitions")
        return self.cut(split_pairs(self.runner, splitter, self.folder, records, partitions.count), queries)

    def cut(self, split: Counts, queries: QueryList) -> dict[str, Any]:
        """Cut what a split has left to score into units: the plan's fields that depend on the scorer."""
        reused = sorted(name.removeprefix("unit ") for name in split if name.startswith("unit "))
        write_reused_units(self.storage, self.folder, reused)
        groups = GroupFiles(self.storage, self.folder, split.get("cost", {}))
        unit_tokens = self.limits.unit_size(on_gpu=self.runner.gives_gpus(self.limits.device))
        unit_counts, largest = write_units(self.runner, groups, queries, unit_tokens)
        totals = {name: total_of(split, name) for name in (*_OF_NEW_PAIRS, *_SIZES)}
        return {**totals, "cost": sum(groups.costs.values()), "unit_counts": unit_counts, "largest_unit": largest}

    def partitions(self, documents: TableIndex, pairs: Counts) -> Partitions:
        """Even partitions of documents, given how many pairs each range of them has."""
        sizes = pairs.get("range", {})
        return Partitions(document_ranges(documents.chunks), even_edges(sizes, self._tasks(sum(sizes.values()))))

    def _tasks(self, pairs: int) -> int:
        """How many tasks pairs are spread over."""
        return max(1, pairs // self.limits.task_pairs, min(2 * self.runner.parallelism, pairs // PAIRS_AT_LEAST))

    def _bucket_rows(self, candidates: int, queries: QueryList) -> int:
        """Neighbouring queries that are counted together: few enough for even files, and not so few that the counts
        weigh as much as the pairs."""
        files = -(-candidates // self.limits.rows_per_file)
        buckets = min(MAX_BUCKETS, max(MIN_BUCKETS, BUCKETS_A_FILE * files))
        return -(-max(1, queries.count) // buckets)

    def _first_queries(self, joined: Counts, bucket_rows: int) -> tuple[int, ...]:
        """First queries of all ranked files but the first. They depend on the tables alone, so that files repeat."""
        files = -(-total_of(joined, "candidates") // self.limits.rows_per_file)
        return tuple(int(edge) * bucket_rows for edge in even_edges(joined.get("bucket", {}), files))

    def _query_ids(self, queries: QueryList, numbers: Sequence[int]) -> tuple[str, ...]:
        """Ids of a few queries, looked up by a task: the driver has no table."""
        if not numbers:
            return ()

        def look_up(_: int) -> Iterator[pa.RecordBatch]:
            ids = queries.column("query_id").take(pa.array(numbers))
            yield pa.RecordBatch.from_arrays([ids], schema=_IDS)

        return tuple(gather(self.runner, [0], look_up, _IDS)["query_id"].to_pylist())


def _check_unchanged(storage: Storage, snapshot: TableSnapshot) -> None:
    """One more listing: a plan of a table that is being written would mix its versions."""
    versions = {file.uri: file.version for file in resolve(storage, snapshot.address).files}
    for planned in snapshot.files:
        if versions.get(planned.uri) != planned.version:
            raise ChangedFile(planned.uri, "replaced while the run was being planned")


def _describe(snapshot: TableSnapshot, files: Sequence[Fragment]) -> dict[str, Any]:
    figures = {"files": len(files), "rows": sum(f.live_rows for f in files), "bytes": sum(f.file.size for f in files)}
    identity = {"address": snapshot.address, **snapshot.identity} if snapshot.identity else {}
    return figures | identity | ({"passed_over": snapshot.passed_over} if snapshot.passed_over else {})
