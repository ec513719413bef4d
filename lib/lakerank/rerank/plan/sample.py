"""The sample of a cascade's stage with a promise: which queries are in it, and the rule that their scores teach.

Queries are drawn by a hash of their ids and the scorer: a sample at random that is the same in each attempt, and from
run to run where the ids are, so that its stored scores are used again. Each reranker of a cascade has another one: the
lists that one has read whole are longer than the others that the next one gets.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.errors import GuaranteeError, RunConflictError
from lakerank.fingerprint import splitmix64
from lakerank.lake.checksums import json_bytes
from lakerank.lake.runs import RunPaths, read_json, read_manifest
from lakerank.lake.storage import Storage
from lakerank.plan.guarantee import MARGINS, Promise, gaps, recalls, shift_p_value
from lakerank.plan.index import RankedFiles, ranked_files
from lakerank.plan.pairs import key_hash
from lakerank.plan.plan import load_plan
from lakerank.ranking import ranks
from lakerank.rerank.rank.lists import SCORED_KIND, by_query, result_batches
from lakerank.rerank.rank.write import rank_order
from lakerank.rerank.stage import PlannedStage, Stage
from lakerank.runner import Rows, Runner

logger = logging.getLogger(__name__)

#: A pair of a list; in the forecast of a plan without its score.
LISTED = pa.schema([("query", pa.int32()), ("doc_id", pa.string()), ("logit", pa.float32())])
_STRONG_KIND = SCORED_KIND + 1

#: A query's list: the hash it is drawn by, its documents, and how far it falls from the best to the last of the top.
#: `queries` and `pairs` count all of a file's, in one of its rows.
_LISTS = pa.schema([
    ("hash", pa.int64()), ("documents", pa.int64()), ("last", pa.float32()), ("fall", pa.float32()),
    ("queries", pa.int64()), ("pairs", pa.int64()),
])  # fmt: skip
_SHAPE = ("documents", "last", "fall")
_GAPS = pa.schema([("query", pa.int32()), ("gap", pa.float64())])

Int64 = npt.NDArray[np.int64]

#: Which pairs of a file's lists, in order, a stage scores: the file, query and logit (P,) -> (P,).
Choice = Callable[[int, Int64, npt.NDArray[np.float32]], Any]


class Lists(NamedTuple):
    """Lists of a run: the files that they are spread over, and the stages whose they are."""

    files: RankedFiles
    stages: Sequence[PlannedStage]

    def frames(self, runner: Runner, storage: Storage, kind: int = SCORED_KIND) -> list[Rows]:
        """Their scored pairs as BATCHES of LISTED."""
        files = self.files

        def to_batches(rows: pa.Table) -> Iterator[pa.RecordBatch]:
            yield from by_query(kind, rows.filter(pc.is_valid(rows["logit"])).select(LISTED.names), files)

        frames = (result_batches(runner, stage.results(storage), files, to_batches) for stage in self.stages)
        return [frame for of_stage in frames for frame in of_stage]


class Draw(NamedTuple):
    """A sample of some lists: its queries, all queries and pairs, and the hash of the last one drawn, -1 for none."""

    queries: int
    of_queries: int
    of_pairs: int
    last: int


def remembered(storage: Storage, address: str, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What this attempt or an earlier one has computed from the same, else what `compute` returns."""
    stored = read_json(storage, address)
    if stored is None or stored.get("of") != key:
        stored = {"of": key, **compute()}
        storage.replace(address, json_bytes(stored))
    return stored


def query_hashes(files: RankedFiles, file: int, query: Int64, scorer: str) -> Int64:
    """The hashes by which queries of a file are drawn for a scorer: (N,) -> (N,)."""
    first, ids = files.ids(file)
    hashes = splitmix64(key_hash(ids) ^ key_hash(pa.array([scorer])))
    return np.asarray((hashes >> np.uint64(1)).astype(np.int64)[query - first])


def in_order(pairs: pa.Table) -> pa.Table:
    """Pairs in the order of their lists."""
    query, logit = pairs["query"].to_numpy().astype(np.int64), pairs["logit"].to_numpy()
    return pairs.take(pa.array(rank_order(query, logit, pairs["doc_id"].combine_chunks()))).combine_chunks()


