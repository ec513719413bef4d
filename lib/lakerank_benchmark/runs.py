"""One timed run of a contender, and what a contender is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lakerank.records import DocumentGroup


class CannotRun(Exception):
    """A contender cannot load these weights, or cannot score these inputs; says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took. `tokens` went through the language model, `padding` of them for nothing.

    `flops` are operations that the real tokens needed. `stages` are seconds: `decode` and `tokenise` are processor
    time of the host's threads, the others wall time, no two of which overlap. `logits` are by query and document.
    """

    seconds: float
    pairs: int
    tokens: int = 0
    padding: int = 0
    flops: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    logits: Mapping[tuple[str, str], float] = field(default_factory=dict)


class Contender(Protocol):
    """Scores document groups on weights that it holds."""

    name: str

    def run(self, groups: Sequence[DocumentGroup]) -> Run:
        """Score every pair once.

        Raises:
            CannotRun: these inputs are not for this contender.
        """
        ...
