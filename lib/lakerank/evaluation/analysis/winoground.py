"""Winoground's text, image and group scores: two images, two captions, and whether the right ones go together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lakerank.evaluation.metrics.bootstrap import interval, query_hashes, resampled_sums
from lakerank.evaluation.pairs import Pairs

NAME = "winoground"
_ID = re.compile(r"(.*):([ci])([01])", re.DOTALL)

#: Logits by query and document.
Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Winoground:
    """Shares of the examples, with intervals; `mean` is that of the three scores."""

    examples: int
    text: float
    image: float
    group: float
    mean: float
    low: float | None
    high: float | None


def scores_of(pairs: Pairs) -> dict[str, dict[str, float]]:
    """The logits of the block's queries that belong to Winoground."""
    mine = [
        number for number, labels in enumerate(pairs.labels) if NAME in (labels.get("benchmark"), labels.get("dataset"))
    ]
    found = {}
    for number in mine:
        start, end = np.searchsorted(pairs.query, [number, number + 1])
        docs = pairs.doc_ids.slice(start, end - start).to_pylist()
        logits = pairs.logit[start:end].tolist()
        found[pairs.query_ids[number]] = {doc: logit for doc, logit in zip(docs, logits, strict=True) if logit == logit}
    return found


def judge(scores: Scores) -> Winoground | None:
    """Scores over all examples; None when there are none. An example lacks a pair: that comparison is lost.

    A caption is told from the other by the queries that are images (text score), an image from the other by the
    queries that are captions (image score); group asks for both. A tie is wrong. Source: T. Thrush et al., Winoground
    (CVPR 2022), section 3.2, and the evaluation code they published.
    """
    examples = sorted({match[1] for query in scores if (match := _ID.fullmatch(query))})
    if not examples:
        return None
    right = np.array([[*_right(scores, one)] for one in examples], np.float64)  # (N, 2): text, image
    table = np.column_stack([right, right.all(axis=1), np.ones(len(right))]).astype(np.float64)
    text, image, group = (float(share) for share in table[:, :3].mean(axis=0))
    drawn = resampled_sums(query_hashes(examples), table)
    with np.errstate(invalid="ignore"):
        low, high = interval(drawn[:, :3].mean(axis=1) / drawn[:, 3], len(examples))
    return Winoground(len(examples), text, image, group, (text + image + group) / 3, low, high)


def _right(scores: Scores, example: str) -> Iterator[bool]:
    for query, document in (("i", "c"), ("c", "i")):
        yield all(
            _above(
                scores.get(f"{example}:{query}{own}", {}),
                f"{example}:{document}{own}",
                f"{example}:{document}{1 - own}",
            )
            for own in (0, 1)
        )


def _above(logits: Mapping[str, float], better: str, worse: str) -> bool:
    return better in logits and worse in logits and logits[better] > logits[worse]
