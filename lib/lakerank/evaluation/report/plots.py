"""The report's plots: as SVG with the page's colours and font, and as PNG in the colours of its light theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lakerank.evaluation.analysis.modality_gap import IMAGE, STAGES, TEXT, Gap, Weighted, bins
from lakerank.evaluation.analysis.samples import pooled
from lakerank.evaluation.analysis.slices import by_size
from lakerank.evaluation.evaluation import Evaluation
from lakerank.evaluation.metrics.gain import Floats
from lakerank.evaluation.metrics.measures import PRIMARY
from lakerank.evaluation.pairs import MODALITY_NAMES

#: Dimensions drawn as boxes in a lake that is no benchmark: the first with enough slices.
_BOXED = ("dataset", "language", "task", "slice")
_FEWEST_DOTS = 3

_RERANKED = "Reranked"

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

Draw = Callable[[Axes, Palette], None]


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing with its file name, its caption, its text for screen readers, and its size in inches."""

    name: str
    caption: str
    alt: str
    draw: Draw
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
            figure = self._figure(_LIGHT)
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None, "Description": self.alt})
        return buffer.getvalue()

    def _figure(self, palette: Palette) -> Figure:
        mpl.rcdefaults()  # a local matplotlibrc must not change the page
        mpl.rcParams.update({**_style(palette), "svg.hashsalt": self.name})
        figure = Figure(figsize=self.size, dpi=_PNG_DPI, layout="constrained")
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        self.draw(axes, palette)
        return figure


def _style(palette: Palette) -> dict[str, object]:
    return {
        "svg.fonttype": "none",
        "font.size": 9,
        "text.color": palette.ink,
        "text.parse_math": False,  # a dataset's name may have dollars in it
        "axes.edgecolor": palette.rule,
        "axes.labelcolor": palette.muted,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "xtick.color": palette.rule,
        "ytick.color": palette.rule,
        "xtick.labelcolor": palette.muted,
        "ytick.labelcolor": palette.muted,
        "ytick.major.size": 0,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": palette.rule,
        "grid.linewidth": 0.6,
    }


def overlaid(filled: Weighted, line: Weighted, edges: Floats, label: str, line_is_loss: bool = False) -> Draw:
    """Two histograms in shares of their own pairs, one filled and one a line over it."""

    def draw(axes: Axes, palette: Palette) -> None:
        shares = [
            np.histogram(values, edges, weights=weights / max(weights.sum(), 1e-300))[0]
            for values, weights in (filled, line)
        ]
        axes.stairs(shares[0], edges, fill=True, color=palette.soft)
        axes.stairs(shares[1], edges, color=palette.loss if line_is_loss else palette.strong, linewidth=1.8)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("share of pairs")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return draw


def gain_curve(gains: Floats, measure: str) -> Draw:
    """The change of every query, from the largest gain to the largest loss: (Q,) in [-1, 1]."""
    numbers = np.clip(((gains + 1) / 2 * _GAIN_BINS).astype(int), 0, _GAIN_BINS - 1)
    counts = np.bincount(numbers, minlength=_GAIN_BINS)
    centres = np.linspace(-1, 1, _GAIN_BINS * 2 + 1)[1::2]
    filled = np.flatnonzero(counts)[::-1]
    edges = np.concatenate([[0.0], np.cumsum(counts[filled]) / max(counts.sum(), 1)])

    def draw(axes: Axes, palette: Palette) -> None:
        axes.stairs(np.maximum(centres[filled], 0), edges, fill=True, color=palette.strong)
        axes.stairs(np.minimum(centres[filled], 0), edges, fill=True, color=palette.loss)
        axes.axhline(0, color=palette.muted, linewidth=0.8)
        axes.set_xlim(0, 1)
        axes.set_ylim(-1.05, 1.05)
        axes.set_xlabel("queries, from the largest gain to the largest loss")
        axes.set_ylabel(f"change of {measure}")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return draw


def boxes(groups: Mapping[str, Sequence[float]], measure: str) -> Draw:
    """A box for each group's values, and a dot for each value; reranked lists are drawn in the strong colour."""

    def draw(axes: Axes, palette: Palette) -> None:
        positions = list(range(len(groups), 0, -1))
        line = {"color": palette.muted, "linewidth": 1}
        axes.boxplot(
            [list(values) for values in groups.values()],
            positions=positions,
            orientation="horizontal",
            widths=0.55,
            showfliers=False,
            medianprops={"color": palette.ink, "linewidth": 1.4},
            boxprops=line,
            whiskerprops=line,
            capprops=line,
        )
        for position, (name, values) in zip(positions, groups.items(), strict=True):
            spread = ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.34  # so that dots do not hide each other
            face, edge = (palette.strong,) * 2 if name == _RERANKED else (palette.soft, palette.muted)
            axes.plot(
                values, position + spread, "o", color=face, markersize=3.4, markeredgecolor=edge, markeredgewidth=0.5
            )
        axes.set_yticks(positions, list(groups))
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(measure)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")

    return draw


