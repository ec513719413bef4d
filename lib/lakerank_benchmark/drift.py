"""How far a dtype's logits are from float32's, and whether lists change by it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Logits = Mapping[tuple[str, str], float]

#: Depth of a list that is looked at.
TOP = 10


@dataclass(frozen=True, slots=True)
class Drift:
    """Largest and median |Δlogit| over pairs; of so many lists, in how many the top 10 hold other documents, and in
    how many they stand in another order; `spread` is the standard deviation of float32's logits within a list.
    """

    contender: str
    pairs: int
    largest: float
    median: float
    spread: float
    lists: int
    other_sets: int
    other_orders: int


def drift(contender: str, found: Logits, float32: Logits) -> Drift:
    """Compare the logits of the same pairs."""
    pairs = sorted(found.keys() & float32.keys())
    differences = np.array([abs(found[pair] - float32[pair]) for pair in pairs])
    lists: dict[str, list[str]] = defaultdict(list)
    for query, document in pairs:
        lists[query].append(document)
    tops = [(_top(query, docs, found), _top(query, docs, float32)) for query, docs in lists.items()]
    spreads = [np.std([float32[query, document] for document in docs]) for query, docs in lists.items()]
    return Drift(
        contender,
        len(pairs),
        float(differences.max()),
        float(np.median(differences)),
        float(np.mean(spreads)),
        len(lists),
        sum(set(one) != set(other) for one, other in tops),
        sum(one != other for one, other in tops),
    )


def _top(query: str, documents: list[str], logits: Logits) -> list[str]:
    return sorted(documents, key=lambda document: (-logits[query, document], document))[:TOP]
