"""Benchmarks averaged as their authors do, next to jina-reranker-m0's published figures."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lakerank.evaluation.metrics.bootstrap import Summary, interval, query_hashes, resampled_sums
from lakerank.evaluation.metrics.measures import NAMES
from lakerank.evaluation.pairs import Pairs

WINOGROUND = "winoground"
_WINOGROUND_ID = re.compile(r"(.*):([ci])([01])", re.DOTALL)

#: Summaries by (benchmark, dataset, subset).
Subsets = Mapping[tuple[str, str, str], Summary]

#: Logits by query and document.
Logits = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Benchmark:
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
    "vidore_v1": Benchmark("ViDoRe v1", "nDCG@5", 10, 0.9102),
    "vidore_v2": Benchmark("ViDoRe v2", "nDCG@5", None, None),
    "vidore_v3": Benchmark("ViDoRe v3", "nDCG@5", None, None),
    "beir": Benchmark("BEIR", "nDCG@10", 18, 0.5895),
    "miracl": Benchmark("MIRACL", "nDCG@10", 18, 0.6675),
    "mkqa": Benchmark("MKQA", "Success@10", 26, 0.6819, "Recall@10"),
    "mldr": Benchmark("MLDR", "nDCG@10", 13, 0.5983),
    "coir": Benchmark("CoIR", "nDCG@10", 10, 0.6355),
    "mbeir": Benchmark("M-BEIR", "Success@5", 16, None, "Recall@5"),
    WINOGROUND: Benchmark("Winoground", "mean score", 1, 0.4392),
}

#: M-BEIR's datasets that its authors cut off at ten.
_CUT_OFF_AT_TEN = ("fashion200k", "fashioniq")


@dataclass(frozen=True, slots=True)
class Dataset:
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
    benchmark: Benchmark
    queries: int
    first_stage: float | None
    reranked: float
    low: float | None
    high: float | None
    baseline: float | None
    datasets: tuple[Dataset, ...]
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


def headlines(subsets: Subsets, winoground_logits: Logits) -> list[Headline]:
    """Every benchmark of the lake's queries, in the order of BENCHMARKS, then others by name."""
    by_benchmark: defaultdict[str, dict[str, list[Summary]]] = defaultdict(lambda: defaultdict(list))
    for (name, dataset, _), summary in sorted(subsets.items(), key=lambda item: item[0]):
        by_benchmark[name][dataset].append(summary)
    order = {name: number for number, name in enumerate(BENCHMARKS)}
    result = []
    for name in sorted(by_benchmark, key=lambda name: (order.get(name, len(order)), name)):
        benchmark = BENCHMARKS.get(name, Benchmark(name, "nDCG@10", None, None))
        if name != WINOGROUND:
            result.append(_headline(name, benchmark, by_benchmark[name]))
        elif scores := winoground_scores(winoground_logits):
            result.append(_winoground_headline(benchmark, scores))
    return result


def _headline(name: str, benchmark: Benchmark, subsets_of: Mapping[str, Sequence[Summary]]) -> Headline:
    datasets, resamples = [], []
    for dataset, subsets in subsets_of.items():
        measure = _measure(benchmark, dataset)
        first, reranked, baseline = (
            float(np.mean([subset.means(which)[measure] for subset in subsets]))
            if all(which in subset for subset in subsets)
            else None
            for which in ("first_stage", "reranked", "baseline")
        )
        queries = sum(subset.queries for subset in subsets)
        datasets.append(Dataset(dataset, queries, first, reranked or 0.0, baseline))
        column = NAMES.index(measure)
        resamples.append(np.mean([subset.resampled_means("reranked")[:, column] for subset in subsets], axis=0))
    fewest = min(subset.queries for subsets in subsets_of.values() for subset in subsets)
    low, high = interval(np.mean(resamples, axis=0), fewest)
    return Headline(
        name,
        benchmark,
        sum(dataset.queries for dataset in datasets),
        _mean([dataset.first_stage for dataset in datasets]),
        float(np.mean([dataset.reranked for dataset in datasets])),
        low,
        high,
        _mean([dataset.baseline for dataset in datasets]),
        tuple(datasets),
        {},
    )


def _measure(benchmark: Benchmark, dataset: str) -> str:
    return "Success@10" if benchmark.title == "M-BEIR" and dataset.startswith(_CUT_OFF_AT_TEN) else benchmark.measure


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where any value is missing."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present and len(present) == len(values) else None


@dataclass(frozen=True, slots=True)
class WinogroundScores:
    """Shares of the examples, with an interval of their `mean`, that of the three scores."""

    examples: int
    text: float
    image: float
    group: float
    mean: float
    low: float | None
    high: float | None


def winoground_logits(pairs: Pairs) -> dict[str, dict[str, float]]:
    """The logits of Winoground's queries."""
    logits_of = {}
    for number, labels in enumerate(pairs.labels):
        if WINOGROUND in (labels.get("benchmark"), labels.get("dataset")):
            start, end = np.searchsorted(pairs.query, [number, number + 1])
            docs, logits = pairs.doc_ids.slice(start, end - start).to_pylist(), pairs.logit[start:end].tolist()
            logits_of[pairs.query_ids[number]] = {
                doc: logit for doc, logit in zip(docs, logits, strict=True) if logit == logit
            }
    return logits_of


def winoground_scores(logits: Logits) -> WinogroundScores | None:
    """Scores over all examples; None when there are none. A comparison that lacks a pair is lost, and so is a tie.

    The text score compares captions by the queries that are images, the image score images by the queries that are
    captions; group requires both. Source: T. Thrush et al., Winoground (CVPR 2022), section 3.2, and the evaluation
    code that its authors published.
    """
    examples = sorted({match[1] for query in logits if (match := _WINOGROUND_ID.fullmatch(query))})
    if not examples:
        return None
    correct = np.array([[*_correct(logits, example)] for example in examples], np.float64)  # (N, 2): text, image
    table = np.column_stack([correct, correct.all(axis=1)]).astype(np.float64)
    text, image, group = (float(share) for share in table.mean(axis=0))
    sums = resampled_sums(query_hashes(examples), table)
    with np.errstate(invalid="ignore"):
        low, high = interval(sums[:, :3].mean(axis=1) / sums[:, 3], len(examples))
    return WinogroundScores(len(examples), text, image, group, (text + image + group) / 3, low, high)


def _correct(logits: Logits, example: str) -> Iterator[bool]:
    for query, document in (("i", "c"), ("c", "i")):
        yield all(
            _is_above(
                logits.get(f"{example}:{query}{number}", {}),
                f"{example}:{document}{number}",
                f"{example}:{document}{1 - number}",
            )
            for number in (0, 1)
        )


def _is_above(logits: Mapping[str, float], better: str, worse: str) -> bool:
    return better in logits and worse in logits and logits[better] > logits[worse]


def _winoground_headline(benchmark: Benchmark, scores: WinogroundScores) -> Headline:
    dataset = Dataset(WINOGROUND, scores.examples, None, scores.mean, None)
    details = {"text": scores.text, "image": scores.image, "group": scores.group}
    return Headline(
        WINOGROUND,
        benchmark,
        scores.examples,
        None,
        scores.mean,
        scores.low,
        scores.high,
        None,
        (dataset,),
        details,
    )
