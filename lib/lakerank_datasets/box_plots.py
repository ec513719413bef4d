"""The report's box plots of benchmarks: `lakerank_evaluation` calls this."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from lakerank.cli.cells import fit
from lakerank_datasets.headlines import Headline
from lakerank_evaluation.evaluation import Evaluation
from lakerank_evaluation.report.plots import INK, MUTED, SOFT, STRONG, Plot, Words, drawn

_FEWEST_DOTS = 3
_RERANKED = "Reranked"


def box_plots(evaluation: Evaluation) -> list[Plot]:
    """Those of the benchmarks of some datasets."""
    shown = (headline for headline in evaluation.benchmarks if len(headline.datasets) >= _FEWEST_DOTS)
    return [_box_plot(headline, evaluation.baseline) for headline in shown]


def _box_plot(headline: Headline, baseline: str | None) -> Plot:
    """A box for each list's figures of a benchmark, every dataset a dot; those of the reranked lists are in colour."""
    figures = ((dataset.first_stage, dataset.reranked, dataset.baseline) for dataset in headline.datasets)
    labels = ("First stage", _RERANKED, f"Run {fit(baseline or '', 20)}")
    columns = dict(zip(labels, zip(*figures, strict=True), strict=True))
    groups = {label: [value for value in column if value is not None] for label, column in columns.items()}
    groups = {label: values for label, values in groups.items() if values}
    positions = list(range(len(groups), 0, -1))

    def draw(axes: Axes) -> None:
        line = {"color": MUTED, "linewidth": 1}
        axes.boxplot(
            list(groups.values()),
            positions=positions,
            orientation="horizontal",
            widths=0.55,
            showfliers=False,
            medianprops={"color": INK, "linewidth": 1.4},
            boxprops=line,
            whiskerprops=line,
            capprops=line,
        )
        for position, (label, values) in zip(positions, groups.items(), strict=True):
            spread = ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.34  # so that dots do not hide each other
            face, edge = (STRONG, STRONG) if label == _RERANKED else (SOFT, MUTED)
            axes.plot(
                values, position + spread, "o", color=face, markersize=3.4, markeredgecolor=edge, markeredgewidth=0.5
            )
        axes.set_yticks(positions, list(groups))
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")

    medians = "; ".join(
        f"{label}: median {np.median(values):.3f}, {min(values):.3f} to {max(values):.3f}"
        for label, values in groups.items()
    )
    measure = headline.benchmark.measure_name
    dots = f"a dot for each of {len(headline.datasets)} datasets; a box holds the middle half"
    caption = f"{headline.benchmark.title}: {measure}, {dots}"
    words = Words(f"boxes-{headline.name}", caption, f"{caption}. {medians}.")
    return drawn(words, draw, size=(5.2, 0.7 + 0.4 * len(groups)), xlim=(-0.02, 1.02), xlabel=measure)
