"""What a run took and whether it was fit to be published, as far as its manifest says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def audit_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str, str, bool, str]]:
    """(name, value, bound, whether it passed, detail) of each check, as they were made."""
    rows = []
    for check in manifest.get("audit") or []:
        bound = check.get("bound")
        at_most = "not bounded" if bound is None else f"at most {_number(bound)}"
        passed, detail = bool(check.get("passed")), str(check.get("detail") or "")
        rows.append((str(check.get("name")), _number(check.get("value")), at_most, passed, detail))
    return rows


def published_anyway(manifest: Mapping[str, Any]) -> str | None:
    """Who published the run although checks failed, and why; None when nobody had to."""
    found = manifest.get("published_anyway")
    return f"Published all the same by {found.get('by')}: {found.get('reason')}" if found else None


def work_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run took."""
    counts, scoring, model = (manifest.get(name) or {} for name in ("counts", "scoring", "model"))
    rows = []
    if "scored" in counts:
        rows.append(("Pairs scored", f"{counts['scored']:,}"))
    if counts.get("reused"):
        rows.append(("Scores found in the lake", f"{counts['reused']:,}"))
    seconds, scored = scoring.get("seconds"), scoring.get("pairs")
    if seconds and scored:
        rows.append(("Scoring", f"{seconds:,.1f} s, {scored / seconds:,.1f} pairs a second"))
        rows.append(("A million pairs would take", _duration(seconds / scored * 1e6)))
    computed, pairwise = scoring.get("tokens_computed"), scoring.get("tokens_pairwise")
    if computed and pairwise:
        rows.append(("Tokens computed", f"{computed:,}"))
        rows.append(("Tokens, pair by pair", f"{pairwise:,}"))
        rows.append(("Saved by sharing documents", f"{1 - computed / pairwise:.1%} ({pairwise / computed:.1f}× fewer)"))
    parameters = model.get("parameters")
    if parameters and computed and seconds:
        # Two operations a parameter and token (J. Kaplan et al., Scaling Laws for Neural Language Models, 2020).
        operations = 2 * parameters * computed
        rows.append(("Arithmetic", f"{operations / 1e12:,.1f} TFLOP, {operations / seconds / 1e9:,.1f} GFLOP/s"))
    for stage, took in ((manifest.get("metrics") or {}).get("seconds") or {}).items():
        if took is not None and stage != "score":
            rows.append((f"{str(stage).capitalize()} stage", _duration(took)))
    if scoring.get("model_loads"):
        rows.append(("Model loads", f"{scoring['model_loads']:,}"))
    if parameters:
        rows.append(("Model", f"{parameters / 1e6:,.1f} M parameters on {model.get('device', '?')}"))
    return rows + [_pass_row(one) for one in manifest.get("passes") or []]


def _pass_row(one: Mapping[str, Any]) -> tuple[str, str]:
    """What one of several rerankers took."""
    counts, scoring, model = (one.get(name) or {} for name in ("counts", "scoring", "model"))
    said = [
        str(model.get("path") or "?"),
        f"{counts.get('candidates', 0):,} pairs" + (f", the best {one['top']} a query" if one.get("top") else ""),
        f"{counts.get('new', 0):,} scored in this run",
    ]
    if scoring.get("seconds"):
        said.append(f"{scoring['seconds']:,.1f} s")
    if scoring.get("tokens_computed"):
        said.append(f"{scoring['tokens_computed']:,} tokens")
    rejected = sum((one.get("rejected") or {}).values())
    return f"Pass {one.get('pass')}", "; ".join([*said, *([f"{rejected:,} it could not score"] if rejected else [])])


def _duration(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.1f} seconds"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
