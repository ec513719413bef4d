"""A benchmark's result as text for a terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lakerank_benchmark.benchmark import Result
from lakerank_benchmark.figures import Absent, Figure

#: Stages in the order of the work; the first two are processor time ahead of the device.
#: `wait` (for the host's threads) and `rest` are what the device is idle for.
STAGES = ("decode", "tokenise", "vision", "prefix", "suffix", "language", "wait", "rest")


def as_json(result: Result, **more: Any) -> str:
    """Everything, as JSON."""
    return json.dumps(asdict(result) | more, indent=1, ensure_ascii=False) + "\n"


def as_text(result: Result) -> str:
    """Tables of plain text, one after the other."""
    request, machine = result.request, result.machine
    title = (
        f"{result.parameters / 1e6:.1f} M parameters, {request.dtype}, {machine['device']}, {request.threads} threads, "
        f"matrix products {result.ceiling / 1e9:,.0f} GFLOP/s; medians of {request.repeats} interleaved runs"
    )
    ran = [one for one in result.figures if isinstance(one, Figure)]
    blocks = [title, _table(_PACE, [_pace(one) for one in ran]), _shares(ran), _predictions(result)]
    if result.memory:
        blocks.append(_memory(result))
    if result.drifts:
        blocks.append(_drifts(result))
    blocks += [f"{one.contender}: {one.why}" for one in result.figures if isinstance(one, Absent)]
    return "\n\n".join(blocks) + "\n"


_PACE = (
    "workload", "k", "contender", "documents", "pairs", "pairs/s", "±", "× published", "tokens/pair", "padding",
    "GFLOP/pair", "GFLOP/s", "MFU",
)  # fmt: skip


def _pace(one: Figure) -> list[str]:
    return [
        one.workload,
        str(one.k),
        one.contender,
        str(one.documents),
        str(one.pairs),
        f"{one.pairs_per_second:.3g}" if one.pairs_per_second < 1000 else f"{one.pairs_per_second:,.0f}",
        f"{one.spread / 2:.0%}",
        "" if one.ratio is None else f"{one.ratio:.2f}",
        f"{one.tokens_per_pair:.1f}",
        f"{one.padding:.0%}",
        f"{one.gflop_per_pair:.3g}",
        f"{one.gflops:,.0f}",
        f"{one.mfu:.0%}",
    ]


def _shares(ran: Sequence[Figure]) -> str:
    stages = [stage for stage in STAGES if any(stage in one.shares for one in ran)]
    rows = [
        [one.workload, str(one.k), one.contender]
        + [f"{one.shares[stage]:.1%}" if stage in one.shares else "" for stage in stages]
        for one in ran
    ]
    heading = "Shares of wall time (decode and tokenise: threads ahead of the device; wait and rest: the device idle)"
    return f"{heading}\n{_table(('workload', 'k', 'contender', *stages), rows)}"


def _predictions(result: Result) -> str:
    rows = [
        [
            one.workload,
            str(one.k),
            "" if one.predicted_ratio is None else f"{one.predicted_ratio:.1f}",
            "" if one.ratio is None else f"{one.ratio:.1f}",
            f"{one.predicted_ms:.3g}",
            f"{one.ms:.3g}",
            "" if one.reproducible_costs is None else f"{one.reproducible_costs:+.1%}",
        ]
        for one in result.predictions
    ]
    heading = "Predicted by operations alone, and measured; milliseconds a pair from the pace at the smallest k"
    header = (
        "workload", "k", "× predicted", "× measured", "ms/pair predicted", "ms/pair measured", "reproducible costs",
    )  # fmt: skip
    return f"{heading}\n{_table(header, rows)}"


def _memory(result: Result) -> str:
    rows = [
        [one.contender, *("" if size is None else f"{size / 2**20:,.0f}" for size in one.sizes)]
        for one in result.memory
    ]
    heading = f"Peak memory in MiB, each in a process of its own, one document of {result.request.workloads[0]}"
    return f"{heading}\n{_table(('contender', 'libraries', 'loaded', 'scoring', 'on the device'), rows)}"


def _drifts(result: Result) -> str:
    rows = [
        [
            one.contender,
            str(one.pairs),
            f"{one.largest:.2g}",
            f"{one.median:.2g}",
            f"{one.spread:.2g}",
            f"{one.other_sets} of {one.lists}",
            f"{one.other_orders} of {one.lists}",
        ]
        for one in result.drifts
    ]
    header = ("contender", "pairs", "max |Δlogit|", "median", "spread of logits", "other top 10", "other order in it")
    return f"{result.request.dtype} against float32, {result.request.workloads[0]}\n{_table(header, rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need be; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    left = [not any(character.isdigit() for character in "".join(column[:1])) for column in zip(*rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left or [True] * len(widths), strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def summary(result: Result) -> dict[str, Any]:
    """The figures that a job's last line holds."""
    ran = [one for one in result.figures if isinstance(one, Figure)]
    return {
        "device": result.machine["device"],
        "dtype": result.request.dtype,
        "parameters": result.parameters,
        "matmul_gflops": round(result.ceiling / 1e9, 1),
        "tokens_per_second": round(result.calibration.tokens_per_second, 1),
        "figures": [
            {
                "workload": one.workload,
                "k": one.k,
                "contender": one.contender,
                "pairs_per_second": round(one.pairs_per_second, 3),
                "ratio": None if one.ratio is None else round(one.ratio, 2),
                "mfu": round(one.mfu, 3),
            }
            for one in ran
        ],
        "absent": {one.contender: one.why for one in result.figures if isinstance(one, Absent)},
    }
