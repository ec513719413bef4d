"""The plan of a run's next stage: the first stage's tables, queries and pairs (all, or top-k), for another scorer; and
the upper bound of its cost, before the stages before it have been scored."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa

from lakerank.cost import list_costs
from lakerank.fingerprint import fingerprint
from lakerank.lake.storage import Storage, join
from lakerank.plan.forecast import CostBounds, cheapest, costliest
from lakerank.plan.index import RankedFiles, TableIndex, chunks_and_rows, query_list, ranked_files
from lakerank.plan.pairs import PAIRS, chosen_pairs, flat, hash_parts
from lakerank.plan.partitions import PAIR, DocumentRanges, Partitions, document_ranges, even_edges
from lakerank.plan.plan import Plan, Tables, part_name, planned_documents, read_part, write_part
from lakerank.ranking import ranks
from lakerank.rerank.plan.builder import PlanBuilder, PlanOrigin
from lakerank.rerank.plan.listwise import split_lists
from lakerank.rerank.plan.sample import (
    LISTED,
    Choice,
    Selection,
    check,
    draw,
    in_order,
    input_lists,
    lists_of_run,
    query_hashes,
    remembered,
    survey,
)
from lakerank.rerank.plan.steps import PairFiles, pair_records
from lakerank.rerank.rank.lists import SCORED_KIND, by_query
from lakerank.rerank.stage import RULE, PlannedStage, Stage
from lakerank.runner import BATCHES, COUNTS, Counts, Rows, Runner, histogram, pack, total_of, totals

_CHOSEN_PAIRS = pa.schema([("doc_id", pa.string()), ("query", pa.int32())])


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
    attempts = [planned.plan.attempt for planned in (before if stage.waits else before[:1])]
    limits = stage.limits.identity()
    made_from = fingerprint({"passes": attempts, "scorer": stage.scorer, **stage.selection, "limits": limits})
    conflict = (
        f"stage {paths.stage} of run {paths.run_id!r} was planned for another model, other limits or another `top` or "
        "`keep`; use another --run-id, or the config in the run's folder"
    )
    return PlanOrigin(paths, made_from, conflict)


def _plan(builder: PlanBuilder, tables: Tables, before: Sequence[PlannedStage], stage: Stage) -> Plan:
    """Plan a stage from the first stage's plan: count or choose pairs, split, cut."""
    runner, storage, first = builder.runner, builder.storage, before[0]
    documents = builder.index("documents", planned_documents(storage, tables, first.paths, first.plan))
    ranges = document_ranges(documents.chunks)
    if stage.waits:
        pairs_in = builder.folder
        pairs = write_chosen_pairs(builder, before, stage, ranges)
    else:
        pairs_in = first.folder
        pairs = count_pairs(runner, storage, pairs_in, ranges)
    if stage.limits.listwise is not None:
        lists = input_lists(storage, before, stage)
        split = split_lists(builder, stage.scorer, documents, lists, pairs, first.plan.bits)
    else:
        queries = query_list(storage, first.paths, first.plan)
        files = pairs_in, first.folder, first.plan.bits
        split = builder.split(stage.scorer, documents, queries, pairs, files)
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
        **split,
    )


def count_pairs(runner: Runner, storage: Storage, folder: str, ranges: DocumentRanges) -> Counts:
    """Pairs of a plan's `pairs/`: totals of `candidates` and `documents`, and numbers of pairs by document `range`."""

    def count(name: str) -> Iterator[pa.RecordBatch]:
        yield from _counts(read_part(storage, join(folder, "pairs", name), PAIRS), ranges)

    runner.describe("plan: count pairs")
    return runner.summed(runner.scatter(storage.list_names(join(folder, "pairs")), count, COUNTS))


