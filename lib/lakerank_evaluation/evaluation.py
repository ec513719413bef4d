"""The evaluation of a run: its judged queries read in blocks, their figures over all queries and over slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerank.credentials import redacted
from lakerank.errors import SchemaError
from lakerank.fingerprint import splitmix64
from lakerank.ingest import datasets
from lakerank.lake.storage import Storage
from lakerank_evaluation.analysis.averages import MODALITY, Slice, slices
from lakerank_evaluation.analysis.calibration import Agreement, CalibrationBin, agreement, calibration
from lakerank_evaluation.analysis.scores import (
    SCORED_PAIR,
    Gap,
    ScoredPairs,
    gaps,
    graded,
    sampled,
    scored_pairs,
    unjudged_are_0,
)
from lakerank_evaluation.blocks import Block
from lakerank_evaluation.inputs import BENCHMARK_LABELS, Inputs
from lakerank_evaluation.metrics.bootstrap import FEWEST_QUERIES, LEVEL, RESAMPLES, SEED, Hashes, Summary, query_hashes
from lakerank_evaluation.metrics.measures import (
    NAMES,
    Floats,
    Ints,
    QueryFigures,
    figures,
    perfect_ranks,
    random_baseline,
)
from lakerank_evaluation.pairs import COUNTS, Pairs, pair_up
from lakerank_evaluation.unmatched import Unlisted, Unmatched

#: Averages published benchmarks as their authors do; None outside a clone.
PUBLISHED = datasets("headlines")

#: Names in files of fields that are called otherwise here.
STORED_NAMES = {"random": "chance", "baseline": "against", "baseline_gain": "against_gain"}


@dataclass(frozen=True, slots=True)
class JudgedQueries:
    """The Q judged queries in the order of their ids. `labels` has columns of strings: the modality, and the labels of
    the inputs; `counts` has COUNTS. `judgements` is a fingerprint of who is judged how.
    """

    query_ids: pa.ChunkedArray
    labels: pa.Table
    counts: pa.Table
    judgements: str
    figures: QueryFigures
    hashes: Hashes

    def total(self, name: str) -> int:
        """The sum of one of COUNTS over all queries."""
        return int(pc.sum(self.counts[name]).as_py() or 0)

    def summaries(self, names: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Summary]]:
        """By each combination of some labels' values; queries that lack one of them are in none."""
        numbered = self.labels.select(names).append_column("query", pa.array(np.arange(len(self.labels)))).drop_null()
        groups = numbered.group_by(names, use_threads=False).aggregate([("query", "list")]).to_pydict()
        for *values, queries in zip(*(groups[name] for name in (*names, "query_list")), strict=True):
            yield tuple(values), Summary(self.figures.take(np.array(queries)), self.hashes[queries])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The contents of the report and the tables."""

    inputs: Inputs
    queries: JudgedQueries
    unjudged: int
    unmatched: Unmatched
    overall: Slice
    slices: tuple[Slice, ...]
    benchmarks: tuple[Any, ...]  # headlines
    gaps: tuple[Gap, ...]
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float
    agreement: Agreement
    pairs: ScoredPairs

    @property
    def run_id(self) -> str:
        return self.inputs.paths.run_id

    @property
    def baseline(self) -> str | None:
        """The id of the baseline run."""
        return self.inputs.baseline.run_id if self.inputs.baseline else None

    @property
    def without_candidates(self) -> int:
        """Judged queries that have no candidate."""
        return int(pc.sum(pc.equal(self.queries.counts["candidates"], 0)).as_py() or 0)

    @property
    def unjudged_are_0(self) -> bool:
        """Whether documents without a judgement count as 0 for calibration and labels, too."""
        return unjudged_are_0(self.pairs)

    @property
    def gained(self) -> int:
        """Queries whose primary measure rose."""
        return int((self.queries.figures.gain > 0).sum())

    @property
    def lost(self) -> int:
        """Queries whose primary measure fell."""
        return int((self.queries.figures.gain < 0).sum())

    def as_dict(self) -> dict[str, Any]:
        """The figures, as `evaluation.json` has them."""
        return {
            "run_id": self.run_id,
            "against": self.baseline,
            "models": list(self.inputs.models),
            "published_at": self.inputs.manifest.get("published_at"),
            "measures": list(NAMES),
            "interval": {
                "method": "paired percentile Poisson bootstrap over queries",
                "level": LEVEL,
                "resamples": RESAMPLES,
                "seed": SEED,
                "fewest_queries": FEWEST_QUERIES,
            },
            "test": "paired t-test, two-sided, not corrected for the number of comparisons",
            "queries": {
                "judged": self.overall.queries,
                "without_judgements": self.unjudged,
                "judged_without_candidates": self.without_candidates,
                "gained": self.gained,
                "lost": self.lost,
            },
            "judgements": {
                "table": redacted(self.inputs.tables.qrels),
                "fingerprint": self.queries.judgements,
                "relevant": self.queries.total("relevant"),
                "relevant_candidates": self.queries.total("relevant_candidates"),
            },
            **asdict(self.inputs.totals),
            "overall": _stored(self.overall),
            "slices": [_stored(part) for part in self.slices],
            "benchmarks": [{**_stored(headline), "setting": headline.setting} for headline in self.benchmarks],
            "modality_gap": [{**asdict(gap), "trust": gap.trust.value, "words": gap.words} for gap in self.gaps],
            "calibration": {"error": self.calibration_error, "bins": [asdict(part) for part in self.calibration]},
            "labels": asdict(self.agreement),
            "position_bias": self.inputs.position_bias,
        }


def _stored(record: Any) -> dict[str, Any]:
    return asdict(record, dict_factory=lambda items: {STORED_NAMES.get(name, name): value for name, value in items})


def evaluate(storage: Storage, inputs: Inputs, blocks: Iterable[Block]) -> Evaluation:
    """Evaluate a run by the lake's qrels, whose queries `blocks` have.

    Only queries of the queries table that have a judgement count; one without candidates or results counts as 0.

    Raises:
        StorageError: a file cannot be read.
        SchemaError: no query of the lake has a judgement.
    """
    collector = _Collector(inputs)
    for block in blocks:
        collector.add(block)
    queries = collector.queries()
    pairs = graded(collector.pairs)
    bins, error = calibration(pairs)
    return Evaluation(
        inputs=inputs,
        queries=queries,
        unjudged=collector.unjudged,
        unmatched=collector.unlisted.unmatched(storage, inputs.documents),
        overall=Slice.of(Summary(queries.figures, queries.hashes)),
        slices=tuple(slices(queries.summaries, inputs.dimensions)),
        benchmarks=collector.benchmarks(queries),
        gaps=tuple(gaps(collector.pairs)),
        calibration=tuple(bins),
        calibration_error=error,
        agreement=agreement(pairs["label"], pairs["judgement"], pairs["weight"]),
        pairs=collector.pairs,
    )


class _Collector:
    """The judged queries of all blocks as columns, and a sample of their pairs."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        columns = [(name, pa.string()) for name in ("query_id", MODALITY, *inputs.labels)]
        self._schema = pa.schema([*columns, *((name, pa.int64()) for name in COUNTS)])
        self._tables: list[pa.Table] = [self._schema.empty_table()]
        self._figures: list[QueryFigures] = []
        self.unjudged = 0
        self.unlisted = Unlisted()
        self._judgements = np.zeros(1, np.uint64)
        self.pairs: ScoredPairs = np.zeros(0, SCORED_PAIR)
        self._winoground_logits: dict[str, Mapping[str, float]] = {}

    def add(self, block: Block) -> None:
        """Add a block."""
        self.unjudged += block.unjudged
        if not block.pairs.num_rows:
            return
        pairs = pair_up(block.queries, block.pairs)
        self.unlisted.add(pairs)
        hashes = query_hashes(pairs.query_ids)
        self._judgements += _fingerprint(pairs, hashes)
        labels = dict(zip(pairs.labels.column_names, pairs.labels.columns, strict=True))
        columns = {"query_id": pairs.query_ids, MODALITY: pairs.modalities(), **labels, **pairs.counts()}
        table = pa.table(columns, self._schema)
        self._tables.append(table.filter(pa.array(pairs.is_known)))
        self._figures.append(self._figures_of(pairs).take(np.flatnonzero(pairs.is_known)))
        self.pairs = sampled(np.concatenate([self.pairs, scored_pairs(pairs, pairs.is_known, hashes)]))
        self._winoground_logits |= PUBLISHED.winoground_logits(pairs) if PUBLISHED else {}

    def queries(self) -> JudgedQueries:
        """All judged queries."""
        table = pa.concat_tables(self._tables)
        if not table.num_rows:
            qrels, queries = self._inputs.tables.qrels, self._inputs.tables.queries
            raise SchemaError(f"{qrels}: judges no query of {queries}; check that the query ids are the same")
        order = pc.sort_indices(table, [("query_id", "ascending")])
        table = table.take(order)
        figures = QueryFigures.concatenate(self._figures).take(order.to_numpy())
        labels = table.set_column(table.schema.get_field_index("subset"), "subset", table["subset"].fill_null(""))
        hashes = query_hashes(table["query_id"].to_pylist())
        judgements = f"{int(self._judgements[0]):016x}"
        return JudgedQueries(table["query_id"], labels, table.select(COUNTS), judgements, figures, hashes)

    def benchmarks(self, queries: JudgedQueries) -> tuple[Any, ...]:
        """Headlines of the published benchmarks that the queries are of."""
        if PUBLISHED is None:
            return ()
        return tuple(PUBLISHED.headlines(queries.summaries(BENCHMARK_LABELS), self._winoground_logits))

    def _figures_of(self, pairs: Pairs) -> QueryFigures:
        query, grade = pairs.query[pairs.judged], pairs.judgement[pairs.judged]

        def of(ranks: Ints) -> Floats:
            return figures(pairs.lengths(ranks), query, ranks[pairs.judged], grade)

        candidates, is_candidate = pairs.lengths(pairs.first_stage), pairs.first_stage[pairs.judged] >= 0
        lists = {"reranked": of(pairs.ranked)}
        if self._inputs.ordered:
            lists["first_stage"] = of(pairs.first_stage)
        if self._inputs.baseline:
            lists["baseline"] = of(pairs.baseline)
        lists["ceiling"] = figures(candidates, query, perfect_ranks(query, grade, is_candidate), grade)
        return QueryFigures(lists, random_baseline(candidates, query, grade, is_candidate))


def _fingerprint(pairs: Pairs, hashes: Hashes) -> Hashes:
    """(1,) a hash of the judgements of the known queries: equal for equal ones in any order, added up over blocks."""
    rows = np.flatnonzero(pairs.judged & pairs.is_known[pairs.query])
    documents = query_hashes(pairs.doc_ids.take(pa.array(rows)).to_pylist())
    keys = splitmix64(hashes[pairs.query[rows]] ^ splitmix64(documents))
    return np.asarray(splitmix64(keys + pairs.judgement[rows].astype(np.uint64)).sum(keepdims=True))
