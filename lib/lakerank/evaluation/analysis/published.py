"""Benchmarks as their authors count them, and what jina-reranker-m0 is published to reach on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lakerank.evaluation.analysis import winoground
from lakerank.evaluation.metrics.bootstrap import interval
from lakerank.evaluation.metrics.measures import NAMES
from lakerank.evaluation.metrics.sums import Sums

Floats = npt.NDArray[np.float64]

#: (benchmark, dataset, subset) and the sums over its queries.
Parts = Mapping[tuple[str, str, str], Sums]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark's name, the measure it is headed by, how many datasets it has (None: not counted here), and m0's
    published figure, from its model card of April 2025 (None: none).
    """

    title: str
    measure: str
    datasets: int | None
    published: float | None
    shown_as: str = ""

    @property
    def measure_name(self) -> str:
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
    "winoground": Benchmark("Winoground", "mean score", 1, 0.4392),
}

#: M-BEIR's datasets that its authors count at ten.
_AT_TEN = ("fashion200k", "fashioniq")


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset's figures: one dot of the box plot."""

    name: str
    queries: int
    first_stage: float | None
    reranked: float
    against: float | None


@dataclass(frozen=True, slots=True)
class Headline:
    """A benchmark's figures, of all its datasets that the lake has: means over queries, then subsets, then datasets."""

    name: str
    benchmark: Benchmark
    queries: int
    first_stage: float | None
    reranked: float
    low: float | None
    high: float | None
    against: float | None
    datasets: tuple[Dataset, ...]
    details: Mapping[str, float]

    @property
    def setting(self) -> str:
        """Where the published figure was measured otherwise, as far as that can be told from here."""
        if self.benchmark.published is None:
            return "no figure was published"
        whole = self.benchmark.datasets
        notes = ["published for jina-reranker-m0's full weights"]
        if whole is not None and len(self.datasets) != whole:
            notes.append(f"over all {whole} datasets, here {len(self.datasets)}")
        if self.first_stage is not None:
            notes.append("over its publisher's first stage, here this lake's candidates")
        return "; ".join(notes)


def headlines(parts: Parts, ordered: bool, scores: winoground.Scores) -> list[Headline]:
    """Every benchmark that the lake's queries belong to, in the order of BENCHMARKS, then others by name."""
    by_benchmark: defaultdict[str, dict[str, list[Sums]]] = defaultdict(lambda: defaultdict(list))
    for (own, dataset, _), sums in sorted(parts.items(), key=lambda part: part[0]):
        by_benchmark[own][dataset].append(sums)
    order = {name: number for number, name in enumerate(BENCHMARKS)}
    names = sorted(by_benchmark, key=lambda name: (order.get(name, len(order)), name))
    found = []
    for name in names:
        benchmark = BENCHMARKS.get(name, Benchmark(name, "nDCG@10", None, None))
        if name == winoground.NAME:
            if judged := winoground.judge(scores):
                found.append(_of_winoground(benchmark, judged))
        else:
            found.append(_headline(name, benchmark, by_benchmark[name], ordered))
    return found


def _headline(name: str, benchmark: Benchmark, datasets: Mapping[str, Sequence[Sums]], ordered: bool) -> Headline:
    shown, drawn = [], []
    for dataset, subsets in datasets.items():
        measure = _measure(benchmark, dataset)
        column = NAMES.index(measure)
        queries = sum(int(sums.queries) for sums in subsets)
        first = float(np.mean([sums.means(1)[measure] for sums in subsets])) if ordered else None
        against = (
            float(np.mean([sums.means(2)[measure] for sums in subsets]))
            if all(s.has_against for s in subsets)
            else None
        )
        shown.append(Dataset(dataset, queries, first, float(np.mean([s.means(0)[measure] for s in subsets])), against))
        drawn.append(np.mean([sums.resampled_means(0)[:, column] for sums in subsets], axis=0))
    fewest = min(int(sums.queries) for subsets in datasets.values() for sums in subsets)
    low, high = interval(np.mean(drawn, axis=0), fewest)
    return Headline(
        name,
        benchmark,
        sum(one.queries for one in shown),
        _mean([one.first_stage for one in shown]),
        float(np.mean([one.reranked for one in shown])),
        low,
        high,
        _mean([one.against for one in shown]),
        tuple(shown),
        {},
    )


def _measure(benchmark: Benchmark, dataset: str) -> str:
    return "Success@10" if benchmark.title == "M-BEIR" and dataset.startswith(_AT_TEN) else benchmark.measure


def _mean(values: Sequence[float | None]) -> float | None:
    held = [value for value in values if value is not None]
    return float(np.mean(held)) if held and len(held) == len(values) else None


def _of_winoground(benchmark: Benchmark, judged: winoground.Winoground) -> Headline:
    dataset = Dataset(winoground.NAME, judged.examples, None, judged.mean, None)
    details = {"text": judged.text, "image": judged.image, "group": judged.group}
    return Headline(
        winoground.NAME,
        benchmark,
        judged.examples,
        None,
        judged.mean,
        judged.low,
        judged.high,
        None,
        (dataset,),
        details,
    )
