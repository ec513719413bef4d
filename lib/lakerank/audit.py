"""The audit before publishing: each check compares one number of the run with its bound in the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from lakerank.records import RejectReason

#: Bins of the logit histogram in every manifest, which the next run is compared with.
HISTOGRAM_EDGES = tuple(float(edge) for edge in np.arange(-20.0, 20.25, 0.25))

#: Documents at the top of a list that churn and golden judgements use.
TOP = 10

#: Pairs from which on labels can be too much alike, and the share of one label that is.
LEAST_LABELS, ALIKE = 5, 0.99

Share = Annotated[float, Ge(0), Le(1)]

#: Why a check that needs an earlier run is not done.
_NO_LAST_RUN = "no published run to compare with"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the audit. `passed` is None for what is not checked: no bound is set, or there is no value."""

    name: str
    value: float | None
    bound: float | None
    passed: bool | None
    detail: str = ""

    @property
    def verdict(self) -> str:
        """The result in words, for people and for JSON."""
        return "not checked" if self.passed is None else "passed" if self.passed else "failed"

    def as_dict(self) -> dict[str, Any]:
        """The check as it is stored in the manifest."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class RunCounts:
    """Counts of a run. `histogram` counts logits between HISTOGRAM_EDGES, with both ends open, of all scored pairs,
    those beyond the depth and those that `per_group` leaves out (`beyond_group`) too. `repeated`: of all of
    these the near duplicates of a better one in their list, None where nobody asked; `collapsed`: those left out.
    """

    candidates: int
    ranked: int
    beyond_depth: int
    rejected: int
    unscored: int
    queries: int
    unranked_queries: int
    truncated: int
    histogram: tuple[int, ...]
    beyond_group: int = 0
    collapsed: int = 0
    repeated: int | None = None


@dataclass(frozen=True, slots=True)
class LastRun:
    """The published run, and how far this one is from it.

    `churn` is the mean over the `shared_queries` that both rank of the share of the `top` documents that are not in the
    other run's. `queries` are all that the last run ranked. `histogram` is None where the run's manifest has not all of
    its logits.
    """

    run_id: str
    histogram: tuple[int, ...] | None
    queries: int
    shared_queries: int
    churn: float
    top: int = TOP


@dataclass(frozen=True, slots=True)
class GoldenQuality:
    """Mean nDCG@10 over the judged queries of a golden set, and its drop since the last published run.

    `drop` is None where there is no published run.
    """

    queries: int
    now: float
    drop: float | None


@dataclass(frozen=True, slots=True)
class LostPairs:
    """Candidates of an earlier run that are no longer candidates: so many of all that it had."""

    run_id: str
    lost: int
    candidates: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What the audit knows of a run beside its counts.

    `rejects` counts rejected pairs by reason. `last` is the last published run, and `lost_pairs` its candidates that
    are gone; None where there is none. `golden_errors` has |logit − expected| of every golden pair, None where the run
    has no logit for it. `stages` has, for each stage of a run of several scorers, the pairs that it could not score,
    and all its pairs.
    """

    rejects: Mapping[str, int] = field(default_factory=dict)
    last: LastRun | None = None
    lost_pairs: LostPairs | None = None
    golden_errors: Mapping[tuple[str, str], float | None] | None = None
    golden_quality: GoldenQuality | None = None
    stages: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Bounds:
    """Largest values that pass, the config's `audit`; None is not checked. `allow_empty`: a run that ranks nothing
    passes. `golden_pairs`, `golden_qrels`: addresses of pairs with their logits, and of judgements.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    allow_empty: bool = False
    max_lost_queries: Share | None = None
    max_lost_pairs: Share | None = None
    max_reject_rate: Share | None = None
    max_reject_rates: Mapping[RejectReason, Share] | None = None
    max_unranked_queries: Share | None = None
    max_truncated: Share | None = None
    max_score_drift: Annotated[float, Ge(0)] | None = None
    max_score_ks: Share | None = None
    max_churn: Share | None = None
    golden_pairs: str | None = None
    golden_tolerance: Annotated[float, Gt(0)] = 1e-3
    golden_qrels: str | None = None
    max_ndcg_drop: Share | None = None


def audit(counts: RunCounts, bounds: Bounds, findings: Findings = Findings()) -> list[Check]:
    """All checks of a run, in the order of the report."""
    rejects, last = findings.rejects, findings.last
    checks = [_coverage(counts), _something_ranked(counts, bounds), *_lost(bounds, findings)]
    checks.append(_share("reject rate", counts.rejected, counts.candidates, bounds.max_reject_rate))
    rates = {str(reason): rate for reason, rate in (bounds.max_reject_rates or {}).items()}
    for reason in sorted({*rejects, *rates}):
        number, bound = rejects.get(reason, 0), rates.get(reason)
        checks.append(_share(f"reject rate, {reason}", number, counts.candidates, bound))
    for number, (rejected, pairs) in enumerate(findings.stages, start=1):
        checks.append(_share(f"reject rate of pass {number}", rejected, pairs, bounds.max_reject_rate))
    checks += [
        _share("queries with nothing ranked", counts.unranked_queries, counts.queries, bounds.max_unranked_queries),
        _share("truncated pairs", counts.truncated, counts.ranked, bounds.max_truncated),
        *_drift(counts, bounds, last),
        _churn(bounds, last),
    ]
    if findings.golden_errors is not None:
        checks.append(_golden_pairs(findings.golden_errors, bounds.golden_tolerance))
    if findings.golden_quality is not None:
        checks.append(_golden_quality(findings.golden_quality, bounds.max_ndcg_drop))
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


def _drift(counts: RunCounts, bounds: Bounds, last: LastRun | None) -> list[Check]:
    """How far the logits have moved. They are those before the cut: another depth is no drift."""
    now, before = counts.histogram, last.histogram if last else None
    values: tuple[float | None, float | None] = (None, None)
    if last is None:
        details = [_NO_LAST_RUN] * 2
    elif before is None:
        details = [f"run {last.run_id} was cut at a depth, and its manifest has no logits of what is beyond it"] * 2
    elif not any(before) or not any(now):
        details = ["nothing is ranked" if any(before) else f"run {last.run_id} ranked nothing"] * 2
    else:
        values = (population_stability(before, now), kolmogorov_smirnov(before, now))
        details = [
            f"against run {last.run_id}; quartiles {_quartiles(before)} → {_quartiles(now)}",
            f"of {sum(before):,} logits in run {last.run_id} and {sum(now):,} here",
        ]
    return [
        _at_most("score drift (PSI)", values[0], bounds.max_score_drift, details[0]),
        _at_most("score drift (KS)", values[1], bounds.max_score_ks, details[1]),
    ]


def _churn(bounds: Bounds, last: LastRun | None) -> Check:
    if last is None or not last.shared_queries:
        why = f"no query that run {last.run_id} ranked is ranked here" if last else _NO_LAST_RUN
        return _at_most(f"top-{last.top if last else TOP} churn", None, bounds.max_churn, why)
    detail = f"mean over {last.shared_queries:,} queries that run {last.run_id} ranked too"
    return _at_most(f"top-{last.top} churn", last.churn, bounds.max_churn, detail)


def _lost(bounds: Bounds, findings: Findings) -> list[Check]:
    """What the last published run had and this one has not: an upstream table that came half empty."""
    last, pairs = findings.last, findings.lost_pairs
    if last is None:
        queries = _at_most("queries lost", None, bounds.max_lost_queries, _NO_LAST_RUN)
    else:
        lost, of = last.queries - last.shared_queries, f" that run {last.run_id} ranked have nothing ranked here"
        queries = _share("queries lost", lost, last.queries, bounds.max_lost_queries, of)
    if pairs is None:
        why = f"the candidates of run {last.run_id} are not known" if last else _NO_LAST_RUN
        return [queries, _at_most("pairs lost", None, bounds.max_lost_pairs, why)]
    of = f" candidates of run {pairs.run_id} are candidates no more"
    return [queries, _share("pairs lost", pairs.lost, pairs.candidates, bounds.max_lost_pairs, of)]


def _cumulative(histogram: Sequence[int]) -> NDArray[np.float64]:
    counts = np.cumsum(np.asarray(histogram, dtype=np.float64))
    return np.asarray(counts / counts[-1])


def _quartiles(histogram: Sequence[int]) -> str:
    """The upper edges of the quartiles' bins."""
    bins = np.searchsorted(_cumulative(histogram), (0.25, 0.5, 0.75))
    return "/".join(f"{HISTOGRAM_EDGES[int(index) + 1]:g}" for index in bins)


