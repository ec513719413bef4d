"""The audit before publishing: each check compares one number of the run with its bound in the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bins of the logit histogram in every manifest, which the next run is compared with.
HISTOGRAM_EDGES = tuple(float(edge) for edge in np.arange(-20.0, 20.25, 0.25))

#: Documents at the top of a list that churn and golden judgements use.
TOP = 10


#: Pairs from which on labels can be too much alike, and the share of one label that is.
LEAST_LABELS, ALIKE = 5, 0.99


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the audit. A check without a bound is reported and always passes."""

    name: str
    value: float | None
    bound: float | None
    passed: bool
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The check as it is stored in the manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RunCounts:
    """Counts of a run. `histogram` counts logits between HISTOGRAM_EDGES, with both ends open."""

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
class LastRun:
    """The published run, and the change of the top documents of the queries in both runs.

    `churn` is the mean over `shared_queries` of the share of the TOP documents that are not in the other run's.
    """

    run_id: str
    histogram: tuple[int, ...]
    shared_queries: int
    churn: float


@dataclass(frozen=True, slots=True)
class GoldenQuality:
    """Mean nDCG@10 over the judged queries of a golden set, and its drop since the last published run.

    `drop` is None where there is no published run.
    """

    queries: int
    now: float
    drop: float | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """Largest values that pass; None is not checked."""

    max_reject_rate: float | None = None
    max_reject_rates: Mapping[str, float] = field(default_factory=dict)
    max_unranked_queries: float | None = None
    max_truncated: float | None = None
    max_score_drift: float | None = None
    max_score_ks: float | None = None
    max_churn: float | None = None
    max_ndcg_drop: float | None = None
    golden_tolerance: float = 1e-3


def audit(
    counts: RunCounts,
    bounds: Bounds,
    rejects: Mapping[str, int] | None = None,
    last: LastRun | None = None,
    golden_errors: Mapping[tuple[str, str], float | None] | None = None,
    golden_quality: GoldenQuality | None = None,
    stages: Sequence[tuple[int, int]] = (),
) -> list[Check]:
    """All checks of a run, in the order of the report.

    Args:
        rejects: rejected pairs by reason.
        last: the last published run; None where there is none.
        golden_errors: |logit − expected| of every golden pair, None where the run has no logit for it.
        golden_quality: nDCG@10 of the golden queries.
        stages: of each stage of a run of several scorers, the pairs that it could not score, and all its pairs.
    """
    checks = [_coverage(counts), _share("reject rate", counts.rejected, counts.candidates, bounds.max_reject_rate)]
    for reason in sorted({*(rejects or {}), *bounds.max_reject_rates}):
        number, bound = (rejects or {}).get(reason, 0), bounds.max_reject_rates.get(reason)
        checks.append(_share(f"reject rate, {reason}", number, counts.candidates, bound))
    for number, (rejected, pairs) in enumerate(stages, start=1):
        checks.append(_share(f"reject rate of pass {number}", rejected, pairs, bounds.max_reject_rate))
    checks += [
        _share("queries with nothing ranked", counts.unranked_queries, counts.queries, bounds.max_unranked_queries),
        _share("truncated pairs", counts.truncated, counts.ranked, bounds.max_truncated),
    ]
    if last is not None:
        checks += _drift(counts, bounds, last)
    if golden_errors is not None:
        checks.append(_golden_pairs(golden_errors, bounds.golden_tolerance))
    if golden_quality is not None:
        checks.append(_golden_quality(golden_quality, bounds.max_ndcg_drop))
    return checks


def labels_alike(labels: Mapping[str, int]) -> str | None:
    """What to say of ranked pairs whose labels, counted here, tell nothing apart; None: they do.

    Nearly all alike counts too, except for the lowest label: of many candidates, few need be relevant.
    """
    total = sum(labels.values())
    label, most = max(labels.items(), key=lambda item: item[1], default=("", 0))
    if total < LEAST_LABELS or most < total * (1.0 if label == "0" else ALIKE):
        return None
    return (
        f"{most:,} of {total:,} ranked pairs have label {label}: either the model does not know such texts, or "
        "ranking.label_thresholds do not fit it (jobs/evaluate.py --fit-labels fits them to judgements)"
    )


