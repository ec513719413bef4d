"""The model card of what a run leaves: what it was trained on, how, and what it measured."""

from __future__ import annotations

from pathlib import Path

import lakerank
from lakerank.training.config import TrainConfig, to_yaml
from lakerank.training.learner import Learner
from lakerank.training.loop import Outcome
from lakerank.training.tables import TrainingLake


def write_card(config: TrainConfig, lake: TrainingLake, outcome: Outcome, learner: Learner) -> None:
    """Write `README.md` beside the adapter and beside the checkpoint, where there are such folders."""
    trained = sum(value.numel() for value in learner.parameters().values())
    for name in ("adapter", "checkpoint"):
        folder = Path(config.output) / name
        if folder.is_dir():
            (folder / "README.md").write_text(_card(name, config, lake, outcome, trained), encoding="utf-8")


def _card(name: str, config: TrainConfig, lake: TrainingLake, outcome: Outcome, trained: int) -> str:
    start = config.start.path or "fresh weights"
    use = f"model.adapter: {config.output}/adapter" if name == "adapter" else f"model.path: {config.output}/checkpoint"
    pictures = int((lake.documents.pictures >= 0).sum())
    lines = [
        "---",
        *([f"base_model: {config.start.path}", "library_name: peft"] if name == "adapter" else []),
        "tags: [reranking, lakerank]",
        "---",
        f"# A reranker {'adapter' if name == 'adapter' else 'checkpoint'} trained by lakerank {lakerank.__version__}",
        "",
        f"Started from {start}; {trained:,} parameters trained in mode `{config.mode}`, {outcome.steps} steps"
        + (" (stopped early; these are the best weights)." if outcome.stopped_early else "."),
        f"Use it with `{use}`. Its licence is that of what it started from and of the data.",
        "",
        "## Data",
        "",
        f"{len(lake.documents.ids):,} documents ({pictures:,} with an image), {len(lake.queries.ids):,} queries, "
        f"{sum(map(len, lake.grades)):,} judgements above 0. Pictures under {config.picture_side}² pixels.",
        "",
        "## Figures",
        "",
    ]
    if outcome.figures:
        lines += [f"nDCG@10 over {config.evaluation.candidates} documents at the last evaluation:", ""]
        lines += ["| slice and direction | nDCG@10 |", "|---|---|"]
        lines += [f"| {slice_name} | {figure:.3f} |" for slice_name, figure in outcome.figures.items()]
    else:
        lines += ["None were measured: the config names no `evaluation.slices`."]
    lines += ["", "## Config", "", "```yaml", to_yaml(config).rstrip(), "```", ""]
    return "\n".join(lines)
