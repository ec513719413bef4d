"""What an evaluation comes to: whether reranking helps, whose fault it is where it does not, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from lakerank.audit import labels_alike
from lakerank.evaluation.analysis.averages import Slice
from lakerank.evaluation.analysis.scores import pooled
from lakerank.evaluation.evaluation import Evaluation
from lakerank.evaluation.metrics.measures import PRIMARY

#: Shares from which on the advice mentions rejects, cut texts, and documents that nobody has judged.
_REJECTED, _TRUNCATED, _UNJUDGED = 0.05, 0.2, 0.1


class Outcome(StrEnum):
    """What the figures show. Between a gain and a loss the interval decides."""

    BETTER = "better"
    UNCLEAR = "no difference shown"
    WORSE = "worse"
    RANDOM = "no better than random"


_TITLES = {
    Outcome.BETTER: "Reranking makes these lists better.",
    Outcome.UNCLEAR: "These judgements do not show whether reranking makes the lists better.",
    Outcome.WORSE: "Reranking makes these lists worse. Do not publish them.",
    Outcome.RANDOM: "These lists are no better than a random order of their documents. Do not publish them.",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`title` is the outcome as a sentence, `headline` has the figures, `ceiling` says what the candidates allow,
    `advice` what to look at.
    """

    outcome: Outcome
    headline: str
    ceiling: str
    advice: tuple[str, ...]

    @property
    def title(self) -> str:
        return _TITLES[self.outcome]


def verdict(evaluation: Evaluation) -> Verdict:
    """The verdict on the run, by the primary measure."""
    overall = evaluation.overall
    return Verdict(_outcome(overall), _headline(overall), _ceiling(evaluation), tuple(_advice(evaluation)))


def _outcome(overall: Slice) -> Outcome:
    random, ceiling = overall.random[PRIMARY], (overall.ceiling or {}).get(PRIMARY, 1.0)
    after, (low, _) = overall.reranked[PRIMARY], overall.intervals[PRIMARY]
    if ceiling - random < 1e-9:  # any order of the candidates is as good as any other
        return Outcome.UNCLEAR
    if after < random or (low is not None and low <= random and not overall.gain):
        return Outcome.RANDOM
    if not overall.gain:
        return Outcome.UNCLEAR if low is None else Outcome.BETTER
    gain = overall.gain[PRIMARY]
    if gain.low is None or gain.high is None or gain.low <= 0 <= gain.high:
        return Outcome.UNCLEAR
    return Outcome.BETTER if gain.mean > 0 else Outcome.WORSE


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


def _ceiling(evaluation: Evaluation) -> str:
    """What a perfect reranker reaches with these candidates, and which stage has more to gain."""
    overall, queries = evaluation.overall, evaluation.queries
    relevant, listed = queries.total("relevant"), queries.total("relevant_candidates")
    if overall.ceiling is None or not relevant:
        return "No document is judged relevant."
    ceiling, after = overall.ceiling[PRIMARY], overall.reranked[PRIMARY]
    by_candidates, by_order = 1 - ceiling, ceiling - after
    if by_candidates + by_order < 0.005:
        rest = "Nothing is missing to 1."
    else:
        where = "the candidates: look for better ones first" if by_candidates > by_order else "the reranker"
        rest = (
            f"Of the {1 - after:.3f} missing to 1, {by_candidates:.3f} is lost before reranking and {by_order:.3f} by "
            f"it. There is more to gain from {where}."
        )
    return (
        f"{listed:,} of {relevant:,} documents judged relevant ({listed / relevant:.0%}) are among the candidates, so "
        f"a perfect reranker would reach {PRIMARY} {ceiling:.3f}. {rest}"
    )


def _advice(evaluation: Evaluation) -> list[str]:
    overall, inputs = evaluation.overall, evaluation.inputs
    totals, advice = inputs.totals, list(inputs.manifest.get("warnings") or ())
    if "warnings" not in inputs.manifest:  # of an earlier version, or not published
        values, weights = pooled(evaluation.samples, "label")
        counts = {str(label): round(weights[values == label].sum()) for label in np.unique(values).astype(int)}
        advice += filter(None, [labels_alike(counts)])
    rejected = sum(totals.rejected.values())
    if totals.candidates and rejected > totals.candidates * _REJECTED:
        share = f"{rejected / totals.candidates:.0%} of the candidates"
        advice.append(f"{share} were rejected and count as not found: see what was not ranked, and why")
    if totals.truncated > totals.ranked * _TRUNCATED:
        share = f"{totals.truncated / totals.ranked:.0%} of the ranked pairs"
        advice.append(f"{share} were cut to the model's length: cut texts into chunks, or raise scoring.max_length")
    if evaluation.without_candidates:
        advice.append(f"{evaluation.without_candidates:,} judged queries have no candidates and count as 0")
    judged = overall.reranked["Judged@10"]
    if overall.first_stage and judged < overall.first_stage["Judged@10"] - _UNJUDGED:
        advice.append(
            f"of the first ten documents {judged:.0%} are judged ({overall.first_stage['Judged@10']:.0%} before "
            "reranking), and the others count as not relevant: judge them before you trust a loss"
        )
    if overall.intervals[PRIMARY][0] is None:
        advice.append("so few judged queries show no difference: judge some fifty")
    return [f"{text[0].upper()}{text[1:].rstrip('.')}." for text in advice]
