"""The plan of a run's next stage: the first stage's tables, queries and pairs (all, or top-k), for another scorer; and
the upper bound of its cost, before the stages before it have been scored."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.fingerprint import fingerprint
from lakerank.lake.checksums import json_bytes
from lakerank.lake.runs import read_json
from lakerank.lake.storage import Storage, join
from lakerank.plan.forecast import CostUpperBound, costliest
from lakerank.plan.index import TableIndex, chunks_and_rows, query_list, ranked_files
from lakerank.plan.pairs import PAIRS, chosen_pairs, flat, hash_parts
from lakerank.plan.partitions import DOCUMENT_PAIRS, PAIR, DocumentRanges, Partitions, document_ranges, even_edges
from lakerank.plan.plan import Plan, Tables, part_name, planned_documents, read_part, write_part
from lakerank.ranking import ranks
from lakerank.rerank.plan.builder import PlanBuilder, PlanOrigin
from lakerank.rerank.plan.steps import pair_records
from lakerank.rerank.rank.lists import SCORED_KIND, Results, result_batches, scored_batches
from lakerank.rerank.rank.write import SCORED, rank_order
from lakerank.rerank.stage import PlannedStage, Stage
from lakerank.runner import BATCHES, COUNTS, Counts, Runner, histogram, pack, total_of, totals

_CHOSEN_PAIRS = pa.schema([("doc_id", pa.string()), ("query", pa.int32())])
_QUERIES = pa.schema([("query", pa.int32())])


def ensure_next_stage(
    runner: Runner, storage: Storage, tables: Tables, before: Sequence[PlannedStage], stage: Stage
) -> PlannedStage:
    """The stage after `before` with its plan: an earlier attempt's, else a new one.

    A stage over the top-k pairs of each query is planned from the scores of the stage before it, which must be there.

    Raises:
        RunConflictError: it was planned for another scorer, or for another number of pairs a query.
        ChangedFile: a file of the documents is not what it was when the first stage was planned.
    """
    origin = _origin(before, stage)
    builder = PlanBuilder(runner, storage, origin.paths, secrets.token_hex(4), stage.limits)
    plan = origin.ensure(storage, lambda: _plan(builder, tables, before, stage))
    return PlannedStage(stage, origin.paths, plan)


def find_next_stage(storage: Storage, before: Sequence[PlannedStage], stage: Stage) -> PlannedStage | None:
    """The stage after some others, as of `ensure_next_stage`; None if it has not been planned."""
    origin = _origin(before, stage)
    plan = origin.find(storage)
    return None if plan is None else PlannedStage(stage, origin.paths, plan)


def _origin(before: Sequence[PlannedStage], stage: Stage) -> PlanOrigin:
    paths = before[0].paths.of_stage(len(before) + 1)
    attempts = [planned.plan.attempt for planned in (before[:1] if stage.top is None else before)]
    limits = stage.limits.identity()
    made_from = fingerprint({"passes": attempts, "scorer": stage.scorer, "top": stage.top, "limits": limits})
    conflict = (
        f"stage {paths.stage} of run {paths.run_id!r} was planned for another model, other limits or another `top`; "
        "use another --run-id, or the config in the run's folder"
    )
    return PlanOrigin(paths, made_from, conflict)


def _plan(builder: PlanBuilder, tables: Tables, before: Sequence[PlannedStage], stage: Stage) -> Plan:
    """Plan a stage from the first stage's plan: count or choose pairs, split, cut."""
    runner, storage, first = builder.runner, builder.storage, before[0]
    documents = builder.index("documents", planned_documents(storage, tables, first.paths, first.plan))
    ranges = document_ranges(documents.chunks)
    if stage.top is None:
        pairs_in = first.folder
        pairs = count_pairs(runner, storage, pairs_in, ranges)
    else:
        pairs_in = builder.folder
        pairs = write_top_pairs(runner, first, before[-1].results(storage), stage.top, pairs_in, ranges)
    queries = query_list(storage, first.paths, first.plan)
    return replace(
        first.plan,
        attempt=builder.attempt,
        scorer=stage.scorer,
        made_from=_origin(before, stage).made_from,
        candidates=total_of(pairs, "candidates"),
        documents=total_of(pairs, "documents"),
        duplicates=0,
        rejected=0,
        dropped=0,
        **builder.split(stage.scorer, documents, queries, pairs, first.plan.bits, pairs_in),
    )


def count_pairs(runner: Runner, storage: Storage, folder: str, ranges: DocumentRanges) -> Counts:
    """Pairs of a plan's `pairs/`: totals of `candidates` and `documents`, and numbers of pairs by document `range`."""

    def count(name: str) -> Iterator[pa.RecordBatch]:
        yield from _counts(read_part(storage, join(folder, "pairs", name), PAIRS), ranges)

    runner.describe("plan: count pairs")
    return runner.summed(runner.scatter(storage.list_names(join(folder, "pairs")), count, COUNTS))


