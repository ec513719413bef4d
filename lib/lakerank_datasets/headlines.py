"""Published benchmarks as their authors average them, next to published figures: `lakerank_evaluation` calls this."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import chain

import numpy as np

from lakerank_evaluation.analysis.averages import Summaries
from lakerank_evaluation.metrics.bootstrap import Summary, interval, query_hashes, resampled_sums
from lakerank_evaluation.metrics.measures import NAMES
from lakerank_evaluation.pairs import Pairs

_COLUMNS = "benchmark dataset measure queries first_stage reranked low high against published"

WINOGROUND = "winoground"
_WINOGROUND_ID = re.compile(r"(.*):([ci])([01])", re.DOTALL)

#: Logits by query and document.
Logits = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class PublishedBenchmark:
    """A benchmark: the measure of its headline, its number of datasets (None: unknown), and m0's published figure, from
    its model card of April 2025 (None: not published).
    """

    title: str
    measure: str
    datasets: int | None
    published: float | None
    shown_as: str = ""

    @property
    def measure_name(self) -> str:
        """The authors' name of the measure."""
        return self.shown_as or self.measure


#: Recall of MKQA and of M-BEIR is, in their authors' evaluation code, 1 for a query with any hit: trec_eval's success.
BENCHMARKS = {
    "vidore_v1": PublishedBenchmark("ViDoRe v1", "nDCG@5", 10, 0.9102),
    "vidore_v2": PublishedBenchmark("ViDoRe v2", "nDCG@5", None, None),
    "vidore_v3": PublishedBenchmark("ViDoRe v3", "nDCG@5", None, None),
    "beir": PublishedBenchmark("BEIR", "nDCG@10", 18, 0.5895),
    "miracl": PublishedBenchmark("MIRACL", "nDCG@10", 18, 0.6675),
    "mkqa": PublishedBenchmark("MKQA", "Success@10", 26, 0.6819, "Recall@10"),
    "mldr": PublishedBenchmark("MLDR", "nDCG@10", 13, 0.5983),
    "coir": PublishedBenchmark("CoIR", "nDCG@10", 10, 0.6355),
    "mbeir": PublishedBenchmark("M-BEIR", "Success@5", 16, None, "Recall@5"),
    WINOGROUND: PublishedBenchmark("Winoground", "mean score", 1, 0.4392),
}

#: M-BEIR's datasets that its authors cut off at ten.
_CUT_OFF_AT_TEN = ("fashion200k", "fashioniq")


@dataclass(frozen=True, slots=True)
class DatasetAverage:
    """A dataset's figures: one dot of the box plot."""

    name: str
    queries: int
    first_stage: float | None
    reranked: float
    baseline: float | None


@dataclass(frozen=True, slots=True)
class Headline:
    """A benchmark's figures over the datasets in the lake: means over queries, then subsets, then datasets."""

    name: str
    benchmark: PublishedBenchmark
    queries: int
    first_stage: float | None
    reranked: float
    low: float | None
    high: float | None
    baseline: float | None
    datasets: tuple[DatasetAverage, ...]
    details: Mapping[str, float]

    @property
    def setting(self) -> str:
        """How the published figure's setting differs, as far as the lake tells."""
        if self.benchmark.published is None:
            return "no figure was published"
        whole = self.benchmark.datasets
        notes = ["published for jina-reranker-m0's full weights"]
        if whole is not None and len(self.datasets) != whole:
            notes.append(f"over all {whole} datasets, here {len(self.datasets)}")
        if self.first_stage is not None:
            notes.append("over its publisher's first stage, here this lake's candidates")
        return "; ".join(notes)


def headlines(subsets: Summaries, logits: Logits) -> list[Headline]:
    """Every benchmark of the lake's queries, in the order of BENCHMARKS, then others by name.

    `subsets` are by (benchmark, dataset, subset), `logits` those of Winoground's queries.
    """
    by_benchmark: defaultdict[str, dict[str, list[Summary]]] = defaultdict(lambda: defaultdict(list))
    for (name, dataset, _), summary in sorted(subsets, key=lambda item: item[0]):
        by_benchmark[name][dataset].append(summary)
    order = {name: number for number, name in enumerate(BENCHMARKS)}
    names = sorted(by_benchmark, key=lambda name: (order.get(name, len(order)), name))
    every = (winoground(logits) if name == WINOGROUND else _headline(name, by_benchmark[name]) for name in names)
    return [headline for headline in every if headline is not None]