def population_stability(expected: Sequence[int], actual: Sequence[int], groups: int = 10) -> float:
    """Population stability index between two histograms over the same bins, ≥ 0, 0 when their shapes agree.

    The bins are merged into about `groups` groups of equal expected mass, as is usual for the index, and half a
    count is added to each so that an empty group stays finite. Values below 0.1 usually count as no change, above 0.25
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


def kolmogorov_smirnov(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Largest distance between two histograms' cumulative shares, in [0, 1]; both count something, over the same bins.

    It is the two-sample Kolmogorov–Smirnov statistic of the binned values: never above that of the values themselves,
    and below it by at most the share of one bin.
    """
    return float(np.abs(_cumulative(expected) - _cumulative(actual)).max())


def _drift(counts: RunCounts, bounds: Bounds, last: LastRun) -> list[Check]:
    checks = []
    if any(last.histogram) and any(counts.histogram):
        moved = f"against run {last.run_id}; quartiles {_quartiles(last.histogram)} → {_quartiles(counts.histogram)}"
        drift = population_stability(last.histogram, counts.histogram)
        distance = kolmogorov_smirnov(last.histogram, counts.histogram)
        sizes = f"of {sum(last.histogram):,} logits in run {last.run_id} and {sum(counts.histogram):,} here"
        checks.append(_at_most("score drift (PSI)", drift, bounds.max_score_drift, moved))
        checks.append(_at_most("score drift (KS)", distance, bounds.max_score_ks, sizes))
    if last.shared_queries:
        detail = f"mean over {last.shared_queries:,} queries that run {last.run_id} ranked too"
        checks.append(_at_most(f"top-{TOP} churn", last.churn, bounds.max_churn, detail))
    return checks


def _cumulative(histogram: Sequence[int]) -> NDArray[np.float64]:
    counts = np.cumsum(np.asarray(histogram, dtype=np.float64))
    return np.asarray(counts / counts[-1])


def _quartiles(histogram: Sequence[int]) -> str:
    """The upper edges of the quartiles' bins."""
    bins = np.searchsorted(_cumulative(histogram), (0.25, 0.5, 0.75))
    return "/".join(f"{HISTOGRAM_EDGES[int(index) + 1]:g}" for index in bins)


def _coverage(counts: RunCounts) -> Check:
    lost = counts.candidates - counts.ranked - counts.beyond_depth - counts.rejected
    detail = f"{counts.unscored} without a score" if counts.unscored else "candidates neither ranked nor rejected"
    return Check("lost candidates", lost, 0, lost == 0 and counts.unscored == 0, detail)


def _share(name: str, part: int, whole: int, bound: float | None) -> Check:
    return _at_most(name, part / whole if whole else 0.0, bound, f"{part:,} of {whole:,}")


def _at_most(name: str, value: float, bound: float | None, detail: str) -> Check:
    return Check(name, value, bound, bound is None or value <= bound, detail)


def _golden_pairs(errors: Mapping[tuple[str, str], float | None], tolerance: float) -> Check:
    missing = [pair for pair, error in errors.items() if error is None]
    known = [(error, pair) for pair, error in errors.items() if error is not None]
    worst, worst_pair = max(known, default=(0.0, None))
    passed = not missing and worst <= tolerance
    detail = f"{len(missing)} of {len(errors)} have no logit" if missing else f"largest of {len(errors)}: {worst_pair}"
    return Check("golden pairs, |logit - expected|", worst, tolerance, passed, detail)


def _golden_quality(quality: GoldenQuality, bound: float | None) -> Check:
    name, over = "golden queries, drop of nDCG@10", f"over {quality.queries:,} judged queries"
    if quality.drop is None:
        return Check(name, None, bound, True, f"{quality.now:.4f} {over}; no published run to compare with")
    return _at_most(name, quality.drop, bound, f"{quality.now + quality.drop:.4f} → {quality.now:.4f} {over}")
