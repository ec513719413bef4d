"""Hard negatives from the first stage, and what must not be taken for one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lakerank.training.tables import Rows, TrainingLake


@dataclass(frozen=True)
class NegativeRule:
    """Which candidates of a query may stand as irrelevant: those at places `skip` to `depth` of the first stage.

    `below`: and whose first-stage score is under this share of the best relevant candidate's. Closer ones are likely
    to be relevant and unjudged (the positive-aware filter of NV-Retriever, Moreira et al. 2024). Scores must be
    positive for that.
    """

    skip: int = 0
    depth: int = 100
    below: float | None = None

    def allowed(self, lake: TrainingLake, query: int) -> list[int]:
        """Document rows that may be taken for irrelevant to a query, best first."""
        places = list(lake.candidates[query].items())[self.skip : self.depth]
        ceiling = self._ceiling(lake, query)
        return [row for row, score in places if score < ceiling and not _relevant(lake, row, query)]

    def suspects(self, lake: TrainingLake, documents: Rows, queries: Rows) -> npt.NDArray[np.bool_]:
        """Pairs (D, Q) of a batch that nobody judged relevant, but that the first stage ranks like a relevant one."""
        marks = np.zeros((len(documents), len(queries)), dtype=bool)
        if self.below is None or not lake.candidates:
            return marks
        places: dict[int, list[int]] = {}
        for place, row in enumerate(documents):
            places.setdefault(int(row), []).append(place)
        for column, query in enumerate(queries):
            ceiling = self._ceiling(lake, int(query))
            for row, score in lake.candidates[int(query)].items():
                if row in places and score >= ceiling and not _relevant(lake, row, int(query)):
                    marks[places[row], column] = True
        return marks

    def _ceiling(self, lake: TrainingLake, query: int) -> float:
        if self.below is None:
            return np.inf
        relevant = [score for row, score in lake.candidates[query].items() if _relevant(lake, row, query)]
        return self.below * max(relevant) if relevant else np.inf


def _relevant(lake: TrainingLake, document: int, query: int) -> bool:
    topic = int(lake.documents.topics[document])
    return topic in lake.grades[query] or topic == lake.queries.topics[query]
