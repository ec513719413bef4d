"""Is a run fit to be published? Each check holds one number of the run against its bound in the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

#: Bins of the logit histogram that every manifest keeps, so that the next run can be held against it.
HISTOGRAM_EDGES = tuple(float(edge) for edge in np.arange(-20.0, 20.25, 0.25))


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the audit. A check without a bound is reported and always passes."""

    name: str
    value: float | None
    bound: float | None
    passed: bool
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The check as it stands in the manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RunCounts:
    """What an audit needs to know of a run. `histogram` counts logits between HISTOGRAM_EDGES, with both ends open."""

    candidates: int
    ranked: int
    beyond_depth: int
    rejected: int
    unscored: int
    queries: int
    unranked_queries: int
    truncated: int
    histogram: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Largest values that still pass; None is not checked."""

    max_reject_rate: float | None = None
    max_unranked_queries: float | None = None
    max_truncated: float | None = None
    max_score_drift: float | None = None
    golden_tolerance: float = 1e-3


def audit(
    counts: RunCounts,
    bounds: Bounds,
    last_histogram: Sequence[int] | None = None,
    golden_errors: Mapping[tuple[str, str], float | None] | None = None,
) -> list[Check]:
    """Every check of a run, in the order they are reported.

    Args:
        last_histogram: of the last published run; None when there is none.
        golden_errors: for every golden pair its |logit − expected|, or None where the run has no logit for it.
    """
    checks = [
        _coverage(counts),
        _share("reject rate", counts.rejected, counts.candidates, bounds.max_reject_rate),
        _share("queries with nothing ranked", counts.unranked_queries, counts.queries, bounds.max_unranked_queries),
        _share("truncated pairs", counts.truncated, counts.ranked, bounds.max_truncated),
    ]
    if last_histogram is not None and any(last_histogram) and any(counts.histogram):
        drift = population_stability(last_histogram, counts.histogram)
        checks.append(_at_most("score drift (PSI)", drift, bounds.max_score_drift, "against the last published run"))
    if golden_errors is not None:
        checks.append(_golden(golden_errors, bounds.golden_tolerance))
    return checks


def population_stability(expected: Sequence[int], actual: Sequence[int], groups: int = 10) -> float:
    """Population stability index between two histograms over the same bins, ≥ 0, 0 when their shapes agree.

    The bins are merged into about `groups` groups of equal expected mass, as is usual for the index, and half a
    count is added to each so that an empty group stays finite. Below 0.1 is usually read as no change, above 0.25
    as a large one (Siddiqi, Credit Risk Scorecards, 2006).
    """
    old = np.asarray(expected, dtype=np.float64)
    new = np.asarray(actual, dtype=np.float64)
    group = np.minimum((np.cumsum(old) - old / 2) / old.sum() * groups, groups - 1).astype(int)
    old_share = np.bincount(group, weights=old, minlength=groups) + 0.5
    new_share = np.bincount(group, weights=new, minlength=groups) + 0.5
    old_share /= old_share.sum()
    new_share /= new_share.sum()
    return float(np.sum((new_share - old_share) * np.log(new_share / old_share)))


def _coverage(counts: RunCounts) -> Check:
    lost = counts.candidates - counts.ranked - counts.beyond_depth - counts.rejected
    detail = f"{counts.unscored} without a score" if counts.unscored else "candidates neither ranked nor rejected"
    return Check("lost candidates", lost, 0, lost == 0 and counts.unscored == 0, detail)


def _share(name: str, part: int, whole: int, bound: float | None) -> Check:
    return _at_most(name, part / whole if whole else 0.0, bound, f"{part:,} of {whole:,}")


def _at_most(name: str, value: float, bound: float | None, detail: str) -> Check:
    return Check(name, value, bound, bound is None or value <= bound, detail)


def _golden(errors: Mapping[tuple[str, str], float | None], tolerance: float) -> Check:
    missing = [pair for pair, error in errors.items() if error is None]
    found = [(error, pair) for pair, error in errors.items() if error is not None]
    worst, where = max(found, default=(0.0, None))
    passed = not missing and worst <= tolerance
    detail = f"{len(missing)} of {len(errors)} have no logit" if missing else f"largest of {len(errors)}: {where}"
    return Check("golden pairs, |logit - expected|", worst, tolerance, passed, detail)
