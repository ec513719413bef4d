"""What a run leaves for people: a plot of its progress, and the model card of its adapter or checkpoint."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lakerank
from lakerank.training.dataset import Dataset
from lakerank.training.trainer import TrainingResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelCard:
    """`README.md` beside the adapter and beside the checkpoint: what was trained on what, how, and with what result."""

    start: str | None  # None: from scratch
    mode: str
    parameters: int
    dataset: Dataset
    config: str  # as YAML
    result: TrainingResult

    def write(self, output: Path, side: int, candidates: int) -> None:
        """Write it into each of the two folders that is there.

        `side`: of the largest square that images were brought under; `candidates`: documents that figures are over.
        """
        for name in ("adapter", "checkpoint"):
            if (output / name).is_dir():
                (output / name / "README.md").write_text(self._text(name, output, side, candidates), encoding="utf-8")

    def _text(self, name: str, output: Path, side: int, candidates: int) -> str:
        use = f"model.adapter: {output}/adapter" if name == "adapter" else f"model.path: {output}/checkpoint"
        documents, queries, result = self.dataset.documents, self.dataset.queries, self.result
        lines = [
            "---",
            *([f"base_model: {self.start}", "library_name: peft"] if name == "adapter" else []),
            "tags: [reranking, lakerank]",
            "---",
            f"# A reranker {name} trained by lakerank {lakerank.__version__}",
            "",
            f"Started from {self.start or 'fresh weights'}; {self.parameters:,} parameters trained in mode "
            f"`{self.mode}`, {result.steps} steps"
            + (" (stopped early; these are the best weights)." if result.stopped_early else "."),
            f"Use it with `{use}`. Its licence is that of what it started from and of the data.",
            "",
            "## Data",
            "",
            f"{len(documents.ids):,} documents ({int((documents.images >= 0).sum()):,} with an image), "
            f"{len(queries.ids):,} queries, {sum(map(len, self.dataset.grades)):,} judgements above 0. "
            f"Images under {side}² pixels.",
            "",
            "## Figures",
            "",
        ]
        if result.figures:
            lines += [f"nDCG@10 over {candidates} documents at the last evaluation:", ""]
            lines += ["| slice and direction | nDCG@10 |", "|---|---|"]
            lines += [f"| {slice_name} | {figure:.3f} |" for slice_name, figure in result.figures.items()]
        else:
            lines += ["None were measured: the config names no `evaluation.slices`."]
        return "\n".join([*lines, "", "## Config", "", "```yaml", self.config.rstrip(), "```", ""])


def draw_progress(metrics: Path, image: Path) -> None:
    """Draw `metrics.jsonl` as a PNG: losses by step, and held-out nDCG@10 below. Without matplotlib there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.info("no %s: it takes matplotlib (pip install 'lakerank[report]')", image.name)
        return
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = _series(record for record in records if "loss" in record)
    figures = _series({"step": record["step"], **record["ndcg@10"]} for record in records if record.get("ndcg@10"))
    window = max(1, len([record for record in records if "loss" in record]) // 100)
    figure = Figure(figsize=(8, 6 if figures else 3.5), layout="constrained")
    axes = figure.subplots(2 if figures else 1, 1, squeeze=False, sharex=True)[:, 0]
    for name, points in losses.items():
        steps, values = np.array(points).T
        axes[0].plot(steps, _moving_average(values, window), label=name, linewidth=1)
    axes[0].set_ylabel(f"loss (mean of {window} steps)" if window > 1 else "loss")
    for name, points in figures.items():
        axes[-1].plot(*np.array(points).T, marker="o", markersize=3, linewidth=1, label=name)
    if figures:
        axes[-1].set_ylabel("nDCG@10")
        axes[-1].set_ylim(0, 1)
    for each in axes:
        each.legend(fontsize="small")
    axes[-1].set_xlabel("step")
    figure.savefig(image, dpi=120)


def _series(records: Any) -> Mapping[str, list[tuple[int, float]]]:
    """(step, value) of each quantity, by its name."""
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for record in records:
        for name in record.keys() - {"step", "stage", "norm", "rate", "seconds", "loss"}:
            series[name].append((record["step"], record[name]))
    return dict(sorted(series.items()))


def _moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values, of fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    average: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return average
