"""A benchmark's result as a picture: how far ahead by k, measured and predicted, and where our time goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lakerank.errors import DependencyError
from lakerank_benchmark.benchmark import Result
from lakerank_benchmark.contenders import REPRODUCIBLE
from lakerank_benchmark.figures import Figure, Prediction

_STAGES = ("vision", "prefix", "suffix", "wait", "rest")
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#9c6b4e")


def draw(result: Result, file: Path) -> None:
    """Write a PNG.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Picture
    except ImportError as error:
        raise DependencyError(f"{error}: pip install 'lakerank[report]'") from error
    picture = Picture(figsize=(11, 4.2), layout="constrained")
    left, right = picture.subplots(1, 2)
    relative = any(one.ratio is not None for one in result.predictions)
    for number, workload in enumerate(result.request.workloads):
        cells = sorted((one for one in result.predictions if one.workload == workload), key=lambda one: one.k)
        _lines(left, workload, cells, _COLOURS[number % len(_COLOURS)], relative)
    if relative:
        left.axhline(1, color="grey", linewidth=0.8)
    height = "pairs/s over the published loop" if relative else "pairs/s"
    left.set(xscale="log", yscale="log", xlabel="queries a document", ylabel=height)
    left.set_xticks(result.request.ks, [str(k) for k in result.request.ks], minor=False)
    left.legend(frameon=False, title="dashed: predicted by operations")
    ours = [one for one in result.figures if isinstance(one, Figure) and one.contender == REPRODUCIBLE]
    _bars(right, ours)
    picture.suptitle(
        f"{result.parameters / 1e6:.0f} M parameters, {result.request.dtype}, {result.machine['device']}, "
        f"{result.request.threads} threads",
        fontsize=10,
    )
    FigureCanvasAgg(picture).print_png(file)


def _lines(axes: Any, workload: str, cells: Sequence[Prediction], colour: str, relative: bool) -> None:
    """Measured and predicted: how far ahead of the published loop, or pairs a second where it did not run."""
    for predicted, style, label in ((False, "o-", workload), (True, "--", None)):
        heights = [_height(one, predicted, relative) for one in cells]
        known = [(one.k, height) for one, height in zip(cells, heights, strict=True) if height]
        axes.plot([k for k, _ in known], [height for _, height in known], style, color=colour, label=label)


def _height(one: Prediction, predicted: bool, relative: bool) -> float | None:
    if relative:
        return one.predicted_ratio if predicted else one.ratio
    milliseconds = one.predicted_ms if predicted else one.ms
    return 1000 / milliseconds if milliseconds else None


def _bars(axes: Any, ours: Sequence[Figure]) -> None:
    names = [f"{one.workload}, k = {one.k}" for one in ours]
    start = [0.0] * len(ours)
    for stage, colour in zip(_STAGES, _COLOURS, strict=True):
        shares = [one.shares.get(stage, 0.0) for one in ours]
        axes.barh(names, shares, left=start, color=colour, label=stage)
        start = [before + share for before, share in zip(start, shares, strict=True)]
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel=f"share of wall time, {REPRODUCIBLE}")
    axes.legend(frameon=False, ncols=len(_STAGES), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
