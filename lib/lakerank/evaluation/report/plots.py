"""The report's plots: as SVG that takes its colours and its font from the page, and as PNG in its light colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

Floats = npt.NDArray[np.float64]

#: Values and the weights they stand for.
Weighted = tuple[Floats, Floats]


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a drawing."""

    ink: str
    muted: str
    rule: str
    strong: str
    soft: str
    loss: str


#: Stand-ins that no plot uses otherwise, for the page's colours; and the colours of its light theme.
_PAGE = Palette("#010101", "#020202", "#030303", "#040404", "#050505", "#060606")
_LIGHT = Palette("#1b1f24", "#5c6570", "#dfe3e8", "#0b6e8f", "#c6ced6", "#b4531a")
_PNG_DPI = 160

Draw = Callable[[Axes, Palette], None]


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing: the file's name, what is written below it, what a screen reader says, and how it is drawn.

    `size` is in inches.
    """

    name: str
    caption: str
    alt: str
    draw: Draw
    size: tuple[float, float] = (3.4, 2.4)

    def svg(self) -> str:
        """The drawing alone, to stand in a page."""
        buffer = io.StringIO()
        with mpl.rc_context():
            figure = self._figure(_PAGE)
            figure.patch.set_alpha(0)
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
        return _themed(buffer.getvalue())

    def png(self) -> bytes:
        """A file of its own, on white."""
        buffer = io.BytesIO()
        with mpl.rc_context():
            figure = self._figure(_LIGHT)
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None, "Description": self.alt})
        return buffer.getvalue()

    def _figure(self, palette: Palette) -> Figure:
        mpl.rcdefaults()  # whatever a matplotlibrc says here, the page is the same everywhere
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


def gain_curve(counts: Floats, measure: str) -> Draw:
    """Every query's change, from the largest gain to the largest loss; `counts` are between edges from -1 to 1."""
    centres = np.linspace(-1, 1, len(counts) * 2 + 1)[1::2]
    held = np.flatnonzero(counts)[::-1]
    ends = np.cumsum(counts[held]) / max(counts.sum(), 1)

    def draw(axes: Axes, palette: Palette) -> None:
        edges = np.concatenate([[0.0], ends])
        gains = centres[held]
        axes.stairs(np.maximum(gains, 0), edges, fill=True, color=palette.strong)
        axes.stairs(np.minimum(gains, 0), edges, fill=True, color=palette.loss)
        axes.axhline(0, color=palette.muted, linewidth=0.8)
        axes.set_xlim(0, 1)
        axes.set_ylim(-1.05, 1.05)
        axes.set_xlabel("queries, from the largest gain to the largest loss")
        axes.set_ylabel(f"change of {measure}")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return draw


def boxes(groups: Sequence[tuple[str, Sequence[float], bool]], measure: str) -> Draw:
    """A box a group, with every member a dot; the run's boxes are the strong ones: (name, values, is the run's)."""

    def draw(axes: Axes, palette: Palette) -> None:
        places = list(range(len(groups), 0, -1))
        line = {"color": palette.muted, "linewidth": 1}
        axes.boxplot(
            [list(values) for _, values, _ in groups],
            positions=places,
            orientation="horizontal",
            widths=0.55,
            showfliers=False,
            medianprops={"color": palette.ink, "linewidth": 1.4},
            boxprops=line,
            whiskerprops=line,
            capprops=line,
        )
        for place, (_, values, is_run) in zip(places, groups, strict=True):
            spread = ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.34  # so that dots do not hide each other
            axes.plot(values, place + spread, "o", color=palette.strong if is_run else palette.soft, markersize=3.4,
                      markeredgecolor=palette.strong if is_run else palette.muted, markeredgewidth=0.5)  # fmt: skip
        axes.set_yticks(places, [name for name, _, _ in groups])
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(measure)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")

    return draw


def calibration_curve(relevance: Sequence[float], relevant: Sequence[float], pairs: Sequence[int]) -> Draw:
    """The share judged relevant over relevance, with a calibrated one's diagonal; a dot's size goes by its pairs."""

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
    """The drawing alone, with the page's colours and font, scaling with the page; what it shows is said beside it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # a style would rule the page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every drawing, and nothing refers to them
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    for name in Palette.__slots__:
        svg = svg.replace(getattr(_PAGE, name), f"var(--{name})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
