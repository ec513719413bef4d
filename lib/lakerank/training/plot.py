"""A picture of a training run: losses by step, and held-out nDCG@10 below."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)


def draw_progress(metrics: Path, picture: Path) -> None:
    """Draw `metrics.jsonl` as a PNG. Without matplotlib there is no picture, and the log says so."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.info("no %s: it takes matplotlib (pip install 'lakerank[report]')", picture.name)
        return
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if "loss" in record]
    judged = [record for record in records if record.get("ndcg@10")]
    figure = Figure(figsize=(8, 6 if judged else 3.5), layout="constrained")
    axes = figure.subplots(2 if judged else 1, 1, squeeze=False, sharex=True)[:, 0]
    _losses(axes[0], steps)
    if judged:
        _figures(axes[1], judged)
    axes[-1].set_xlabel("step")
    figure.savefig(picture, dpi=120)


def _losses(axes: Any, steps: list[dict[str, Any]]) -> None:
    by_name: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for record in steps:
        for name in record.keys() - {"step", "stage", "norm", "rate", "seconds", "loss"}:
            by_name[name].append((record["step"], record[name]))
    window = max(1, len(steps) // 100)
    for name, points in sorted(by_name.items()):
        where, values = np.array(points).T
        axes.plot(where, _smooth(values, window), label=name, linewidth=1)
    axes.set_ylabel(f"loss (mean of {window} steps)" if window > 1 else "loss")
    axes.legend(fontsize="small")


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values, of fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    smooth: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return smooth


def _figures(axes: Any, judged: list[dict[str, Any]]) -> None:
    for name in sorted({name for record in judged for name in record["ndcg@10"]}):
        points = [(record["step"], record["ndcg@10"][name]) for record in judged if name in record["ndcg@10"]]
        axes.plot(*np.array(points).T, marker="o", markersize=3, linewidth=1, label=name)
    axes.set_ylabel("nDCG@10")
    axes.set_ylim(0, 1)
    axes.legend(fontsize="small")
