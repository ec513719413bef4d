"""A benchmark's result as text for a terminal, as JSON, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lakerank.errors import requires
from lakerank_benchmark.benchmark import Memory, Result
from lakerank_benchmark.figures import Absent, Drift, Figure, Prediction, ran
from lakerank_benchmark.request import REPRODUCIBLE

#: Stages in the order of the work; the first two are processor time ahead of the device.
#: `wait` (for the host's threads) and `rest` are what the device is idle for.
STAGES = ("decode", "tokenise", "vision", "prefix", "suffix", "language", "wait", "rest")

#: Columns of a table: a header, and the field and format of its cells, or a function that makes them.
_Columns = Mapping[str, tuple[str, str] | Callable[[Any], str]]

_CELL: _Columns = {"workload": ("workload", ""), "k": ("k", "")}
_PACE: _Columns = {
    **_CELL,
    "contender": ("contender", ""),
    "documents": ("documents", ""),
    "pairs": ("pairs", ""),
    "pairs/s": lambda figure: format(figure.pairs_per_second, ".3g" if figure.pairs_per_second < 1000 else ",.0f"),
    "±": lambda figure: f"{figure.spread / 2:.0%}",
    "× published": ("ratio", ".2f"),
    "tokens/pair": ("tokens_per_pair", ".1f"),
    "padding": ("padding", ".0%"),
    "GFLOP/pair": ("gflop_per_pair", ".3g"),
    "GFLOP/s": ("gflops", ",.0f"),
    "MFU": ("mfu", ".0%"),
}
_PREDICTIONS: _Columns = {
    **_CELL,
    "× predicted": ("predicted_ratio", ".1f"),
    "× measured": ("ratio", ".1f"),
    "ms/pair predicted": ("predicted_ms", ".3g"),
    "ms/pair measured": ("ms", ".3g"),
    "reproducible costs": ("reproducible_costs", "+.1%"),
}


def _mebibytes(field: str) -> Callable[[Memory], str]:
    return lambda memory: "" if getattr(memory, field) is None else f"{getattr(memory, field) / 2**20:,.0f}"


_MEMORY: _Columns = {
    "contender": ("contender", ""),
    "libraries": _mebibytes("before"),
    "loaded": _mebibytes("loaded"),
    "scoring": _mebibytes("peak"),
    "on the device": _mebibytes("device"),
}
_DRIFTS: _Columns = {
    "contender": ("contender", ""),
    "pairs": ("pairs", ""),
    "max |Δlogit|": ("largest", ".2g"),
    "median": ("median", ".2g"),
    "spread of logits": ("spread", ".2g"),
    "other top 10": lambda drift: f"{drift.other_sets} of {drift.lists}",
    "other order in it": lambda drift: f"{drift.other_orders} of {drift.lists}",
}


def as_json(result: Result) -> str:
    """Everything, as JSON."""
    return json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n"


def as_text(result: Result) -> str:
    """Tables of plain text, one after the other."""
    request, results = result.request, ran(result.figures)
    stages = [stage for stage in STAGES if any(stage in figure.shares for figure in results)]
    shares: _Columns = {**_CELL, "contender": ("contender", ""), **{stage: _share(stage) for stage in stages}}
    blocks = [
        f"{result.parameters / 1e6:.1f} M parameters, {request.dtype}, {result.machine['device']}, "
        f"{request.threads} threads, matrix products {result.ceiling / 1e9:,.0f} GFLOP/s; medians of "
        f"{request.repeats} interleaved runs",
        _table(_PACE, results),
        "Shares of wall time (decode and tokenise: threads ahead of the device; wait and rest: the device idle)\n"
        + _table(shares, results),
        "Predicted by operations alone, and measured; milliseconds a pair from the pace at the smallest k\n"
        + _table(_PREDICTIONS, result.predictions),
    ]
    first = request.workloads[0]
    if result.memory:
        heading = f"Peak memory in MiB, each in a process of its own, one document of {first}"
        blocks.append(f"{heading}\n{_table(_MEMORY, result.memory)}")
    if result.drifts:
        blocks.append(f"{request.dtype} against float32, {first}\n{_table(_DRIFTS, result.drifts)}")
    blocks += [f"{figure.contender}: {figure.why}" for figure in result.figures if isinstance(figure, Absent)]
    return "\n\n".join(blocks) + "\n"


def _share(stage: str) -> Callable[[Figure], str]:
    return lambda figure: f"{figure.shares[stage]:.1%}" if stage in figure.shares else ""


def _table(columns: _Columns, records: Sequence[Figure | Prediction | Memory | Drift]) -> str:
    """Columns as wide as they need be; numbers to the right."""
    lines: list[str] = [""] * (1 + len(records))
    for header, column in columns.items():
        cells = [header, *(_cell(column, record) for record in records)]
        width = max(map(len, cells))
        numbers = len(cells) > 1 and any(character.isdigit() for character in cells[1])
        padded = [cell.rjust(width) if numbers else cell.ljust(width) for cell in cells]
        lines = [f"{line}{cell}  " for line, cell in zip(lines, padded, strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def _cell(column: tuple[str, str] | Callable[[Any], str], record: object) -> str:
    if callable(column):
        return column(record)
    value = getattr(record, column[0])
    return "" if value is None else format(value, column[1])


def summary(result: Result) -> dict[str, Any]:
    """The figures that a job's last line holds."""
    return {
        "device": result.machine["device"],
        "dtype": result.request.dtype,
        "parameters": result.parameters,
        "matmul_gflops": round(result.ceiling / 1e9, 1),
        "tokens_per_second": round(result.calibration.tokens_per_second, 1),
        "figures": [
            {
                "workload": figure.workload,
                "k": figure.k,
                "contender": figure.contender,
                "pairs_per_second": round(figure.pairs_per_second, 3),
                "ratio": None if figure.ratio is None else round(figure.ratio, 2),
                "mfu": round(figure.mfu, 3),
            }
            for figure in ran(result.figures)
        ],
        "absent": {figure.contender: figure.why for figure in result.figures if isinstance(figure, Absent)},
    }