def survey(runner: Runner, frames: Sequence[Rows], files: RankedFiles, promise: Promise, scorer: str) -> pa.Table:
    """Lists (_LISTS) of LISTED pairs, as many as may be drawn for a scorer, in the order that they are drawn in."""
    most = promise.most_queries

    def look(file: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        pairs = in_order(records[SCORED_KIND])
        query, logit = pairs["query"].to_numpy(), pairs["logit"].to_numpy()
        starts = np.flatnonzero(np.diff(query, prepend=-1))
        documents = np.diff(starts, append=len(query))
        last = logit[starts + np.minimum(documents, promise.of_top) - 1]
        hashes = query_hashes(files, file, query[starts], scorer)
        drawn = np.argsort(hashes)[:most]
        once = np.arange(len(drawn)) == 0
        columns = [column[drawn] for column in (hashes, documents, last, logit[starts] - last)]
        arrays = map(pa.array, [*columns, once * len(starts), once * len(query)])
        yield pa.RecordBatch.from_arrays([*arrays], schema=_LISTS)

    exchanged = runner.exchange(frames, len(files.firsts) + 1, {SCORED_KIND: LISTED}, look, _LISTS)
    return runner.collect(exchanged, _LISTS).sort_by("hash")


def draw(surveyed: pa.Table, promise: Promise) -> Draw:
    """The sample of surveyed lists."""
    queries, pairs = (pc.sum(surveyed[name], min_count=0).as_py() for name in ("queries", "pairs"))
    size = promise.sample_size(queries)
    return Draw(size, queries, pairs, surveyed["hash"][size - 1].as_py() if size else -1)


def check(promise: Promise, reason: str | None) -> None:
    """Say why a promise takes all pairs. Raises GuaranteeError: the run is to stop then."""
    if reason is not None and promise.otherwise == "stop":
        raise GuaranteeError(
            f"the run cannot promise {promise}: {reason}; with `otherwise: all` the same --run-id resumes it and reads "
            "all pairs; or lower `recall` or `confidence`"
        )
    if reason is not None:
        logger.warning("all pairs are read, as no less can promise %s: %s", promise, reason)


@dataclass(frozen=True, slots=True)
class Selection:
    """How a stage with a promise selects its pairs from the lists that it gets; `before` has the stages before it."""

    runner: Runner
    storage: Storage
    before: Sequence[PlannedStage]
    stage: Stage
    promise: Promise

    def choice(self, address: str, key: str) -> Choice:
        """Which pairs the stage scores: all of its sample, or those of the other queries that a rule selects, which is
        remembered at an address under a key.

        Raises:
            GuaranteeError: the promise cannot be kept, and the run is to stop then.
            RunConflictError: the run to learn from has not scored what that takes.
        """
        lists, of_top = input_lists(self.storage, self.before, self.stage), self.promise.of_top
        files, scorer = lists.files, self.stage.scorer
        if self.stage.sampled:
            drawn = draw(self._survey(lists), self.promise)
            check(self.promise, self.promise.too_few(drawn.queries))
            return lambda file, query, _: query_hashes(files, file, query, scorer) <= drawn.last
        rule = remembered(self.storage, address, key, lambda: self._learned(lists))
        check(self.promise, rule["reason"])
        last, margin = rule["last"], math.inf if rule["margin"] is None else rule["margin"]
        return lambda file, query, logit: (
            (query_hashes(files, file, query, scorer) > last) & (gaps(query, logit, of_top) <= margin)
        )

    def _survey(self, lists: Lists) -> pa.Table:
        frames = lists.frames(self.runner, self.storage)
        return survey(self.runner, frames, lists.files, self.promise, self.stage.scorer)

    def _learned(self, lists: Lists) -> dict[str, Any]:
        """What the sample shows, and the rule that it teaches: a margin, or the reason why all pairs are read."""
        promise, now, sample = self.promise, self._survey(lists), self.before[-1]
        drawn, pairs, shift = draw(now, promise), sample.plan.candidates, None
        last = drawn.last
        if promise.from_run is not None:
            lists, sample = lists_of_run(self.storage, sample.paths.output, self.stage, lists.stages[0].stage.scorer)
            then = self._survey(lists)
            p_values = [shift_p_value(then[name].to_numpy(), now[name].to_numpy()) for name in _SHAPE]
            drawn, pairs, shift = drawn._replace(last=-1), 0, min(1.0, len(_SHAPE) * min(p_values))  # by Bonferroni
            last = then["hash"].to_numpy().max(initial=-1)
        shown = self._recalls(lists, sample, last)
        reason = promise.too_few(len(shown))
        if shift is not None and shift < promise.shift_level:
            reason = f"lists have shifted since run {promise.from_run} (p = {shift:.2g})"
        rule = -1 if reason else promise.boldest_rule(shown)
        learned: dict[str, Any] = {"margin": None, "reason": reason or "the sample rules out every margin"}
        if rule >= 0:
            margin, recall, bound = (
                float(MARGINS[rule]),
                float(shown[:, rule].mean()),
                promise.lower_bound(shown[:, rule]),
            )
            learned = {"margin": margin, "reason": None, "recall": recall, "at_least": bound}
            logger.info("%d queries, read whole, have a recall of %.4g by the margin %.4g", len(shown), recall, margin)
        return {
            "promised": {name: getattr(promise, name) for name in ("of_top", "recall", "confidence")},
            "sample": {"run": promise.from_run, "queries": len(shown), "pairs": pairs, "shift_p_value": shift},
            **{name: getattr(drawn, name) for name in ("of_queries", "of_pairs", "last")},
            **learned,
        }

    def _recalls(self, lists: Lists, sample: PlannedStage, last: int) -> npt.NDArray[np.float64]:
        """Recall, by each rule, of the queries drawn up to a hash, which a stage has scored whole: (Q, R)."""
        files, of_top, scorer = lists.files, self.promise.of_top, self.stage.scorer

        def join_lists(file: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
            listed, strong = records[SCORED_KIND], records[_STRONG_KIND]
            queries = pc.unique(strong["query"])
            drawn = queries.filter(pa.array(query_hashes(files, file, queries.to_numpy(), scorer) <= last))
            listed = in_order(listed.filter(pc.is_in(listed["query"], drawn)))
            gap = pa.array(gaps(listed["query"].to_numpy(), listed["logit"].to_numpy(), of_top))
            listed = listed.drop_columns("logit").append_column("gap", gap)
            both = in_order(strong.join(listed, ["query", "doc_id"], join_type="inner").combine_chunks())
            rank = ranks(np.diff(both["query"].to_numpy(), prepend=-1) != 0)
            yield from both.filter(pa.array(rank <= of_top)).select(_GAPS.names).to_batches()

        self.runner.describe("plan: learn how far down lists are to be read")
        frames = lists.frames(self.runner, self.storage)
        frames += Lists(files, [sample]).frames(self.runner, self.storage, _STRONG_KIND)
        kinds = {SCORED_KIND: LISTED, _STRONG_KIND: LISTED}
        exchanged = self.runner.exchange(frames, len(files.firsts) + 1, kinds, join_lists, _GAPS)
        best = self.runner.collect(exchanged, _GAPS).sort_by("query")
        return recalls(best["query"].to_numpy(), best["gap"].to_numpy())


def input_lists(storage: Storage, before: Sequence[PlannedStage], stage: Stage) -> Lists:
    """The lists that a stage after others gets: of the one or two stages of the reranker before it."""
    others = [planned for planned in before if planned.stage.scorer != stage.scorer]
    of_reranker = [planned for planned in others if planned.stage.scorer == others[-1].stage.scorer]
    return Lists(ranked_files(storage, before[0].paths, before[0].plan), of_reranker)


def lists_of_run(storage: Storage, output: str, stage: Stage, scorer: str) -> tuple[Lists, PlannedStage]:
    """The lists of a scorer in the run that a stage learns from, and the stage of that run in which its own scorer has
    scored lists whole.

    Raises:
        RunConflictError: there are none.
    """
    run_id = (stage.keep and stage.keep.from_run) or ""
    passes = (read_manifest(storage, output, run_id) or {}).get("passes") or []
    places = [RunPaths(output, run_id, number) for number in range(1, len(passes) + 1)]
    planned = [PlannedStage(stage, paths, plan) for paths in places if (plan := load_plan(storage, paths)) is not None]
    inputs = [of_run for of_run in planned if of_run.plan.scorer == scorer]
    read_whole = [not entry["top"] and entry.get("sampled", True) for entry in passes]
    whole = [p for p, is_whole in zip(planned, read_whole, strict=False) if is_whole and p.plan.scorer == stage.scorer]
    if not inputs or not whole:
        raise RunConflictError(
            f"{RunPaths(output, run_id).manifest}: `from_run` needs a published run in which both rerankers scored "
            "lists whole: a cascade with `keep` that drew its own sample, or an ensemble of the two"
        )
    return Lists(ranked_files(storage, planned[0].paths, planned[0].plan), inputs), whole[0]