def write_chosen_pairs(
    builder: PlanBuilder, before: Sequence[PlannedStage], stage: Stage, ranges: DocumentRanges
) -> Counts:
    """Write the pairs that a stage selects from the lists of the reranker before: the top, or what its promise takes.

    Lists are in the order of logit descending, then doc_id, without rejected pairs. The pairs are taken from the first
    stage's `pairs/`, and counted as `count_pairs` does.
    """
    runner, storage, first = builder.runner, builder.storage, before[0]
    bits, folder, lists = first.plan.bits, builder.folder, input_lists(storage, before, stage)
    if stage.keep is None:
        choice = _top(stage.top or 0)
    else:
        selection = Selection(runner, storage, before, stage, stage.keep)
        choice = selection.choice(join(builder.paths.plan, RULE), _origin(before, stage).made_from)

    def choose(file: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        listed = in_order(records[SCORED_KIND])
        chosen = listed.filter(pa.array(choice(file, listed["query"].to_numpy(), listed["logit"].to_numpy())))
        chosen = chosen.select(_CHOSEN_PAIRS.names).combine_chunks()
        yield from pack(PAIR, hash_parts(chosen["doc_id"], bits), chosen)

    def keep(part: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        if records[PAIR].num_rows:
            pairs = read_part(storage, join(first.folder, "pairs", part_name(part)), PAIRS)
            kept = chosen_pairs(pairs, records[PAIR])
            write_part(storage, join(folder, "pairs"), part, kept)
            yield from _counts(kept, ranges)

    runner.describe(f"plan: choose the pairs of stage {builder.paths.stage}")
    parts, frames = len(lists.files.firsts) + 1, lists.frames(runner, storage)
    chosen = runner.exchange(frames, parts, {SCORED_KIND: LISTED}, choose, BATCHES)
    return runner.summed(runner.exchange([chosen], 2**bits, {PAIR: _CHOSEN_PAIRS}, keep, COUNTS))


def _top(k: int) -> Choice:
    return lambda _, query, logit: np.asarray(ranks(np.diff(query, prepend=-1) != 0) <= k)


def _counts(pairs: pa.Table, ranges: DocumentRanges) -> Iterator[pa.RecordBatch]:
    rows, _, _ = flat(pairs)
    yield totals({"candidates": len(rows), "documents": pairs.num_rows})
    yield histogram("range", ranges.of(pairs["document"].to_numpy()[rows]))


def cost_bounds(
    runner: Runner, storage: Storage, tables: Tables, first: PlannedStage, stages: Sequence[Stage]
) -> CostBounds:
    """The most that the last of some stages can cost, and with a promise the least; computed once a run.

    Raises:
        GuaranteeError: its promise cannot be kept, and the run is to stop then.
        RunConflictError: the run to learn from has not scored what that takes.
    """
    stage, most = stages[-1], min((stage.top for stage in stages if stage.top), default=first.plan.candidates)
    if stage.keep is not None and stage.keep.from_run is not None:
        lists_of_run(storage, first.paths.output, stage, [s.scorer for s in stages if s.scorer != stage.scorer][-1])
    limits = stage.limits.identity()
    key = fingerprint({"first": first.plan.attempt, **stage.selection, "most": most, "limits": limits})
    address = join(first.paths.of_stage(len(stages)).plan, "at_most.json")
    stored = remembered(storage, address, key, lambda: asdict(_bounds(runner, storage, tables, first, (stage, most))))
    bounds = CostBounds(**{name: value for name, value in stored.items() if name != "of"})
    if stage.keep is not None and stage.sampled:
        check(stage.keep, stage.keep.too_few(bounds.queries))
    return bounds


def _bounds(
    runner: Runner, storage: Storage, tables: Tables, first: PlannedStage, later: tuple[Stage, int]
) -> CostBounds:
    """Those of a stage that gets so many pairs of a query at most."""
    stage, max_queries = later[0], later[0].limits.max_queries_per_group
    builder = PlanBuilder(runner, storage, first.paths, first.plan.attempt, stage.limits)
    documents = builder.index("documents", planned_documents(storage, tables, first.paths, first.plan))
    runner.describe("plan: cost bounds of later stages")
    by_query = _query_totals(runner, storage, first, *later)
    by_cost = _document_counts(runner, storage, first.folder, documents, max_queries)
    pairs, tokens = total_of(by_query, "pairs"), total_of(by_query, "tokens")
    shared, pairwise = (tokens + costliest(by_cost.get(name, {}), pairs) for name in ("group", "pair"))
    read_once = all(reading.document_major for reading in stage.limits.readings)
    known = sum(by_cost.get("document", {}).values())
    cost, queries = shared if read_once else pairwise, total_of(by_query, "queries")
    if (listwise := stage.limits.listwise) is not None:  # as if all lists were as long as one can be
        longest = 2 * max(by_query["longest query"]) + later[1] * max(by_cost["pair"])
        cost = -(-cost * int(list_costs(np.array([longest]), np.array([later[1]]), listwise)[0]) // longest)
    bounds = CostBounds(pairs, min(pairs, known), cost, pairwise, queries)
    if stage.keep is None:
        return bounds
    least, name = total_of(by_query, "least_pairs"), "group" if read_once else "pair"
    documents_read = cheapest(by_cost.get(name, {}), -(-least // max_queries) if read_once else least)
    return replace(bounds, least_pairs=least, least_cost=total_of(by_query, "least_tokens") + documents_read)


def _query_totals(runner: Runner, storage: Storage, first: PlannedStage, stage: Stage, most: int) -> Counts:
    """How many `queries` and `pairs` a stage can have and the `tokens` of their queries, and the fewest."""
    files, promise = ranked_files(storage, first.paths, first.plan), stage.keep
    sampled, scorer, last = stage.sampled, stage.scorer, -1
    if promise is not None and promise.from_run is None:
        frames = _candidate_frames(runner, storage, first, files)
        last = draw(survey(runner, frames, files, promise, scorer), promise).last

    def count(file: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        distinct, listed = np.unique(records[SCORED_KIND]["query"].to_numpy(), return_counts=True)
        listed = least = np.minimum(listed, most)
        if promise is not None:
            listed = np.where((query_hashes(files, file, distinct, scorer) <= last) == sampled, listed, 0)
            least = listed if sampled else np.minimum(listed, promise.of_top)
        costs = files.queries.column("cost").to_numpy()[distinct]
        read = listed if stage.limits.listwise is None else np.maximum(listed, 2 * (listed > 0))
        yield totals(
            {"queries": int((listed > 0).sum()), "pairs": int(listed.sum()), "tokens": int((read * costs).sum())}
        )
        yield histogram("longest query", costs.max(initial=1, keepdims=True))
        yield totals({"least_pairs": int(least.sum()), "least_tokens": int((least * costs).sum())})

    frames = _candidate_frames(runner, storage, first, files)
    return runner.summed(runner.exchange(frames, len(files.firsts) + 1, {SCORED_KIND: LISTED}, count, COUNTS))


def _candidate_frames(runner: Runner, storage: Storage, first: PlannedStage, files: RankedFiles) -> list[Rows]:
    """The pairs of the first stage's plan as BATCHES of LISTED, without ids and scores."""
    folder = join(first.folder, "pairs")

    def read(name: str) -> Iterator[pa.RecordBatch]:
        _, queries, _ = flat(read_part(storage, join(folder, name), PAIRS))
        columns = [queries.astype(np.int32), pa.nulls(len(queries), pa.string()), np.zeros(len(queries), np.float32)]
        rows = pa.Table.from_arrays([pa.array(column) for column in columns], schema=LISTED)
        yield from by_query(SCORED_KIND, rows, files)

    return [runner.scatter(storage.list_names(folder), read, BATCHES)]


def _document_counts(runner: Runner, storage: Storage, folder: str, documents: TableIndex, max_queries: int) -> Counts:
    """How many documents, groups of them, and pairs there are of each cost in tokens of the document: it is read once a
    group of its queries, or where it is not shared once a pair."""
    ranges = document_ranges(documents.chunks)
    # As many partitions as parts, of neighbouring ranges: each reads the index of its own documents.
    parts = max(1, len(storage.list_names(join(folder, "pairs"))))
    partitions = Partitions(ranges, even_edges(dict.fromkeys(range(ranges.end), 1), parts))

    def count(_: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        numbers, place = np.unique(records[PAIR]["document"].to_numpy(), return_inverse=True)
        lengths = np.bincount(place, records[PAIR]["queries"].combine_chunks().value_lengths()).astype(np.int64)
        for rows in documents.read(np.unique(chunks_and_rows(numbers)[0]).tolist(), ["number", "cost"]):
            __, wanted, at = np.intersect1d(numbers, rows["number"], assume_unique=True, return_indices=True)
            costs, listed = rows["cost"].to_numpy()[at], lengths[wanted]
            yield histogram("document", costs)
            yield histogram("group", np.repeat(costs, -(-listed // max_queries)))
            yield histogram("pair", np.repeat(costs, listed))

    pairs = pair_records(runner, PairFiles(storage, folder, folder), partitions)
    return runner.summed(runner.exchange([pairs], partitions.count, {PAIR: PAIRS}, count, COUNTS))