def write_top_pairs(
    runner: Runner, first: PlannedStage, results: Results, k: int, folder: str, ranges: DocumentRanges
) -> Counts:
    """Write the top `k` pairs of each query by a stage's results, and count them as `count_pairs` does.

    Pairs are in the order of logit descending, then doc_id; rejected ones are not among them. They are taken from the
    first stage's `pairs/`, and written to another plan folder's in as many parts.
    """
    storage, bits = results.storage, first.plan.bits
    files = ranked_files(storage, first.paths, first.plan)

    def scored_pairs(rows: pa.Table) -> Iterator[pa.RecordBatch]:
        yield from scored_batches(rows.filter(pc.is_valid(rows["logit"])), files)

    def choose(_: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        scored = records[SCORED_KIND]
        query = scored["query"].to_numpy().astype(np.int64)
        order = rank_order(query, scored["logit"].to_numpy(), scored["doc_id"].combine_chunks())
        rank = ranks(np.diff(query[order], prepend=-1) != 0)
        top = scored.select(_CHOSEN_PAIRS.names).take(pa.array(order[rank <= k])).combine_chunks()
        yield from pack(PAIR, hash_parts(top["doc_id"], bits), top)

    def keep(part: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        if records[PAIR].num_rows:
            pairs = read_part(storage, join(first.folder, "pairs", part_name(part)), PAIRS)
            kept = chosen_pairs(pairs, records[PAIR])
            write_part(storage, join(folder, "pairs"), part, kept)
            yield from _counts(kept, ranges)

    runner.describe(f"plan: top {k} pairs of each query")
    scored = result_batches(runner, results, files, scored_pairs)
    chosen = runner.exchange(scored, len(files.firsts) + 1, {SCORED_KIND: SCORED}, choose, BATCHES)
    return runner.summed(runner.exchange([chosen], 2**bits, {PAIR: _CHOSEN_PAIRS}, keep, COUNTS))


def _counts(pairs: pa.Table, ranges: DocumentRanges) -> Iterator[pa.RecordBatch]:
    rows, _, _ = flat(pairs)
    yield totals({"candidates": len(rows), "documents": pairs.num_rows})
    yield histogram("range", ranges.of(pairs["document"].to_numpy()[rows]))


def cost_upper_bound(
    runner: Runner, storage: Storage, tables: Tables, first: PlannedStage, number: int, stage: Stage
) -> CostUpperBound:
    """The most that stage `number`, over the top-k pairs of each query, can cost; computed once a run."""
    address = join(first.paths.of_stage(number).plan, "at_most.json")
    key = fingerprint({"first": first.plan.attempt, "top": stage.top, "limits": stage.limits.identity()})
    stored = read_json(storage, address)
    if stored is not None and stored.pop("of") == key:
        return CostUpperBound(**stored)
    builder = PlanBuilder(runner, storage, first.paths, first.plan.attempt, stage.limits)
    documents = builder.index("documents", planned_documents(storage, tables, first.paths, first.plan))
    runner.describe("plan: cost upper bound of later stages")
    by_query = _query_totals(runner, storage, first, stage.top or first.plan.candidates)
    by_cost = _document_counts(runner, storage, first.folder, documents, stage.limits.max_queries_per_group)
    pairs, tokens = total_of(by_query, "pairs"), total_of(by_query, "tokens")
    shared, pairwise = (tokens + costliest(by_cost.get(name, {}), pairs) for name in ("group", "pair"))
    read_once = all(reading.document_major for reading in stage.limits.readings)
    known = sum(by_cost.get("document", {}).values())
    bound = CostUpperBound(pairs, min(pairs, known), shared if read_once else pairwise, pairwise)
    storage.replace(address, json_bytes({"of": key} | asdict(bound)))
    return bound


def _query_totals(runner: Runner, storage: Storage, first: PlannedStage, top: int) -> Counts:
    """How many `pairs` there can be with at most `top` a query, and the `tokens` of their queries."""
    folder, files = join(first.folder, "pairs"), ranked_files(storage, first.paths, first.plan)

    def read(name: str) -> Iterator[pa.RecordBatch]:
        _, queries, _ = flat(read_part(storage, join(folder, name), PAIRS))
        rows = pa.Table.from_arrays([pa.array(queries.astype(np.int32))], schema=_QUERIES)
        yield from pack(PAIR, files.of_numbers(queries), rows)

    def count(_: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        distinct, listed = np.unique(records[PAIR]["query"].to_numpy(), return_counts=True)
        kept = np.minimum(listed, top)
        costs = files.queries.column("cost").to_numpy()[distinct]
        yield totals({"pairs": int(kept.sum()), "tokens": int((kept * costs).sum())})

    queries = runner.scatter(storage.list_names(folder), read, BATCHES)
    return runner.summed(runner.exchange([queries], len(files.firsts) + 1, {PAIR: _QUERIES}, count, COUNTS))


def _document_counts(runner: Runner, storage: Storage, folder: str, documents: TableIndex, max_queries: int) -> Counts:
    """How many documents, groups of them, and pairs there are of each cost in tokens of the document: it is read once a
    group of its queries, or where it is not shared once a pair."""
    ranges = document_ranges(documents.chunks)
    # As many partitions as parts, of neighbouring ranges: each reads the index of its own documents.
    parts = max(1, len(storage.list_names(join(folder, "pairs"))))
    partitions = Partitions(ranges, even_edges(dict.fromkeys(range(ranges.end), 1), parts))

    def count(_: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        numbers = records[PAIR]["document"].to_numpy()
        lengths = records[PAIR]["queries"].combine_chunks().value_lengths().to_numpy()
        for rows in documents.read(np.unique(chunks_and_rows(numbers)[0]).tolist(), ["number", "cost"]):
            __, wanted, at = np.intersect1d(numbers, rows["number"], assume_unique=True, return_indices=True)
            costs, listed = rows["cost"].to_numpy()[at], lengths[wanted]
            yield histogram("document", costs)
            yield histogram("group", np.repeat(costs, -(-listed // max_queries)))
            yield histogram("pair", np.repeat(costs, listed))

    pairs = pair_records(runner, storage, folder, partitions)
    return runner.summed(runner.exchange([pairs], partitions.count, {PAIR: DOCUMENT_PAIRS}, count, COUNTS))
