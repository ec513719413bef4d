"""What an evaluation comes to: whether reranking helps, whose fault it is where it does not, and what to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from lakerank.audit import labels_alike
from lakerank_evaluation.analysis.averages import Slice
from lakerank_evaluation.analysis.scores import scores_of
from lakerank_evaluation.evaluation import Evaluation
from lakerank_evaluation.metrics.measures import PRIMARY

#: Shares from which on the advice mentions rejects, cut texts, and documents that nobody has judged.
_REJECTED, _TRUNCATED, _UNJUDGED = 0.05, 0.2, 0.1


class Outcome(StrEnum):
    """What the figures show, and the sentence that says so."""

    sentence: str

    def __new__(cls, value: str, sentence: str) -> Outcome:
        outcome = str.__new__(cls, value)
        outcome._value_, outcome.sentence = value, sentence
        return outcome

    BETTER = "better", "Reranking makes these lists better."
    UNCLEAR = "no difference shown", "These judgements do not show whether reranking makes the lists better."
    WORSE = "worse", "Reranking makes these lists worse. Do not publish them."
    RANDOM = "no better than random", "Reranking orders these lists no better than chance. Do not publish them."
    BELOW_RANDOM = "worse than random", "Reranking orders these lists worse than chance. Do not publish them."


@dataclass(frozen=True, slots=True)
class Verdict:
    """`headline` has the figures, `ceiling` what the candidates allow, `advice` what is suspicious."""

    outcome: Outcome
    headline: str
    ceiling: str
    advice: tuple[str, ...]

    @property
    def is_bad(self) -> bool:
        """Whether the lists are not to be published."""
        return self.outcome not in (Outcome.BETTER, Outcome.UNCLEAR)


def verdict(evaluation: Evaluation) -> Verdict:
    """The verdict on the run, by the primary measure."""
    overall, advice = evaluation.overall, _advice(evaluation)
    sentences = tuple(f"{text[0].upper()}{text[1:].rstrip('.')}." for text in advice)
    return Verdict(_outcome(overall), _headline(overall), _ceiling(evaluation), sentences)


def _outcome(overall: Slice) -> Outcome:
    random, after, (low, high) = overall.random[PRIMARY], overall.reranked[PRIMARY], overall.intervals[PRIMARY]
    # Where a perfect order is no better than a random one, every order is as good as any other.
    if low is None or high is None or (overall.ceiling or {}).get(PRIMARY, 1.0) - random < 1e-9:
        return Outcome.UNCLEAR
    if after < random or (low <= random and not overall.gain):
        return Outcome.BELOW_RANDOM if high < random else Outcome.RANDOM
    gain = overall.gain.get(PRIMARY)
    if gain is not None and (gain.low or 0.0) <= 0 <= (gain.high or 0.0):
        return Outcome.UNCLEAR
    return Outcome.WORSE if gain is not None and gain.mean < 0 else Outcome.BETTER


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
    where = "the candidates: look for better ones first" if 1 - ceiling > ceiling - after else "the reranker"
    if 1 - ceiling > ceiling - after and 2 * evaluation.unmatched.pairs >= relevant - listed:
        where = "the judgements: most of what is lost are documents that the lake has not"
    missing = (
        f"Of the {1 - after:.3f} missing to 1, {1 - ceiling:.3f} is lost before reranking and {ceiling - after:.3f} by "
        f"it. There is more to gain from {where}."
    )
    return (
        f"{listed:,} of {relevant:,} documents judged relevant ({listed / relevant:.0%}) are among the candidates, so "
        f"a perfect reranker would reach {PRIMARY} {ceiling:.3f}. {missing if after < 0.995 else 'Nothing is missing.'}"
    )


def _advice(evaluation: Evaluation) -> Iterator[str]:
    overall, manifest, totals = evaluation.overall, evaluation.inputs.manifest, evaluation.inputs.totals
    yield from evaluation.unmatched.sentences()
    yield from manifest.get("warnings") or ()
    if "warnings" not in manifest:  # of an earlier version, or not published
        values, weights = scores_of(evaluation.pairs, "label")
        counts = {str(label): round(weights[values == label].sum()) for label in np.unique(values)}
        yield from filter(None, [labels_alike(counts)])
    rejected = sum(totals.rejected.values())
    if totals.candidates and rejected > totals.candidates * _REJECTED:
        yield f"{rejected / totals.candidates:.0%} of the candidates were rejected and count as not found"
    if totals.truncated > totals.ranked * _TRUNCATED:
        share = f"{totals.truncated / totals.ranked:.0%} of the ranked pairs"
        yield f"{share} were cut to the model's length: cut texts into chunks, or raise scoring.max_length"
    if evaluation.without_candidates:
        yield f"{evaluation.without_candidates:,} judged queries have no candidates and count as 0"
    judged, before = (figures["Judged@10"] for figures in (overall.reranked, overall.first_stage or overall.reranked))
    if judged < before - _UNJUDGED:
        yield (
            f"of the first ten documents {judged:.0%} are judged ({before:.0%} before reranking), and the others count "
            "as not relevant: judge them before you trust a loss"
        )
    if overall.intervals[PRIMARY][0] is None:
        yield "so few judged queries show no difference: judge some fifty"
