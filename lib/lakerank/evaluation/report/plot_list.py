"""Which plots a report has, what is written below each, and what a screen reader says of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lakerank.evaluation.analysis.modality_gap import IMAGE, STAGES, TEXT, Gap, bins
from lakerank.evaluation.analysis.published import Headline
from lakerank.evaluation.analysis.samples import pooled
from lakerank.evaluation.analysis.slices import Slice, by_size
from lakerank.evaluation.evaluation import Evaluation
from lakerank.evaluation.metrics.measures import PRIMARY
from lakerank.evaluation.report.plots import Plot, boxes, calibration_curve, gain_curve, overlaid
from lakerank.evaluation.rows import MODALITY_NAMES

#: Slices of these are drawn as boxes in a lake that is no benchmark: the first that has enough of them.
_BOXED = ("dataset", "language", "task", "slice")
_FEWEST_DOTS = 3


def box_plots(evaluation: Evaluation) -> list[Plot]:
    """A box plot of each benchmark, every dataset a dot; of another lake, one of its datasets, languages or tasks."""
    found = [
        _boxes(f"boxes-{one.name}", one.benchmark.title, one.benchmark.measure_name, "dataset", _columns(one))
        for one in evaluation.benchmarks
        if len(one.datasets) >= _FEWEST_DOTS
    ]
    for dimension in () if evaluation.benchmarks else _BOXED:
        slices = by_size(evaluation.slices, dimension)
        if len(slices) >= _FEWEST_DOTS:
            return [_boxes("boxes", f"By {dimension}", PRIMARY, dimension, _slice_columns(slices, evaluation.against))]
    return found


def _columns(one: Headline) -> list[tuple[str, list[float], bool]]:
    columns = [
        ("First stage", [d.first_stage for d in one.datasets if d.first_stage is not None], False),
        ("Reranked", [d.reranked for d in one.datasets], True),
        ("Other run", [d.against for d in one.datasets if d.against is not None], False),
    ]
    return [column for column in columns if column[1]]


def _slice_columns(slices: Sequence[Slice], against: str | None) -> list[tuple[str, list[float], bool]]:
    columns = [
        ("Chance", [one.chance[PRIMARY] for one in slices], False),
        ("First stage", [one.first_stage[PRIMARY] for one in slices if one.first_stage], False),
        ("Reranked", [one.reranked[PRIMARY] for one in slices], True),
        ("Other run", [one.against[PRIMARY] for one in slices if one.against], False),
    ]
    return [column for column in columns if column[1]]


def _boxes(name: str, title: str, measure: str, dot: str, columns: list[tuple[str, list[float], bool]]) -> Plot:
    medians = "; ".join(
        f"{label}: median {np.median(values):.3f}, {min(values):.3f} to {max(values):.3f}"
        for label, values, _ in columns
    )
    count = len(columns[0][1])
    caption = f"{title}: {measure}, a dot for each of {count} {dot}s; a box holds the middle half"
    return Plot(name, caption, f"{caption}. {medians}.", boxes(columns, measure), (7, 0.7 + 0.45 * len(columns)))


def score_plots(evaluation: Evaluation) -> list[Plot]:
    """Distributions of the scores, every query's change, and how relevance is calibrated."""
    found = []
    for name, label in (("relevance", "relevance"), ("logit", "logit")):
        others, relevant = (pooled(evaluation.samples, name, flag) for flag in (False, True))
        edges = np.linspace(0, 1, 26) if name == "relevance" else bins(np.concatenate([others[0], relevant[0]]), 900)
        caption = (
            f"{label.capitalize()} of {relevant[1].sum():,.0f} pairs judged relevant (line) and of "
            f"{others[1].sum():,.0f} others (filled)"
        )
        means = [np.average(values, weights=weights) if len(values) else 0.0 for values, weights in (relevant, others)]
        alt = f"{caption}. Means: {means[0]:.3f} and {means[1]:.3f}."
        found.append(Plot(f"histogram-{name}", caption, alt, overlaid(others, relevant, edges, label)))
    found.append(_gain_plot(evaluation))
    if bars := evaluation.calibration:
        columns = ([one.relevance for one in bars], [one.relevant for one in bars], [one.pairs for one in bars])
        caption = (
            f"Relevance against the share judged relevant; on the dashes it would be a probability. "
            f"Expected calibration error {evaluation.calibration_error:.3f}"
        )
        steps = "; ".join(f"{one.relevance:.2f}: {one.relevant:.0%} of {one.pairs:,}" for one in bars)
        found.append(Plot("calibration", caption, f"{caption}. {steps}.", calibration_curve(*columns)))
    return found


def _gain_plot(evaluation: Evaluation) -> Plot:
    counts = evaluation.counts
    against = "the first stage" if evaluation.overall.first_stage is not None else "chance"
    same = evaluation.overall.queries - counts.gained - counts.lost
    caption = f"{counts.gained:,} queries gain over {against}, {counts.lost:,} lose, {same:,} stay"
    return Plot("gains", caption, f"{PRIMARY} by query: {caption}.", gain_curve(counts.gains, PRIMARY))


def gap_plots(evaluation: Evaluation, gap: Gap) -> list[Plot]:
    """Scores of texts and images overlaid: relevant ones, and others."""
    query = TEXT if gap.query == "text" else IMAGE
    found = []
    for relevant, name, compared in ((True, "relevant", gap.relevant), (False, "other", gap.others)):
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
        said = f" They share {compared.overlap:.0%} of their area; AUC {compared.auc:.2f}." if compared else ""
        label = "first-stage score" if gap.stage == "first stage" else "logit"
        file = f"gap-{gap.stage.replace(' ', '-')}-{gap.query}-{name}"
        found.append(Plot(file, caption, f"{caption}.{said}", overlaid(texts, images, edges, label, line_is_loss=True)))
    return found
