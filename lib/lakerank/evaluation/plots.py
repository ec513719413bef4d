"""The report's plots as SVG that takes its colours and its font from the page, and so follows light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

#: Stand-ins that no plot uses otherwise, and the page's colours that take their place.
INK, MUTED, RULE, STRONG, SOFT, LOSS = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    STRONG: "var(--strong)",
    SOFT: "var(--soft)",
    LOSS: "var(--loss)",
}

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
}


def score_histogram(relevant: Sequence[float], others: Sequence[float], label: str, bins: np.ndarray) -> str:
    """SVG of two overlaid histograms, in shares of their own pairs: filled for the others, a line for the relevant."""

    edges = bins.tolist()

    def draw(axes: Axes) -> None:
        if others:
            axes.hist(others, edges, weights=np.full(len(others), 1 / len(others)), color=SOFT)
        if relevant:
            weights = np.full(len(relevant), 1 / len(relevant))
            axes.hist(relevant, edges, weights=weights, histtype="step", color=STRONG, linewidth=1.8)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(label)
        axes.set_ylabel("share of pairs")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return _svg(draw, f"histogram of {label}")


def gain_curve(gains: Sequence[float], measure: str) -> str:
    """SVG of every query's change, from the largest gain to the largest loss."""
    ordered = np.sort(np.asarray(gains, np.float64))[::-1]

    def draw(axes: Axes) -> None:
        places = (np.arange(len(ordered)) + 0.5) / len(ordered)
        axes.fill_between(places, ordered, 0, where=ordered >= 0, step="mid", color=STRONG, linewidth=0)
        axes.fill_between(places, ordered, 0, where=ordered <= 0, step="mid", color=LOSS, linewidth=0)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xlim(0, 1)
        axes.set_ylim(-1.05, 1.05)
        axes.set_xlabel("queries, from the largest gain to the largest loss")
        axes.set_ylabel(f"change of {measure}")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return _svg(draw, f"change of {measure} by query")


def logit_bins(*logits: Sequence[float]) -> np.ndarray:
    """Thirty bins over everything but the furthest thousandth on either side."""
    found = np.concatenate([np.asarray(one, np.float64) for one in logits] or [np.zeros(0)])
    if not len(found):
        return np.linspace(-1, 1, 31)
    low, high = np.quantile(found, [0.001, 0.999])
    return np.linspace(low, high if high > low else low + 1, 31)


def _svg(draw: Callable[[Axes], None], salt: str) -> str:
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever a matplotlibrc says here, the page is the same everywhere
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": salt})
        figure = Figure(figsize=(3.4, 2.4), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return themed(buffer.getvalue())


def themed(svg: str) -> str:
    """The drawing alone, with the page's colours and font, scaling with the page and silent to screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # a style would rule the page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every drawing, and nothing refers to them
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for stand_in, colour in _PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
