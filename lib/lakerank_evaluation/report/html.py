"""The report: one self-contained page, every stored text escaped. Its one script filters and sorts a table."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from lakerank.credentials import redacted
from lakerank.logs import duration
from lakerank_evaluation.analysis.averages import MODALITY, TASK_AND_SLICE, by_size
from lakerank_evaluation.analysis.calibration import LEAST_KAPPA
from lakerank_evaluation.evaluation import Evaluation
from lakerank_evaluation.examples import thumbnail
from lakerank_evaluation.metrics.bootstrap import FEWEST_QUERIES, LEVEL, RESAMPLES
from lakerank_evaluation.metrics.measures import NAMES, PRIMARY, SECONDARY
from lakerank_evaluation.pairs import InputTable
from lakerank_evaluation.report.plots import Plots
from lakerank_evaluation.report.verdict import verdict

_HEADINGS = {
    "dataset": "By dataset",
    "task": "By task",
    "slice": "By slice",
    TASK_AND_SLICE: "By task and slice",
    MODALITY: "By modality (query→candidates)",
    "language": "By language",
}
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


#: Slices of fewer queries are folded.
_FEW_QUERIES = 10


def render(evaluation: Evaluation, shown: Mapping[str, Any], plots: Plots) -> str:
    """The page as HTML; the same evaluation gives the same bytes.

    `shown`: lists of examples (`examples`, `gained`, `lost`), the table of `queries`, rows `rejected`, the `trend`, the
    `repetition` and its `clusters`, the `reasons`.
    """
    script = files("lakerank_evaluation.report").joinpath("templates/report.js").read_text("utf-8")
    dimensions = {part.dimension for part in evaluation.slices}
    manifest = evaluation.inputs.manifest
    page = _environment().get_template("report.html.jinja").render(
        evaluation=evaluation,
        measures=NAMES,
        primary=PRIMARY,
        secondary=SECONDARY,
        slices=[(_HEADINGS[name], by_size(evaluation.slices, name)) for name in _HEADINGS if name in dimensions],
        manifest=defaultdict(lambda: None, manifest),
        verdict=verdict(evaluation),
        tables=_table_rows(evaluation),
        first_stage=_first_stage(evaluation),
        few_queries=_FEW_QUERIES,
        least_kappa=LEAST_KAPPA,
        script=Markup(script),  # noqa: S704 - a file of the package
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        plots=plots,
        rejects=sorted(evaluation.inputs.totals.rejected.items(), key=lambda item: (-item[1], item[0])),
        work=_work_rows(manifest),
        shown=shown,
        level=LEVEL,
        resamples=RESAMPLES,
        fewest=FEWEST_QUERIES,
        home=f"evaluation-against-{evaluation.baseline}" if evaluation.baseline else "evaluation",
    )  # fmt: skip
    contents = re.findall(r'<h2 id="([a-z0-9-]+)">([^<]+)</h2>', page)  # no stored text has a tag
    links = " ".join(f'<a href="#{name}">{title}</a>' for name, title in contents)
    return page.replace("</nav>", f"{links}</nav>", 1)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lakerank_evaluation.report"),
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
        "percent": lambda value: f"{value:.0%}",
        "language_tag": lambda value: value if value and _LANGUAGE_TAG.fullmatch(value) else None,
        "thumbnail": lru_cache(maxsize=None)(thumbnail),
    }
    return environment


def _signed(value: float | None) -> str:
    """A difference with its sign, minus as a minus; exact zero has none."""
    if value is None:
        return "–"
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text.replace("-", "\N{MINUS SIGN}")


def _table_rows(evaluation: Evaluation) -> list[tuple[str, str, int]]:
    """Each table that the run was made from and is judged by: its name, its address, its rows."""
    inputs, names = evaluation.inputs, ("queries", "qrels", "candidates")  # in the order of InputTable
    files = {"documents": inputs.documents, **dict(zip(names, map(inputs.files.get, InputTable), strict=False))}
    return [
        (name, redacted(getattr(inputs.tables, name)), sum(part.rows for part in parts or ()))
        for name, parts in files.items()
    ]


def _first_stage(evaluation: Evaluation) -> str:
    """What the reranked lists are compared with."""
    least, median, most = np.quantile(evaluation.queries.counts["candidates"], (0, 0.5, 1), method="nearest")
    order = "in the order of their table" if evaluation.inputs.ordered else "without ranks or scores to compare with"
    return f"{median:,} candidates a query (median; {least:,} to {most:,}) {order}"


def _work_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The run's counts, times and model, as far as its manifest has them."""
    counts, scoring, model, metrics = (manifest.get(name) or {} for name in ("counts", "scoring", "model", "metrics"))
    seconds, scored = scoring.get("seconds"), scoring.get("pairs")
    computed, pairwise = scoring.get("tokens_computed"), scoring.get("tokens_pairwise")
    times = {"score": seconds, **(metrics.get("seconds") or {})}
    rows = {"Pairs scored": counts.get("scored"), "Scores reused from the lake": counts.get("reused") or None}
    rows |= {f"{step.capitalize()} stage": _duration(times.get(step)) for step in ("plan", "score", "rank", "audit")}
    if seconds and scored:
        rows |= {"Pairs a second": scored / seconds, "A million pairs would take": _duration(seconds / scored * 1e6)}
    if computed and pairwise:
        saved = f"{1 - computed / pairwise:.1%} ({pairwise / computed:.1f}× fewer)"
        rows |= {"Tokens computed": computed, "Tokens, pair by pair": pairwise, "Saved by sharing documents": saved}
    if parameters := model.get("parameters"):
        rows["Size of the model"] = f"{parameters / 1e6:,.1f} M parameters on {model.get('device', '?')}"
    rows |= {f"Stage {stage.get('pass')}": _stage(stage) for stage in manifest.get("passes") or []}
    return [(name, _number(value)) for name, value in rows.items() if value is not None]


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else duration(seconds)


def _stage(stage: Mapping[str, Any]) -> str:
    """The counts and times of one of several rerankers."""
    counts, scoring, model = (stage.get(name) or {} for name in ("counts", "scoring", "model"))
    top, seconds, tokens = stage.get("top"), scoring.get("seconds"), scoring.get("tokens_computed")
    rejected = sum((stage.get("rejected") or {}).values())
    parts = [
        str(model.get("path") or "?"),
        f"{counts.get('candidates', 0):,} pairs" + (f", the best {top} a query" if top else ""),
        f"{stage['guarantee']['spared']:,} spared by its guarantee" if stage.get("guarantee") else "",
        "{lists:,} lists, {scored:,} of them new".format(**stage["listwise"]) if stage.get("listwise") else "",
        f"{counts.get('new', 0):,} scored in this run",
        duration(seconds) if seconds else "",
        f"{tokens:,} tokens" if tokens else "",
        f"{rejected:,} it could not score" if rejected else "",
    ]
    return "; ".join(filter(None, parts))


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
