"""The plan of a run's next stage: the first stage's tables, queries and pairs (all, or top-k), for another scorer."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from lakerank.errors import RunConflictError
from lakerank.fingerprint import fingerprint
from lakerank.lake.storage import Storage, join
from lakerank.plan.pairs import PAIRS, chosen_pairs, flat, key_hash, part_of
from lakerank.plan.partitions import DocumentRanges, document_ranges
from lakerank.plan.plan import (
    Plan,
    RankedFiles,
    Tables,
    load_plan,
    part_name,
    planned_documents,
    query_list,
    ranked_files,
    read_part,
    write_part,
)
from lakerank.ranking import ranks
from lakerank.spark.plan.builder import PlanBuilder
from lakerank.spark.plan.counts import COUNTS, Counts, histogram, summed, total_of, totals
from lakerank.spark.rank.lists import SCORED_KIND, Results, result_frames, scored_batches
from lakerank.spark.rank.write import SCORED, rank_order
from lakerank.spark.runtime.frames import describe_job, scatter
from lakerank.spark.runtime.shuffle import BATCHES, exchange, pack
from lakerank.spark.stage import PlannedStage, Stage

logger = logging.getLogger(__name__)

_CHOSEN_PAIRS = pa.schema([("doc_id", pa.string()), ("query", pa.int32())])
_CHOSEN = 0


def ensure_next_plan(
    spark: SparkSession, storage: Storage, tables: Tables, before: Sequence[PlannedStage], stage: Stage
) -> Plan:
    """The plan of the stage after some others, made now unless an earlier attempt has made it.

    A stage over the top-k pairs of each query is planned from the scores of the stage before it, which must be there.

    Raises:
        RunConflictError: it was planned for another scorer, or for another number of pairs a query.
        ChangedFile: a file of the documents is not what it was when the first stage was planned.
    """
    existing = find_next_plan(storage, before, stage)
    if existing is not None:
        return existing
    paths = before[0].paths.of_stage(len(before) + 1)
    plan = _plan(PlanBuilder(spark, storage, paths, secrets.token_hex(4), stage.limits), tables, before, stage)
    if storage.create(paths.plan_file, plan.to_json()):
        return plan
    logger.warning("stage %d was planned by another driver meanwhile: resuming with its plan", paths.stage)
    return find_next_plan(storage, before, stage) or plan


def find_next_plan(storage: Storage, before: Sequence[PlannedStage], stage: Stage) -> Plan | None:
    """The plan of the stage after some others; None if it has not been planned.

    Raises:
        RunConflictError: it was planned for another scorer, or for another number of pairs a query.
    """
    paths = before[0].paths.of_stage(len(before) + 1)
    plan = load_plan(storage, paths)
    if plan is not None and plan.made_from != _made_from(before, stage):
        raise RunConflictError(
            f"{paths.plan}: stage {paths.stage} of run {paths.run_id!r} was planned for another model, other "
            "limits or another `top`; use another --run-id, or the config in the run's folder"
        )
    return plan


def _made_from(before: Sequence[PlannedStage], stage: Stage) -> str:
    attempts = [planned.plan.attempt for planned in (before[:1] if stage.top is None else before)]
    return fingerprint(
        {"passes": attempts, "scorer": stage.scorer, "top": stage.top, "limits": stage.limits.identity()}
    )


def _plan(builder: PlanBuilder, tables: Tables, before: Sequence[PlannedStage], stage: Stage) -> Plan:
    """Plan a stage from the first stage's plan: count or choose pairs, split, cut."""
    spark, storage, first = builder.spark, builder.storage, before[0]
    files = planned_documents(storage, tables, first.paths, first.plan)
    documents = builder.index("documents", files)
    queries = query_list(storage, first.paths, first.plan)
    ranges = document_ranges(documents.chunks)
    if stage.top is None:
        pairs_in = first.folder
        pairs = count_pairs(spark, storage, pairs_in, ranges)
    else:
        pairs_in = builder.folder
        top = TopPairs(storage, first.folder, pairs_in, stage.top, ranges, first.plan.bits)
        pairs = top.write(spark, before[-1].results(storage), ranked_files(storage, first.paths, first.plan))
    return replace(
        first.plan,
        attempt=builder.attempt,
        scorer=stage.scorer,
        made_from=_made_from(before, stage),
        candidates=total_of(pairs, "candidates"),
        documents=total_of(pairs, "documents"),
        duplicates=0,
        rejected=0,
        dropped=0,
        **builder.split(stage.scorer, documents, queries, pairs, first.plan.bits, pairs_in),
    )


def count_pairs(spark: SparkSession, storage: Storage, folder: str, ranges: DocumentRanges) -> Counts:
    """Pairs of a plan's `pairs/`: totals of `candidates` and `documents`, and numbers of pairs by document `range`."""

    def count(name: str) -> Iterator[pa.RecordBatch]:
        yield from _counts(read_part(storage, join(folder, "pairs", name), PAIRS), ranges)

    describe_job(spark, "plan: count pairs")
    return summed(scatter(spark, storage.list_names(join(folder, "pairs")), count, COUNTS))


@dataclass(frozen=True, slots=True)
class TopPairs:
    """The top `k` pairs of each query, by logit descending, then doc_id; rejected ones are not among them.

    Attributes:
        pairs_in: the plan folder whose `pairs/` they are taken from, in 2^bits parts.
        folder: the plan folder that they are left in, in as many parts.
    """

    storage: Storage
    pairs_in: str
    folder: str
    k: int
    ranges: DocumentRanges
    bits: int

    def write(self, spark: SparkSession, results: Results, files: RankedFiles) -> Counts:
        """Write the `pairs/` by the results of a stage; counts them as `count_pairs` does."""
        describe_job(spark, f"plan: top {self.k} pairs of each query")
        scored = result_frames(
            spark, results, files, lambda rows: scored_batches(rows.filter(pc.is_valid(rows["logit"])), files)
        )
        chosen = exchange(scored, len(files.firsts) + 1, {SCORED_KIND: SCORED}, self._choose, BATCHES)
        return summed(exchange([chosen], 2**self.bits, {_CHOSEN: _CHOSEN_PAIRS}, self._keep, COUNTS))

    def _choose(self, _: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        scored = records[SCORED_KIND]
        query = scored["query"].to_numpy().astype(np.int64)
        order = rank_order(query, scored["logit"].to_numpy(), scored["doc_id"].combine_chunks())
        rank = ranks(np.diff(query[order], prepend=-1) != 0)
        top = scored.select(_CHOSEN_PAIRS.names).take(pa.array(order[rank <= self.k])).combine_chunks()
        hashes = key_hash(top["doc_id"].combine_chunks())
        by_hash = np.argsort(hashes, kind="stable")
        yield from pack(_CHOSEN, part_of(hashes[by_hash], self.bits), top.take(pa.array(by_hash)))

    def _keep(self, part: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        if records[_CHOSEN].num_rows:
            pairs = read_part(self.storage, join(self.pairs_in, "pairs", part_name(part)), PAIRS)
            kept = chosen_pairs(pairs, records[_CHOSEN])
            write_part(self.storage, join(self.folder, "pairs"), part, kept)
            yield from _counts(kept, self.ranges)


def _counts(pairs: pa.Table, ranges: DocumentRanges) -> Iterator[pa.RecordBatch]:
    rows, _, _ = flat(pairs)
    yield totals({"candidates": len(rows), "documents": pairs.num_rows})
    yield histogram("range", ranges.of(pairs["document"].to_numpy()[rows]))
