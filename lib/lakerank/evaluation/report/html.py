"""The report: one page that needs nothing else, neither network nor script, with every stored text escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import jinja2
from markupsafe import Markup

from lakerank.evaluation.analysis.modality_gap import Gap
from lakerank.evaluation.analysis.slices import MODALITY, TASK_AND_SLICE, Slice, by_size
from lakerank.evaluation.evaluation import Evaluation
from lakerank.evaluation.metrics.bootstrap import FEWEST_QUERIES, LEVEL, RESAMPLES
from lakerank.evaluation.metrics.measures import NAMES, PRIMARY, SECONDARY
from lakerank.evaluation.report.examples import Example
from lakerank.evaluation.report.plot_list import box_plots, gap_plots, score_plots
from lakerank.evaluation.report.plots import Plot
from lakerank.evaluation.report.thumbnails import thumbnail
from lakerank.evaluation.report.work import audit_rows, published_anyway, work_rows

_HEADINGS = {
    "dataset": "By dataset",
    "task": "By task",
    "slice": "By slice",
    TASK_AND_SLICE: "By task and slice",
    MODALITY: "By modality (query→candidates)",
    "language": "By language",
}
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True, slots=True)
class ShownQueries:
    """The queries that the report shows with the tops of their lists."""

    examples: Sequence[Example]
    gained: Sequence[Example]
    lost: Sequence[Example]


@dataclass(frozen=True, slots=True)
class Plots:
    """The plots of every part of the page."""

    boxes: Sequence[Plot]
    scores: Sequence[Plot]
    gaps: Sequence[tuple[Gap, Sequence[Plot]]]

    def every(self) -> list[Plot]:
        """All of them."""
        return [*self.boxes, *self.scores, *(plot for _, plots in self.gaps for plot in plots)]


def plots_of(evaluation: Evaluation) -> Plots:
    """What is drawn of an evaluation."""
    gaps = [(gap, gap_plots(evaluation, gap)) for gap in evaluation.gaps]
    return Plots(box_plots(evaluation), score_plots(evaluation), gaps)


def render(evaluation: Evaluation, shown: ShownQueries, plots: Plots) -> str:
    """The page as HTML; the same evaluation gives the same bytes."""
    dimensions = {one.dimension for one in evaluation.slices}
    manifest = evaluation.inputs.manifest
    return _environment().get_template("report.html.jinja").render(
        evaluation=evaluation,
        overall=evaluation.overall,
        measures=list(NAMES),
        primary=PRIMARY,
        secondary=SECONDARY,
        slices=[(_HEADINGS[name], by_size(evaluation.slices, name)) for name in _HEADINGS if name in dimensions],
        published_at=manifest.get("published_at"),
        scorer=manifest.get("scorer"),
        headline=_headline(evaluation.overall),
        against=_against(evaluation),
        plots=plots,
        totals=evaluation.inputs.totals,
        rejects=sorted(evaluation.inputs.totals.rejected.items(), key=lambda item: (-item[1], item[0])),
        rejected=sum(evaluation.inputs.totals.rejected.values()),
        audit=audit_rows(manifest),
        published_anyway=published_anyway(manifest),
        work=work_rows(manifest),
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
        "p": _p,
        "count": lambda value: "–" if value is None else f"{value:,.0f}",
        "share": lambda value: f"{value:.2%}",
        "language_tag": lambda value: value if value and _LANGUAGE_TAG.fullmatch(value) else None,
        "thumbnail": lru_cache(maxsize=None)(thumbnail),
        "drawn": lambda plot: Markup(plot.svg()),  # noqa: S704 - drawn here; its words are escaped by matplotlib
    }
    return environment


def _signed(value: float | None) -> str:
    """A difference with its sign, minus as a minus; exact zero has none."""
    if value is None:
        return "–"
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text.replace("-", "\N{MINUS SIGN}")


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _headline(overall: Slice) -> str:
    """What the figures come to, in a sentence."""
    after, chance = overall.reranked[PRIMARY], overall.chance[PRIMARY]
    queries = f"{overall.queries:,} judged {'query' if overall.queries == 1 else 'queries'}"
    if overall.first_stage is None:
        return f"{PRIMARY} is {after:.3f} over {queries}; a random order of the same candidates gives {chance:.3f}."
    gain = overall.gain[PRIMARY]
    before = overall.first_stage[PRIMARY]
    if f"{before:.3f}" == f"{after:.3f}":
        change = f"leaves {PRIMARY} at {after:.3f}"
    else:
        change = f"{'raises' if gain.mean > 0 else 'lowers'} {PRIMARY} from {before:.3f} to {after:.3f}"
    doubt = ""
    if gain.low is not None and gain.high is not None and gain.low <= 0 <= gain.high:
        doubt = ", a difference that so many queries cannot tell from none"
    return f"Reranking {change} over {queries}{doubt}; a random order of the same candidates gives {chance:.3f}."


def _against(evaluation: Evaluation) -> str | None:
    """How the run stands to the other one, in a sentence."""
    overall = evaluation.overall
    if overall.against is None:
        return None
    gain = overall.against_gain[PRIMARY]
    sure = "" if gain.p is None else f" (paired t-test: p {_p(gain.p) if gain.p < 0.001 else '= ' + _p(gain.p)})"
    return (
        f"Run {evaluation.against} has {overall.against[PRIMARY]:.3f} on the same queries: "
        f"this run's {PRIMARY} differs by {_signed(gain.mean)}{sure}."
    )