def calibration_curve(relevance: Sequence[float], relevant: Sequence[float], pairs: Sequence[int]) -> Draw:
    """The share judged relevant by relevance, with the diagonal of perfect calibration; dots grow with their pairs."""

    def draw(axes: Axes, palette: Palette) -> None:
        axes.plot([0, 1], [0, 1], color=palette.muted, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.plot(relevance, relevant, color=palette.strong, linewidth=1.4)
        most = max(pairs, default=1)
        axes.scatter(relevance, relevant, [8 + 52 * count / most for count in pairs], color=palette.strong)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("relevance")
        axes.set_ylabel("judged relevant")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return draw


def _themed(svg: str) -> str:
    """The drawing alone with the page's colours and font, scaling with the page, hidden from screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # a style is global
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # repeated in every drawing, and never referred to
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    for name in Palette.__slots__:
        svg = svg.replace(getattr(_PAGE, name), f"var(--{name})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def box_plots(evaluation: Evaluation) -> list[Plot]:
    """A box plot of each benchmark, every dataset a dot; of another lake, one of its datasets, languages or tasks."""
    plots = []
    for headline in evaluation.benchmarks:
        datasets = headline.datasets
        groups = {
            "First stage": [dataset.first_stage for dataset in datasets if dataset.first_stage is not None],
            _RERANKED: [dataset.reranked for dataset in datasets],
            "Other run": [dataset.baseline for dataset in datasets if dataset.baseline is not None],
        }
        if len(datasets) >= _FEWEST_DOTS:
            about = headline.benchmark
            plots.append(_box_plot(f"boxes-{headline.name}", about.title, about.measure_name, "dataset", groups))
    for dimension in () if evaluation.benchmarks else _BOXED:
        slices = by_size(evaluation.slices, dimension)
        if len(slices) >= _FEWEST_DOTS:
            groups = {
                "Random order": [part.random[PRIMARY] for part in slices],
                "First stage": [part.first_stage[PRIMARY] for part in slices if part.first_stage],
                _RERANKED: [part.reranked[PRIMARY] for part in slices],
                "Other run": [part.baseline[PRIMARY] for part in slices if part.baseline],
            }
            return [_box_plot("boxes", f"By {dimension}", PRIMARY, dimension, groups)]
    return plots


def _box_plot(name: str, title: str, measure: str, dot: str, groups: Mapping[str, Sequence[float]]) -> Plot:
    groups = {label: values for label, values in groups.items() if values}
    medians = "; ".join(
        f"{label}: median {np.median(values):.3f}, {min(values):.3f} to {max(values):.3f}"
        for label, values in groups.items()
    )
    caption = f"{title}: {measure}, a dot for each of {len(groups[_RERANKED])} {dot}s; a box holds the middle half"
    return Plot(name, caption, f"{caption}. {medians}.", boxes(groups, measure), (7, 0.7 + 0.45 * len(groups)))


def score_plots(evaluation: Evaluation) -> list[Plot]:
    """Distributions of the scores, the change of every query, and the calibration of relevance."""
    plots = []
    for name, label in (("relevance", "relevance"), ("logit", "logit")):
        others, relevant = (pooled(evaluation.samples, name, flag) for flag in (False, True))
        edges = np.linspace(0, 1, 26) if name == "relevance" else bins(np.concatenate([others[0], relevant[0]]), 900)
        caption = (
            f"{label.capitalize()} of {relevant[1].sum():,.0f} pairs judged relevant (line) and of "
            f"{others[1].sum():,.0f} others (filled)"
        )
        means = [np.average(values, weights=weights) if len(values) else 0.0 for values, weights in (relevant, others)]
        alt = f"{caption}. Means: {means[0]:.3f} and {means[1]:.3f}."
        plots.append(Plot(f"histogram-{name}", caption, alt, overlaid(others, relevant, edges, label)))
    plots.append(_gain_plot(evaluation))
    if evaluation.calibration:
        columns = zip(*((part.relevance, part.relevant, part.pairs) for part in evaluation.calibration), strict=True)
        caption = (
            f"Relevance against the share judged relevant; on the dashes it would be a probability. "
            f"Expected calibration error {evaluation.calibration_error:.3f}"
        )
        steps = "; ".join(
            f"{part.relevance:.2f}: {part.relevant:.0%} of {part.pairs:,}" for part in evaluation.calibration
        )
        plots.append(Plot("calibration", caption, f"{caption}. {steps}.", calibration_curve(*columns)))
    return plots


def _gain_plot(evaluation: Evaluation) -> Plot:
    before = "the first stage" if evaluation.overall.first_stage is not None else "the random baseline"
    same = evaluation.overall.queries - evaluation.gained - evaluation.lost
    caption = f"{evaluation.gained:,} queries gain over {before}, {evaluation.lost:,} lose, {same:,} stay"
    draw = gain_curve(evaluation.queries.figures.gain, PRIMARY)
    return Plot("gains", caption, f"{PRIMARY} by query: {caption}.", draw)


def gap_plots(evaluation: Evaluation, gap: Gap) -> list[Plot]:
    """Scores of texts and images overlaid: relevant ones, and others."""
    query = TEXT if gap.query == "text" else IMAGE
    plots = []
    for relevant, name, comparison in ((True, "relevant", gap.relevant), (False, "other", gap.others)):
        texts, images = (
            pooled(evaluation.samples, STAGES[gap.stage], relevant, (query, modality)) for modality in (TEXT, IMAGE)
        )
        if not len(texts[0]) or not len(images[0]):
            continue
        edges = bins(np.concatenate([texts[0], images[0]]), min(len(texts[0]), len(images[0])))
        caption = (
            f"{gap.stage.capitalize()}, {MODALITY_NAMES[query]} queries, {name} documents: {texts[1].sum():,.0f} texts "
            f"(filled) and {images[1].sum():,.0f} images (line)"
        )
        figures = f" They share {comparison.overlap:.0%} of their area; AUC {comparison.auc:.2f}." if comparison else ""
        label = "first-stage score" if gap.stage == "first stage" else "logit"
        name_of_file = f"gap-{gap.stage.replace(' ', '-')}-{gap.query}-{name}"
        plots.append(
            Plot(
                name_of_file, caption, f"{caption}.{figures}", overlaid(texts, images, edges, label, line_is_loss=True)
            )
        )
    return plots
