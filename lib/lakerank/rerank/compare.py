"""Compares a run's lists with the last run's, and with the judgements of golden queries, by the tops of the lists."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import fsum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.audit import TOP
from lakerank.lake.snapshot import TableFile
from lakerank.lake.storage import Storage
from lakerank.lake.tables import fragments, read_table_file
from lakerank.plan.pairs import hash_parts
from lakerank.rerank.rank.lists import ranked_batches
from lakerank.runner import BATCHES, Runner, pack
from lakerank.schemas import QRELS

#: Record types: top documents of this run and of the last one, and judgements.
NEW, OLD, QREL = 0, 1, 2

TOP_DOCUMENTS = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("rank", pa.int32())])
_RECORDS = {NEW: TOP_DOCUMENTS, OLD: TOP_DOCUMENTS, QREL: QRELS}

#: Figures of some queries, added up: `changed`, `now` and `drop` are sums over `shared` and over `judged` queries.
_FIGURES = pa.schema([
    ("queries", pa.int64()), ("shared", pa.int64()), ("changed", pa.float64()), ("judged", pa.int64()),
    ("now", pa.float64()), ("drop", pa.float64()),
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """`queries` that the last run ranked, `shared` ones that this run ranks too, and the mean share of these queries'
    top documents that are new; of the `judged` queries the mean nDCG@10 now, and its drop since the last run."""

    queries: int
    shared: int
    churn: float
    judged: int
    now: float
    drop: float


@dataclass(frozen=True, slots=True)
class ComparedLists:
    """What is compared: files of ranked/ of this run and of the last one (None: there is none), and judgements.

    Churn is of the first `depth` documents, nDCG of TOP.
    """

    new: Sequence[str]
    old: Sequence[str] | None = None
    depth: int = TOP
    qrels: str | None = None

    def compare(self, runner: Runner, storage: Storage) -> Comparison:
        """Bring the tops of both runs' lists and the judgements together by query, and compare them."""
        bits = int(np.ceil(np.log2(max(1, len(self.new), len(self.old or ())))))
        tasks, rows = 4 * runner.parallelism, []
        for kind, files in ((NEW, self.new), (OLD, self.old or ())):
            rows.append(runner.scatter(files, partial(_top_documents, storage, kind, bits), BATCHES, tasks))
        if self.qrels is not None:
            qrels = [fragment.file for fragment in fragments(storage, self.qrels, QRELS)]
            rows.append(runner.scatter(qrels, partial(_judgements, storage, bits), BATCHES, tasks))
        runner.describe("audit: compare the tops of the lists")
        parts = runner.collect(runner.exchange(rows, 2**bits, _RECORDS, self._compare, _FIGURES), _FIGURES)
        total = {name: fsum(parts[name].to_pylist()) for name in _FIGURES.names}
        shared, judged = (max(1.0, total[name]) for name in ("shared", "judged"))
        return Comparison(
            queries=int(total["queries"]),
            shared=int(total["shared"]),
            churn=total["changed"] / shared,
            judged=int(total["judged"]),
            now=total["now"] / judged,
            drop=total["drop"] / judged,
        )

    def _compare(self, _: int, records: Mapping[int, pa.Table]) -> Iterator[pa.RecordBatch]:
        queries, shared, changed = _churn(records[NEW], records[OLD], self.depth)
        judged, now, drop = 0, [0.0], [0.0]
        if records[QREL].num_rows:
            after, last = _ndcg(records[QREL], records[NEW], records[NEW] if self.old is None else records[OLD])
            # The mean of the differences is exactly 0 where no list changed, whatever order they are summed in.
            judged, now, drop = len(after), after, [b - a for b, a in zip(last, after, strict=True)]
        values = [queries, shared, changed, judged, fsum(now), fsum(drop)]
        yield pa.RecordBatch.from_arrays([pa.array([value]) for value in values], schema=_FIGURES)


def _top_documents(storage: Storage, kind: int, bits: int, file: str) -> Iterator[pa.RecordBatch]:
    for batch in ranked_batches(storage, file, TOP):
        rows = pa.Table.from_batches([batch]).select(TOP_DOCUMENTS.names).cast(TOP_DOCUMENTS)
        yield from pack(kind, hash_parts(rows["query_id"], bits), rows)


def _judgements(storage: Storage, bits: int, file: TableFile) -> Iterator[pa.RecordBatch]:
    for *_, batch in read_table_file(storage, file, QRELS):
        yield from pack(QREL, hash_parts(batch["query_id"], bits), pa.Table.from_batches([batch]).cast(QRELS))


def _churn(new: pa.Table, old: pa.Table, depth: int) -> tuple[int, int, float]:
    """How many queries the old lists have, how many of these the new ones have too, and the sum of the shares of these
    queries' documents that are in one list alone."""
    sides = []
    for rows, flags in ((old, (1, 0)), (new, (0, 1))):
        rows = rows.filter(pc.less_equal(rows["rank"], depth)).select(["query_id", "doc_id"])
        for name, flag in zip(("old", "new"), flags, strict=True):
            rows = rows.append_column(name, pa.array(np.full(rows.num_rows, flag)))
        sides.append(rows)
    pairs = pa.concat_tables(sides).group_by(["query_id", "doc_id"]).aggregate([("old", "max"), ("new", "max")])
    pairs = pairs.append_column("both", pc.multiply(pairs["old_max"], pairs["new_max"]))
    names = ("old_max", "new_max", "both")
    queries = pairs.group_by("query_id").aggregate([(name, "sum") for name in names])
    before, after, both = (queries[f"{name}_sum"].to_numpy() for name in names)
    shared = (before > 0) & (after > 0)
    changed = 1 - both[shared] / np.maximum(before, after)[shared]
    return int((before > 0).sum()), int(shared.sum()), fsum(changed.tolist())


def _ndcg(qrels: pa.Table, *lists: pa.Table) -> Iterator[list[float]]:
    """nDCG@10 of each judged query, for each run's top documents; a query without a list counts as 0 (trec_eval -c)."""
    import pytrec_eval  # not in a scoring image; its names are C strings, which end at a NUL: `repr` has none

    judgements: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in qrels.to_pylist():
        grades, doc_id = judgements[repr(row["query_id"])], repr(row["doc_id"])
        grades[doc_id] = max(row["relevance"], grades.get(doc_id, 0))
    evaluator = pytrec_eval.RelevanceEvaluator(judgements, {"ndcg_cut_10"})
    for tops in lists:
        run: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for row in tops.filter(pc.is_in(tops["query_id"], pc.unique(qrels["query_id"]))).to_pylist():
            run[repr(row["query_id"])][repr(row["doc_id"])] = -float(row["rank"])
        figures = evaluator.evaluate(run)
        yield [figures[query]["ndcg_cut_10"] if query in figures else 0.0 for query in judgements]