_BARS = ("vision", "prefix", "suffix", "wait", "rest")
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#9c6b4e")


def draw(result: Result, file: Path) -> None:
    """Write a PNG: how far ahead by k, measured and predicted, and where our time goes.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    with requires("report"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Picture
    request = result.request
    picture = Picture(figsize=(11, 4.2), layout="constrained")
    left, right = picture.subplots(1, 2)
    relative = any(cell.ratio is not None for cell in result.predictions)
    for number, workload in enumerate(request.workloads):
        cells = sorted((cell for cell in result.predictions if cell.workload == workload), key=lambda cell: cell.k)
        for predicted, style, label in ((False, "o-", workload), (True, "--", None)):
            points = [(cell.k, height) for cell in cells if (height := _height(cell, predicted, relative))]
            colour = _COLOURS[number % len(_COLOURS)]
            left.plot([k for k, _ in points], [height for _, height in points], style, color=colour, label=label)
    if relative:
        left.axhline(1, color="grey", linewidth=0.8)
    unit = "pairs/s over the published loop" if relative else "pairs/s"
    left.set(xscale="log", yscale="log", xlabel="queries a document", ylabel=unit)
    left.set_xticks(request.ks, [str(k) for k in request.ks], minor=False)
    left.legend(frameon=False, title="dashed: predicted by operations")
    _draw_shares(right, ran(result.figures, REPRODUCIBLE))
    title = f"{result.parameters / 1e6:.0f} M parameters, {request.dtype}, {result.machine['device']}, "
    picture.suptitle(f"{title}{request.threads} threads", fontsize=10)
    FigureCanvasAgg(picture).print_png(file)


def _height(cell: Prediction, predicted: bool, relative: bool) -> float | None:
    """How far ahead of the published loop, or pairs a second where it did not run."""
    if relative:
        return cell.predicted_ratio if predicted else cell.ratio
    milliseconds = cell.predicted_ms if predicted else cell.ms
    return 1000 / milliseconds if milliseconds else None


def _draw_shares(axes: Any, ours: Sequence[Figure]) -> None:
    names = [f"{figure.workload}, k = {figure.k}" for figure in ours]
    start = [0.0] * len(ours)
    for stage, colour in zip(_BARS, _COLOURS, strict=True):
        shares = [figure.shares.get(stage, 0.0) for figure in ours]
        axes.barh(names, shares, left=start, color=colour, label=stage)
        start = [before + share for before, share in zip(start, shares, strict=True)]
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel=f"share of wall time, {REPRODUCIBLE}")
    axes.legend(frameon=False, ncols=len(_BARS), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