def _coverage(counts: RunCounts) -> Check:
    left_out = counts.beyond_depth + counts.beyond_group + counts.collapsed
    lost = counts.candidates - counts.ranked - left_out - counts.rejected
    detail = f"{counts.unscored} without a score" if counts.unscored else "candidates neither ranked nor rejected"
    return Check("lost candidates", lost, 0, lost == 0 and counts.unscored == 0, detail)


def _something_ranked(counts: RunCounts, bounds: Bounds) -> Check:
    """An empty table, or a model whose scores are all rejected, is an accident unless the config says otherwise."""
    detail = (
        f"{counts.ranked:,} of {counts.candidates:,} candidates are ranked" if counts.candidates else "no candidates"
    )
    return _at_most("nothing ranked", float(not counts.ranked), None if bounds.allow_empty else 0.0, detail)


def _share(name: str, part: int, whole: int, bound: float | None, of: str = "") -> Check:
    return _at_most(name, part / whole if whole else 0.0, bound, f"{part:,} of {whole:,}{of}")


def _at_most(name: str, value: float | None, bound: float | None, detail: str) -> Check:
    """A check against a bound; without a value the detail says why there is none."""
    return Check(name, value, bound, None if bound is None or value is None else value <= bound, detail)


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
        return _at_most(name, None, bound, f"{quality.now:.4f} {over}; {_NO_LAST_RUN}")
    return _at_most(name, quality.drop, bound, f"{quality.now + quality.drop:.4f} → {quality.now:.4f} {over}")
