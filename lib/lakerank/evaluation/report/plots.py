"""The report's plots: as SVG with the page's colours and font, and as PNG in the colours of its light theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lakerank.evaluation.analysis.averages import by_size
from lakerank.evaluation.analysis.scores import IMAGE, STAGES, TEXT, Gap, Weighted, bins, pooled
from lakerank.evaluation.evaluation import Evaluation
from lakerank.evaluation.metrics.measures import PRIMARY
from lakerank.evaluation.pairs import MODALITY_NAMES, Floats
from lakerank.evaluation.report.cells import fit

#: Dimensions drawn as boxes in a lake that is no benchmark: the first with enough slices.
_BOXED = ("dataset", "language", "task", "slice")
_FEWEST_DOTS = 3

_RERANKED = "Reranked"
_BOXES = ("Random order", "First stage", _RERANKED)

#: Bins of the gains' histogram, from -1 to 1.
_GAIN_BINS = 2001


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a drawing."""

    ink: str
    muted: str
    rule: str
    strong: str
    soft: str
    loss: str


#: Placeholders of the page's colours, which no plot uses otherwise; and the colours of its light theme.
_PAGE = Palette("#010101", "#020202", "#030303", "#040404", "#050505", "#060606")
_LIGHT = Palette("#1b1f24", "#5c6570", "#dfe3e8", "#0b6e8f", "#c6ced6", "#b4531a")
_PNG_DPI = 160

