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
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lakerank.ingest import datasets
from lakerank_evaluation.analysis.scores import IMAGE, STAGES, TEXT, Gap, Weighted, bins, scores_of
from lakerank_evaluation.evaluation import Evaluation
from lakerank_evaluation.metrics.measures import PRIMARY, Floats
from lakerank_evaluation.pairs import MODALITY_NAMES

_PNG_DPI = 160

#: The colours of the page's light theme by their names in its style sheet: on the page the theme's take their places.
INK, MUTED, RULE = "#1b1f24", "#5c6570", "#dfe3e8"
STRONG, SOFT, LOSS = "#0b6e8f", "#c6ced6", "#b4531a"
_NAMES = {INK: "ink", MUTED: "muted", RULE: "rule", STRONG: "strong", SOFT: "soft", LOSS: "loss"}

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a dataset's name may have dollars in it
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), RULE),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True, slots=True)
class Words:
    """What is said of a plot: its file name without suffix, its caption, and its text for screen readers."""

    name: str
    caption: str
    alt: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing: `svg` to be embedded in the page, `png` a file on white."""

    words: Words
    svg: str
    png: bytes


def drawn(
    words: Words, draw: Callable[[Axes], object], percent: str = "", size: tuple[float, float] = (3.4, 2.4), **axes: Any
) -> Plot:
    """A drawing of some inches. `percent` is the axis ("x" or "y") whose values are shares; `axes`: limits, labels."""
    svg, png = io.StringIO(), io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()  # a local matplotlibrc must not change the page
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": words.name})
        figure = Figure(figsize=size, layout="constrained")
        area = figure.add_subplot()
        area.patch.set_alpha(0)
        draw(area)
        area.set(**axes)
        if percent:
            getattr(area, f"{percent}axis").set_major_formatter(PercentFormatter(1, decimals=0))
        figure.savefig(png, dpi=_PNG_DPI, metadata={"Software": None, "Description": words.alt})
        figure.patch.set_alpha(0)
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Plot(words, _themed(svg.getvalue()), png.getvalue())


def _themed(svg: str) -> str:
    """The drawing alone with the page's colours and font, scaling with the page, hidden from screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # a style is global
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # repeated in every drawing, and never referred to
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    for colour, name in _NAMES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


#: The plots by section of the page: `boxes`, `scores`, and each gap.
Plots = Mapping[str | Gap, Sequence[Plot]]


def plots_of(evaluation: Evaluation) -> Plots:
    """The plots of an evaluation."""
    boxes = datasets("box_plots").box_plots(evaluation) if evaluation.benchmarks else []
    plots: dict[str | Gap, list[Plot]] = {"boxes": boxes, "scores": _score_plots(evaluation)}
    return plots | {gap: _gap_plots(evaluation, gap) for gap in evaluation.gaps}


def _score_plots(evaluation: Evaluation) -> list[Plot]:
    """Distributions of the scores, the change of every query, and the calibration of relevance."""
    plots = []
    for name in ("relevance", "logit"):
        others, relevant = (scores_of(evaluation.pairs, name, flag) for flag in (False, True))
        edges = np.linspace(0, 1, 26) if name == "relevance" else bins(np.concatenate([others[0], relevant[0]]), 900)
        caption = (
            f"{name.capitalize()} of {relevant[1].sum():,.0f} pairs judged relevant (line) and of "
            f"{others[1].sum():,.0f} others (filled)"
        )
        means = [np.average(values, weights=weights) if len(values) else 0.0 for values, weights in (relevant, others)]
        alt = f"{caption}. Means: {means[0]:.3f} and {means[1]:.3f}."
        plots.append(_overlaid(Words(f"histogram-{name}", caption, alt), (others, relevant), edges, name))
    return [*plots, _gain_plot(evaluation), *([_calibration_plot(evaluation)] if evaluation.calibration else [])]


def _gap_plots(evaluation: Evaluation, gap: Gap) -> list[Plot]:
    """Scores of texts and images overlaid: relevant ones, and others."""
    query = MODALITY_NAMES.index(gap.query)
    plots = []
    for relevant, name, comparison in ((True, "relevant", gap.relevant), (False, "other", gap.others)):
        texts, images = (
            scores_of(evaluation.pairs, STAGES[gap.stage], relevant, (query, modality)) for modality in (TEXT, IMAGE)
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
        words = Words(f"gap-{gap.stage.replace(' ', '-')}-{gap.query}-{name}", caption, f"{caption}.{figures}")
        plots.append(_overlaid(words, (texts, images), edges, label, LOSS))
    return plots


def _overlaid(words: Words, scores: tuple[Weighted, Weighted], edges: Floats, label: str, line: str = STRONG) -> Plot:
    """Two histograms in shares of their own pairs, one filled and one a line over it."""
    filled, lined = (
        np.histogram(values, edges, weights=weights / max(weights.sum(), 1e-300))[0] for values, weights in scores
    )

    def draw(axes: Axes) -> None:
        axes.stairs(filled, edges, fill=True, color=SOFT)
        axes.stairs(lined, edges, color=line, linewidth=1.8)

    limits = {"xlim": (edges[0], edges[-1]), "ylim": (0, None)}
    return drawn(words, draw, percent="y", xlabel=label, ylabel="share of pairs", **limits)


def _gain_plot(evaluation: Evaluation) -> Plot:
    """The change of every query, from the largest gain to the largest loss."""
    losses, counts = np.unique(-evaluation.queries.figures.gain.round(3), return_counts=True)
    edges = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])

    def draw(axes: Axes) -> None:
        axes.stairs(np.maximum(-losses, 0), edges, fill=True, color=STRONG)
        axes.stairs(np.minimum(-losses, 0), edges, fill=True, color=LOSS)
        axes.axhline(0, color=MUTED, linewidth=0.8)

    before = "the first stage" if evaluation.overall.first_stage is not None else "the random baseline"
    same = evaluation.overall.queries - evaluation.gained - evaluation.lost
    caption = f"{evaluation.gained:,} queries gain over {before}, {evaluation.lost:,} lose, {same:,} stay"
    words = Words("gains", caption, f"{PRIMARY} by query: {caption}.")
    order = "queries, from the largest gain to the largest loss"
    limits = {"xlim": (0, 1), "ylim": (-1.05, 1.05)}
    return drawn(words, draw, percent="x", xlabel=order, ylabel=f"change of {PRIMARY}", **limits)


def _calibration_plot(evaluation: Evaluation) -> Plot:
    """The share judged relevant by relevance, with the diagonal of perfect calibration; dots grow with their pairs."""
    bins = evaluation.calibration
    relevance, relevant, pairs = zip(*((part.relevance, part.relevant, part.pairs) for part in bins), strict=True)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.plot(relevance, relevant, color=STRONG, linewidth=1.4)
        axes.scatter(relevance, relevant, [8 + 52 * count / max(pairs) for count in pairs], color=STRONG)
        axes.xaxis.set_major_locator(MaxNLocator(5))

    caption = (
        f"Relevance against the share judged relevant; on the dashes it would be a probability. "
        f"Expected calibration error {evaluation.calibration_error:.3f}"
    )
    steps = "; ".join(f"{part.relevance:.2f}: {part.relevant:.0%} of {part.pairs:,}" for part in bins)
    words, limits = Words("calibration", caption, f"{caption}. {steps}."), (-0.02, 1.02)
    return drawn(words, draw, percent="y", xlim=limits, ylim=limits, xlabel="relevance", ylabel="judged relevant")
