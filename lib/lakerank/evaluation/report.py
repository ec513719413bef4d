"""The report: one page that needs nothing else, neither network nor script, with every stored text escaped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from lakerank.evaluation.evaluation import Evaluation
from lakerank.evaluation.examples import Example
from lakerank.evaluation.intervals import FEWEST_QUERIES, LEVEL, RESAMPLES
from lakerank.evaluation.lists import MEASURES, PRIMARY, SECONDARY
from lakerank.evaluation.plots import gain_curve, logit_bins, score_histogram
from lakerank.evaluation.slices import MODALITY, Slice, by_size
from lakerank.evaluation.thumbnails import thumbnail

_HEADINGS = {
    "task": "By task",
    "slice": "By slice",
    "task · slice": "By task and slice",
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


def render(evaluation: Evaluation, shown: ShownQueries) -> str:
    """The page as HTML; the same evaluation gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lakerank.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": lambda value: "–" if value is None else f"{value:.3f}",
        "signed": _signed,
        "count": lambda value: "–" if value is None else f"{value:,.0f}",
        "share": lambda value: f"{value:.2%}",
        "language_tag": lambda value: value if value and _LANGUAGE_TAG.fullmatch(value) else None,
        "thumbnail": lru_cache(maxsize=None)(thumbnail),
    }
    dimensions = {one.dimension for one in evaluation.slices}
    return environment.get_template("report.html.jinja").render(
        evaluation=evaluation,
        overall=evaluation.overall,
        measures=list(MEASURES.values()),
        primary=PRIMARY,
        secondary=SECONDARY,
        slices=[(_HEADINGS[name], by_size(evaluation.slices, name)) for name in _HEADINGS if name in dimensions],
        published_at=evaluation.manifest.get("published_at"),
        scorer=evaluation.manifest.get("scorer"),
        headline=_headline(evaluation.overall),
        plots=_plots(evaluation),
        rejects=sorted(evaluation.lists.rejects.items(), key=lambda item: (-item[1], item[0])),
        counts=_counts(evaluation),
        labels=_label_rows(evaluation),
        work=_work(evaluation.manifest),
        shown=shown,
        level=LEVEL,
        resamples=RESAMPLES,
        fewest=FEWEST_QUERIES,
    )


def _signed(value: float | None) -> str:
    """A difference with its sign, minus as a minus; exact zero has none."""
    if value is None:
        return "–"
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text.replace("-", "\N{MINUS SIGN}")


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


def _plots(evaluation: Evaluation) -> list[dict[str, Any]]:
    relevance: tuple[list[float], list[float]] = ([], [])
    logits: tuple[list[float], list[float]] = ([], [])
    for query in evaluation.queries:
        judgements = evaluation.lists.judgements[query]
        for one in evaluation.lists.ranked.get(query, ()):
            other = judgements.get(one.doc_id, 0) <= 0
            relevance[other].append(one.relevance)
            logits[other].append(one.logit)
    gains = [result.gain for result in evaluation.results]
    up, down = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    against = "the first stage" if evaluation.overall.first_stage is not None else "chance"
    key = f"{len(relevance[0]):,} pairs judged relevant (line) and {len(relevance[1]):,} others (filled)"
    unit = np.linspace(0, 1, 26)
    return [
        {"svg": Markup(score_histogram(*relevance, "relevance", unit)), "caption": f"Relevance of {key}"},  # noqa: S704
        {"svg": Markup(score_histogram(*logits, "logit", logit_bins(*logits))), "caption": f"Logits of {key}"},  # noqa: S704
        {
            "svg": Markup(gain_curve(gains, PRIMARY)),  # noqa: S704 - drawn here, of numbers alone
            "caption": f"{up:,} queries gain over {against}, {down:,} lose, {len(gains) - up - down:,} stay",
        },
    ]


def _counts(evaluation: Evaluation) -> dict[str, int]:
    ranked = [one for documents in evaluation.lists.ranked.values() for one in documents]
    rejected = evaluation.lists.rejects.total()
    return {
        "ranked": len(ranked),
        "rejected": rejected,
        "candidates": sum(map(len, evaluation.lists.candidates.values())),
        "truncated": sum(one.truncated for one in ranked),
    }


def _label_rows(evaluation: Evaluation) -> list[tuple[int, int, int]]:
    """(label, ranked pairs, those judged relevant) of the judged queries, the highest label first."""
    pairs: Counter[int] = Counter()
    relevant: Counter[int] = Counter()
    for query in evaluation.queries:
        judgements = evaluation.lists.judgements[query]
        for one in evaluation.lists.ranked.get(query, ()):
            pairs[one.label] += 1
            relevant[one.label] += judgements.get(one.doc_id, 0) > 0
    return [(label, pairs[label], relevant[label]) for label in sorted(pairs, reverse=True)]


def _work(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run took, as far as its manifest says."""
    counts, scoring, model = (manifest.get(name) or {} for name in ("counts", "scoring", "model"))
    rows = []
    if "scored" in counts:
        rows.append(("Pairs scored", f"{counts['scored']:,}"))
    if counts.get("reused"):
        rows.append(("Scores found in the lake", f"{counts['reused']:,}"))
    seconds, scored = scoring.get("seconds"), scoring.get("pairs")
    if seconds and scored:
        rows.append(("Scoring", f"{seconds:,.1f} s, {scored / seconds:,.1f} pairs a second"))
    computed, pairwise = scoring.get("tokens_computed"), scoring.get("tokens_pairwise")
    if computed and pairwise:
        rows.append(("Tokens computed", f"{computed:,}"))
        rows.append(("Tokens, pair by pair", f"{pairwise:,}"))
        rows.append(("Saved by sharing documents", f"{1 - computed / pairwise:.1%} ({pairwise / computed:.1f}× fewer)"))
    if scoring.get("model_loads"):
        rows.append(("Model loads", f"{scoring['model_loads']:,}"))
    if model.get("parameters"):
        rows.append(("Model", f"{model['parameters'] / 1e6:,.1f} M parameters on {model.get('device', '?')}"))
    return rows
