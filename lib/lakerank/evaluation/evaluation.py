"""A run judged: figures over all queries and over slices, and what the run could not rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from lakerank.errors import SchemaError
from lakerank.evaluation.analysis.labels import Agreement, Bin, agreement, calibration, judged_pairs
from lakerank.evaluation.analysis.modality_gap import Gap, gaps
from lakerank.evaluation.analysis.published import Headline, headlines
from lakerank.evaluation.analysis.samples import Kind, Sample
from lakerank.evaluation.analysis.slices import ALL, Slice, of_sums, telling
from lakerank.evaluation.inputs import Inputs, pieces
from lakerank.evaluation.metrics.bootstrap import FEWEST_QUERIES, LEVEL, RESAMPLES, SEED
from lakerank.evaluation.metrics.measures import NAMES
from lakerank.evaluation.partials import Counts, Judged, collect, judge_block
from lakerank.evaluation.report.query_figures import write_query_figures
from lakerank.evaluation.report.shortlist import Shortlist
from lakerank.evaluation.rows import (
    ROWS,
    Source,
    by_query,
    document_modalities,
    query_rows,
    table_rows,
    with_modalities,
)
from lakerank.lake.storage import Storage

#: Judges what was found: here, or wherever else there is room.
Judge = Callable[[Storage, Inputs], Judged]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything the report and the tables are made from."""

    inputs: Inputs
    overall: Slice
    slices: tuple[Slice, ...]
    benchmarks: tuple[Headline, ...]
    gaps: tuple[Gap, ...]
    calibration: tuple[Bin, ...]
    calibration_error: float
    agreement: Agreement
    unjudged_are_0: bool
    samples: Mapping[Kind, Sample]
    shortlist: Shortlist
    counts: Counts

    @property
    def run_id(self) -> str:
        return self.inputs.paths.run_id

    @property
    def against(self) -> str | None:
        """The other run."""
        return self.inputs.against.run_id if self.inputs.against else None

    def as_dict(self) -> dict[str, Any]:
        """The figures alone, as `evaluation.json` has them."""
        totals = self.inputs.totals
        return {
            "run_id": self.run_id,
            "against": self.against,
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
                "without_judgements": self.counts.unjudged,
                "judged_without_candidates": self.counts.without_candidates,
                "gained": self.counts.gained,
                "lost": self.counts.lost,
            },
            "candidates": totals.candidates,
            "ranked": totals.ranked,
            "truncated": totals.truncated,
            "rejected": dict(totals.rejected),
            "overall": asdict(self.overall),
            "slices": [asdict(one) for one in self.slices],
            "benchmarks": [{**asdict(one), "setting": one.setting} for one in self.benchmarks],
            "modality_gap": [{**asdict(one), "trust": one.trust.value, "words": one.words} for one in self.gaps],
            "calibration": {"error": self.calibration_error, "bins": [asdict(one) for one in self.calibration]},
            "labels": asdict(self.agreement),
        }


def evaluate(storage: Storage, inputs: Inputs, judge: Judge | None = None) -> Evaluation:
    """Judge a run by the lake's qrels; in this process, unless told otherwise.

    Only queries of the queries table that have a judgement count; one that has no candidates or no results counts as 0.

    Raises:
        StorageError: a file cannot be read.
        SchemaError: no query of the lake has a judgement.
    """
    judged = (judge or judge_here)(storage, inputs)
    if (ALL, ALL) not in judged.slices:
        tables = inputs.tables
        raise SchemaError(f"{tables.qrels}: judges no query of {tables.queries}; check that the query ids are the same")
    ordered = inputs.rule.ordered
    found = [of_sums(sums, ordered, *key) for key, sums in judged.slices.items()]
    pairs = judged_pairs(judged.samples)
    bins, error = calibration(pairs)
    return Evaluation(
        inputs=inputs,
        overall=next(one for one in found if one.dimension == ALL),
        slices=tuple(telling(found)),
        benchmarks=tuple(headlines(judged.parts, ordered, judged.winoground)),
        gaps=tuple(gaps(judged.samples)),
        calibration=tuple(bins),
        calibration_error=error,
        agreement=agreement(pairs.label, pairs.grade, pairs.weight),
        unjudged_are_0=pairs.unjudged_are_0,
        samples=judged.samples,
        shortlist=judged.shortlist,
        counts=judged.counts,
    )


def judge_here(storage: Storage, inputs: Inputs) -> Judged:
    """Judge in this process: all rows are held at once."""
    candidates = pa.Table.from_batches(_rows(storage, inputs, Source.CANDIDATE), schema=ROWS)
    documents = (batch for piece in pieces(inputs.documents) for batch in document_modalities(storage, *piece))
    others = [
        pa.Table.from_batches(_rows(storage, inputs, source), schema=ROWS)
        for source in (Source.QREL, Source.RANKED, Source.AGAINST)
    ]
    queries = [batch for piece in inputs.pieces(Source.QUERY) for batch in query_rows(storage, *piece, inputs.labels)]
    tables = [pa.Table.from_batches(queries, schema=ROWS), with_modalities(candidates, documents), *others]
    partials, figures = judge_block(by_query(pa.concat_tables(tables)), inputs.rule)
    write_query_figures(storage, inputs.paths, {0: figures})
    return collect([partials])


def _rows(storage: Storage, inputs: Inputs, source: Source) -> Iterator[pa.RecordBatch]:
    for piece in inputs.pieces(source):
        yield from table_rows(storage, source, *piece)
