"""The report: one self-contained page without scripts, with every stored text escaped."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
from markupsafe import Markup

from lakerank.evaluation.analysis.averages import MODALITY, TASK_AND_SLICE, Slice, by_size
from lakerank.evaluation.evaluation import Evaluation
from lakerank.evaluation.examples import Example, thumbnail
from lakerank.evaluation.metrics.bootstrap import FEWEST_QUERIES, LEVEL, RESAMPLES
from lakerank.evaluation.metrics.measures import NAMES, PRIMARY, SECONDARY
from lakerank.evaluation.report.plots import Plots

_HEADINGS = {
    "dataset": "By dataset",
    "task": "By task",
    "slice": "By slice",
    TASK_AND_SLICE: "By task and slice",
    MODALITY: "By modality (query→candidates)",
    "language": "By language",
}
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def render(evaluation: Evaluation, shown: Mapping[str, Sequence[Example]], plots: Plots) -> str:
    """The page as HTML; the same evaluation gives the same bytes. `shown` has `examples`, `gained` and `lost`."""
    dimensions = {part.dimension for part in evaluation.slices}
    manifest = evaluation.inputs.manifest
    return _environment().get_template("report.html.jinja").render(
        evaluation=evaluation,
        measures=NAMES,
        primary=PRIMARY,
        secondary=SECONDARY,
        slices=[(_HEADINGS[name], by_size(evaluation.slices, name)) for name in _HEADINGS if name in dimensions],
        manifest=defaultdict(lambda: None, manifest),
        headline=_headline(evaluation.overall),
        plots=plots,
        rejects=sorted(evaluation.inputs.totals.rejected.items(), key=lambda item: (-item[1], item[0])),
        work=_work_rows(manifest),
        shown=shown,
        level=LEVEL,
        resamples=RESAMPLES,
        fewest=FEWEST_QUERIES,
    )  # fmt: skip


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lakerank.evaluation.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": lambda value: "–" if value is None else f"{value:.3f}",
        "signed": _signed,
        "p": lambda value: "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}",
        "count": lambda value: "–" if value is None else f"{value:,.0f}",
        "number": _number,
        "share": lambda value: f"{value:.2%}",
        "language_tag": lambda value: value if value and _LANGUAGE_TAG.fullmatch(value) else None,
        "thumbnail": lru_cache(maxsize=None)(thumbnail),
        "drawn": lambda plot: Markup(plot.svg()),  # noqa: S704 - matplotlib escapes its texts
    }
    return environment


def _signed(value: float | None) -> str:
    """A difference with its sign, minus as a minus; exact zero has none."""
    if value is None:
        return "–"
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text.replace("-", "\N{MINUS SIGN}")


def _headline(overall: Slice) -> str:
    """The main result in a sentence."""
    after, random = overall.reranked[PRIMARY], overall.random[PRIMARY]
    queries = f"{overall.queries:,} judged {'query' if overall.queries == 1 else 'queries'}"
    if overall.first_stage is None:
        return f"{PRIMARY} is {after:.3f} over {queries}; a random order of the same candidates gives {random:.3f}."
    gain, before = overall.gain[PRIMARY], overall.first_stage[PRIMARY]
    if f"{before:.3f}" == f"{after:.3f}":
        change = f"leaves {PRIMARY} at {after:.3f}"
    else:
        change = f"{'raises' if gain.mean > 0 else 'lowers'} {PRIMARY} from {before:.3f} to {after:.3f}"
    doubtful = gain.low is not None and gain.high is not None and gain.low <= 0 <= gain.high
    doubt = ", a difference that is not significant with so many queries" if doubtful else ""
    return f"Reranking {change} over {queries}{doubt}; a random order of the same candidates gives {random:.3f}."


def _work_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The run's counts, times and model, as far as its manifest has them."""
    counts, scoring, model = (manifest.get(name) or {} for name in ("counts", "scoring", "model"))
    seconds, scored = scoring.get("seconds"), scoring.get("pairs")
    computed, pairwise = scoring.get("tokens_computed"), scoring.get("tokens_pairwise")
    rows = []
    if "scored" in counts:
        rows.append(("Pairs scored", f"{counts['scored']:,}"))
    if counts.get("reused"):
        rows.append(("Scores reused from the lake", f"{counts['reused']:,}"))
    if seconds and scored:
        rows.append(("Scoring", f"{seconds:,.1f} s, {scored / seconds:,.1f} pairs a second"))
        rows.append(("A million pairs would take", _duration(seconds / scored * 1e6)))
    if computed and pairwise:
        rows.append(("Tokens computed", f"{computed:,}"))
        rows.append(("Tokens, pair by pair", f"{pairwise:,}"))
        rows.append(("Saved by sharing documents", f"{1 - computed / pairwise:.1%} ({pairwise / computed:.1f}× fewer)"))
    if (parameters := model.get("parameters")) and computed and seconds:
        # Two operations a parameter and token (J. Kaplan et al., Scaling Laws for Neural Language Models, 2020).
        operations = 2 * parameters * computed
        rows.append(("Arithmetic", f"{operations / 1e12:,.1f} TFLOP, {operations / seconds / 1e9:,.1f} GFLOP/s"))
    for stage, duration in ((manifest.get("metrics") or {}).get("seconds") or {}).items():
        if duration is not None and stage != "score":
            rows.append((f"{str(stage).capitalize()} stage", _duration(duration)))
    if scoring.get("model_loads"):
        rows.append(("Model loads", f"{scoring['model_loads']:,}"))
    if parameters:
        rows.append(("Model", f"{parameters / 1e6:,.1f} M parameters on {model.get('device', '?')}"))
    return rows + [(f"Stage {stage.get('pass')}", _stage(stage)) for stage in manifest.get("passes") or []]


def _stage(stage: Mapping[str, Any]) -> str:
    """The counts and times of one of several rerankers."""
    counts, scoring, model = (stage.get(name) or {} for name in ("counts", "scoring", "model"))
    top, seconds, tokens = stage.get("top"), scoring.get("seconds"), scoring.get("tokens_computed")
    rejected = sum((stage.get("rejected") or {}).values())
    parts = [
        str(model.get("path") or "?"),
        f"{counts.get('candidates', 0):,} pairs" + (f", the best {top} a query" if top else ""),
        f"{counts.get('new', 0):,} scored in this run",
        f"{seconds:,.1f} s" if seconds else "",
        f"{tokens:,} tokens" if tokens else "",
        f"{rejected:,} it could not score" if rejected else "",
    ]
    return "; ".join(filter(None, parts))


def _duration(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.1f} seconds"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