Draw = Callable[[Axes, Palette], object]


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing with its file name, its caption, its text for screen readers, and its size in inches.

    `axes` are the limits and labels, `percent` the axis ("x" or "y") whose values are shares.
    """

    name: str
    caption: str
    alt: str
    draw: Draw
    axes: Mapping[str, Any]
    percent: str = ""
    size: tuple[float, float] = (3.4, 2.4)

    def svg(self) -> str:
        """The drawing alone, to be embedded in the page."""
        buffer = io.StringIO()
        with mpl.rc_context():
            figure = self._figure(_PAGE)
            figure.patch.set_alpha(0)
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
        return _themed(buffer.getvalue())

    def png(self) -> bytes:
        """A file, on white."""
        buffer = io.BytesIO()
        with mpl.rc_context():
            metadata = {"Software": None, "Description": self.alt}
            FigureCanvasAgg(self._figure(_LIGHT)).print_png(buffer, metadata=metadata)
        return buffer.getvalue()

    def _figure(self, palette: Palette) -> Figure:
        mpl.rcdefaults()  # a local matplotlibrc must not change the page
        mpl.rcParams.update({**_style(palette), "svg.hashsalt": self.name})
        figure = Figure(figsize=self.size, dpi=_PNG_DPI, layout="constrained")
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        self.draw(axes, palette)
        axes.set(**self.axes)
        if self.percent:
            getattr(axes, f"{self.percent}axis").set_major_formatter(PercentFormatter(1, decimals=0))
        return figure


def _style(palette: Palette) -> dict[str, object]:
    return {
        "svg.fonttype": "none",
        "font.size": 9,
        "text.color": palette.ink,
        "text.parse_math": False,  # a dataset's name may have dollars in it
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), palette.rule),
        **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), palette.muted),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
        "ytick.major.size": 0,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.linewidth": 0.6,
    }


def _themed(svg: str) -> str:
    """The drawing alone with the page's colours and font, scaling with the page, hidden from screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # a style is global
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # repeated in every drawing, and never referred to
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    for name in Palette.__slots__:
        svg = svg.replace(getattr(_PAGE, name), f"var(--{name})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


#: The plots by section of the page: `boxes`, `scores`, and each gap.
Plots = Mapping[str | Gap, Sequence[Plot]]


def plots_of(evaluation: Evaluation) -> Plots:
    """The plots of an evaluation."""
    plots: dict[str | Gap, list[Plot]] = {"boxes": _box_plots(evaluation), "scores": _score_plots(evaluation)}
    return plots | {gap: _gap_plots(evaluation, gap) for gap in evaluation.gaps}


def _box_plots(evaluation: Evaluation) -> list[Plot]:
    """A box plot of each benchmark, every dataset a dot; of another lake, one of its datasets, languages or tasks."""
    plots, dots = [], list[tuple[float | None, ...]]()
    for headline in evaluation.benchmarks:
        dots = [(None, dataset.first_stage, dataset.reranked, dataset.baseline) for dataset in headline.datasets]
        about = headline.benchmark
        if len(dots) >= _FEWEST_DOTS:
            name = f"boxes-{headline.name}"
            plots.append(_box_plot(name, about.title, about.measure_name, "dataset", dots, evaluation.baseline))
    for dimension in () if evaluation.benchmarks else _BOXED:
        slices = by_size(evaluation.slices, dimension)
        if len(slices) >= _FEWEST_DOTS:
            lists = [(part.random, part.first_stage, part.reranked, part.baseline) for part in slices]
            dots = [tuple(None if figures is None else figures[PRIMARY] for figures in row) for row in lists]
            return [_box_plot("boxes", f"By {dimension}", PRIMARY, dimension, dots, evaluation.baseline)]
    return plots


def _box_plot(
    name: str, title: str, measure: str, dot: str, dots: Sequence[Sequence[float | None]], baseline: str | None
) -> Plot:
    """A box for the values of each list, and a dot for each value; reranked lists are drawn in the strong colour."""
    columns = zip((*_BOXES, f"Run {fit(baseline or '', 20)}"), zip(*dots, strict=True), strict=True)
    every = {label: [value for value in values if value is not None] for label, values in columns}
    groups = {label: values for label, values in every.items() if values}
    positions = list(range(len(groups), 0, -1))

    def draw(axes: Axes, palette: Palette) -> None:
        line = {"color": palette.muted, "linewidth": 1}
        axes.boxplot(
            list(groups.values()),
            positions=positions,
            orientation="horizontal",
            widths=0.55,
            showfliers=False,
            medianprops={"color": palette.ink, "linewidth": 1.4},
            boxprops=line,
            whiskerprops=line,
            capprops=line,
        )
        for position, (label, values) in zip(positions, groups.items(), strict=True):
            spread = ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.34  # so that dots do not hide each other
            face, edge = (palette.strong,) * 2 if label == _RERANKED else (palette.soft, palette.muted)
            marker: dict[str, Any] = {"color": face, "markersize": 3.4, "markeredgecolor": edge, "markeredgewidth": 0.5}
            axes.plot(values, position + spread, "o", **marker)
        axes.set_yticks(positions, list(groups))
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")

    medians = "; ".join(
        f"{label}: median {np.median(values):.3f}, {min(values):.3f} to {max(values):.3f}"
        for label, values in groups.items()
    )
    caption = f"{title}: {measure}, a dot for each of {len(groups[_RERANKED])} {dot}s; a box holds the middle half"
    axes, size = {"xlim": (-0.02, 1.02), "xlabel": measure}, (5.2, 0.7 + 0.4 * len(groups))
    return Plot(name, caption, f"{caption}. {medians}.", draw, axes, size=size)


def _score_plots(evaluation: Evaluation) -> list[Plot]:
    """Distributions of the scores, the change of every query, and the calibration of relevance."""
    plots = []
    for name in ("relevance", "logit"):
        others, relevant = (pooled(evaluation.samples, name, flag) for flag in (False, True))
        edges = np.linspace(0, 1, 26) if name == "relevance" else bins(np.concatenate([others[0], relevant[0]]), 900)
        caption = (
            f"{name.capitalize()} of {relevant[1].sum():,.0f} pairs judged relevant (line) and of "
            f"{others[1].sum():,.0f} others (filled)"
        )
        means = [np.average(values, weights=weights) if len(values) else 0.0 for values, weights in (relevant, others)]
        alt = f"{caption}. Means: {means[0]:.3f} and {means[1]:.3f}."
        plots.append(_overlaid(f"histogram-{name}", (caption, alt), (others, relevant), edges, name))
    return [*plots, _gain_plot(evaluation), *([_calibration_plot(evaluation)] if evaluation.calibration else [])]


def _gap_plots(evaluation: Evaluation, gap: Gap) -> list[Plot]:
    """Scores of texts and images overlaid: relevant ones, and others."""
    query = MODALITY_NAMES.index(gap.query)
    plots = []
    for relevant, name, comparison in ((True, "relevant", gap.relevant), (False, "other", gap.others)):
        texts, images = (
            pooled(evaluation.samples, STAGES[gap.stage], relevant, (query, modality)) for modality in (TEXT, IMAGE)
        )
        if not len(texts[0]) or not len(images[0]):
            continue
        edges = bins(np.concatenate([texts[0], images[0]]), min(len(texts[0]), len(images[0])))
        caption = (
            f"{gap.stage.capitalize()}, {gap.query} queries, {name} documents: {texts[1].sum():,.0f} texts "
            f"(filled) and {images[1].sum():,.0f} images (line)"
        )
        figures = f" They share {comparison.overlap:.0%} of their area; AUC {comparison.auc:.2f}." if comparison else ""
        label = "first-stage score" if gap.stage == "first stage" else "logit"
        plot_name = f"gap-{gap.stage.replace(' ', '-')}-{gap.query}-{name}"
        plots.append(_overlaid(plot_name, (caption, f"{caption}.{figures}"), (texts, images), edges, label, "loss"))
    return plots


def _overlaid(
    name: str,
    texts: tuple[str, str],
    scores: tuple[Weighted, Weighted],
    edges: Floats,
    label: str,
    line: str = "strong",
) -> Plot:
    """Two histograms in shares of their own pairs, one filled and one a line over it. `texts`: caption and alt."""
    filled, lined = (
        np.histogram(values, edges, weights=weights / max(weights.sum(), 1e-300))[0] for values, weights in scores
    )

    def draw(axes: Axes, palette: Palette) -> None:
        axes.stairs(filled, edges, fill=True, color=palette.soft)
        axes.stairs(lined, edges, color=getattr(palette, line), linewidth=1.8)

    axes = {"xlim": (edges[0], edges[-1]), "ylim": (0, None), "xlabel": label, "ylabel": "share of pairs"}
    return Plot(name, *texts, draw, axes, percent="y")


def _gain_plot(evaluation: Evaluation) -> Plot:
    """The change of every query, from the largest gain to the largest loss."""
    gains = evaluation.queries.figures.gain  # (Q,) in [-1, 1]
    numbers = np.clip(((gains + 1) / 2 * _GAIN_BINS).astype(int), 0, _GAIN_BINS - 1)
    counts = np.bincount(numbers, minlength=_GAIN_BINS)
    filled = np.flatnonzero(counts)[::-1]
    changes = np.linspace(-1, 1, _GAIN_BINS * 2 + 1)[1::2][filled]
    edges = np.concatenate([[0.0], np.cumsum(counts[filled]) / max(counts.sum(), 1)])

    def draw(axes: Axes, palette: Palette) -> None:
        axes.stairs(np.maximum(changes, 0), edges, fill=True, color=palette.strong)
        axes.stairs(np.minimum(changes, 0), edges, fill=True, color=palette.loss)
        axes.axhline(0, color=palette.muted, linewidth=0.8)

    before = "the first stage" if evaluation.overall.first_stage is not None else "the random baseline"
    same = evaluation.overall.queries - evaluation.gained - evaluation.lost
    caption = f"{evaluation.gained:,} queries gain over {before}, {evaluation.lost:,} lose, {same:,} stay"
    labels = {"xlabel": "queries, from the largest gain to the largest loss", "ylabel": f"change of {PRIMARY}"}
    axes = {"xlim": (0, 1), "ylim": (-1.05, 1.05), **labels}
    return Plot("gains", caption, f"{PRIMARY} by query: {caption}.", draw, axes, percent="x")


def _calibration_plot(evaluation: Evaluation) -> Plot:
    """The share judged relevant by relevance, with the diagonal of perfect calibration; dots grow with their pairs."""
    bins = evaluation.calibration
    relevance, relevant, pairs = zip(*((part.relevance, part.relevant, part.pairs) for part in bins), strict=True)

    def draw(axes: Axes, palette: Palette) -> None:
        axes.plot([0, 1], [0, 1], color=palette.muted, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.plot(relevance, relevant, color=palette.strong, linewidth=1.4)
        axes.scatter(relevance, relevant, [8 + 52 * count / max(pairs) for count in pairs], color=palette.strong)
        axes.xaxis.set_major_locator(MaxNLocator(5))

    caption = (
        f"Relevance against the share judged relevant; on the dashes it would be a probability. "
        f"Expected calibration error {evaluation.calibration_error:.3f}"
    )
    steps = "; ".join(f"{part.relevance:.2f}: {part.relevant:.0%} of {part.pairs:,}" for part in bins)
    axes = {"xlim": (-0.02, 1.02), "ylim": (-0.02, 1.02), "xlabel": "relevance", "ylabel": "judged relevant"}
    return Plot("calibration", caption, f"{caption}. {steps}.", draw, axes, percent="y")