def _headline(name: str, subsets_of: Mapping[str, Sequence[Summary]]) -> Headline:
    benchmark = BENCHMARKS.get(name, PublishedBenchmark(name, "nDCG@10", None, None))
    datasets, resamples = [], []
    for dataset, subsets in subsets_of.items():
        measure = benchmark.measure
        if benchmark.title == "M-BEIR" and dataset.startswith(_CUT_OFF_AT_TEN):
            measure = "Success@10"
        first, reranked, baseline = (
            _mean([subset.means(which)[measure] if which in subset else None for subset in subsets])
            for which in ("first_stage", "reranked", "baseline")
        )
        queries = sum(subset.queries for subset in subsets)
        datasets.append(DatasetAverage(dataset, queries, first, reranked or 0.0, baseline))
        column = NAMES.index(measure)
        resamples.append(np.mean([subset.resampled_means("reranked")[:, column] for subset in subsets], axis=0))
    fewest = min(subset.queries for subsets in subsets_of.values() for subset in subsets)
    return Headline(
        name,
        benchmark,
        sum(dataset.queries for dataset in datasets),
        _mean([dataset.first_stage for dataset in datasets]),
        float(np.mean([dataset.reranked for dataset in datasets])),
        *interval(np.mean(resamples, axis=0), fewest),
        _mean([dataset.baseline for dataset in datasets]),
        tuple(datasets),
        {},
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where any value is missing."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if len(present) == len(values) else None


def winoground_logits(pairs: Pairs) -> dict[str, dict[str, float]]:
    """The logits of Winoground's queries."""
    logits_of = {}
    labels = (pairs.labels[name].to_pylist() for name in ("benchmark", "dataset"))
    for number, names in enumerate(zip(*labels, strict=True)):
        if WINOGROUND in names:
            rows = slice(*np.searchsorted(pairs.query, [number, number + 1]))
            logits = zip(pairs.doc_ids[rows].to_pylist(), pairs.logit[rows].tolist(), strict=True)
            logits_of[pairs.query_ids[number]] = {doc: logit for doc, logit in logits if logit == logit}
    return logits_of


def winoground(logits: Logits) -> Headline | None:
    """Scores over all examples, with an interval of the mean of the three; None when there are no examples.

    A comparison that lacks a pair is lost, and so is a tie. The text score compares captions by the queries that are
    images, the image score images by the queries that are captions; group requires both. Source: T. Thrush et al.,
    Winoground (CVPR 2022), section 3.2, and the evaluation code that its authors published.
    """
    examples = sorted({match[1] for query in logits if (match := _WINOGROUND_ID.fullmatch(query))})
    if not examples:
        return None
    correct = np.array([
        [all(_is_correct(logits, example, *sides, number) for number in (0, 1)) for sides in (("i", "c"), ("c", "i"))]
        for example in examples
    ])  # fmt: skip
    table = np.column_stack([correct, correct.all(axis=1)]).astype(np.float64)  # (N, 3)
    details = dict(zip(("text", "image", "group"), table.mean(axis=0).tolist(), strict=True))
    mean = sum(details.values()) / 3
    sums = resampled_sums(query_hashes(examples), table)
    with np.errstate(invalid="ignore"):
        bounds = interval(sums[:, :3].mean(axis=1) / sums[:, 3], len(examples))
    datasets = (DatasetAverage(WINOGROUND, len(examples), None, mean, None),)
    return Headline(
        WINOGROUND, BENCHMARKS[WINOGROUND], len(examples), None, mean, *bounds, None, datasets, details
    )  # fmt: skip


def _is_correct(logits: Logits, example: str, query: str, document: str, number: int) -> bool:
    """Whether the query's own document has the larger logit of the example's two."""
    of_query = logits.get(f"{example}:{query}{number}", {})
    better, worse = (of_query.get(f"{example}:{document}{other}") for other in (number, 1 - number))
    return better is not None and worse is not None and better > worse


def csv_rows(every: Iterable[Headline]) -> tuple[str, Iterator[Sequence[object]]]:
    """Names of columns, and the rows of some headlines and their datasets."""
    return _COLUMNS, chain.from_iterable(map(_csv_rows, every))


def _csv_rows(headline: Headline) -> Iterator[Sequence[object]]:
    about = headline.benchmark
    yield (
        about.title, "all", about.measure_name, headline.queries, headline.first_stage, headline.reranked,
        headline.low, headline.high, headline.baseline, about.published,
    )  # fmt: skip
    for name, value in headline.details.items():
        yield (about.title, "all", f"{name} score", headline.queries, None, value, None, None, None, None)
    for name, queries, first, reranked, baseline in map(astuple, headline.datasets):
        yield (about.title, name, about.measure_name, queries, first, reranked, None, None, baseline, None)
