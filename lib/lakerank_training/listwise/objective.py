"""What the listwise recipe minimises: ListNet over lists in random order, and over their documents one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lakerank.model.listwise.tokenize import ListTokenizer
from lakerank_training.batches import Batch, Sampler, TrainingStage
from lakerank_training.dataset import Dataset, Rows
from lakerank_training.inputs import EncodedDataset
from lakerank_training.listwise.config import ListStage
from lakerank_training.listwise.network import DOCUMENT_TOKEN, QUERY_TOKEN
from lakerank_training.losses import RankingObjective, WeightedLosses, labels, listnet
from lakerank_training.model import PairNetwork


class ListObjective:
    """Losses of cosines divided by a temperature. A group of a batch is a query and its list."""

    loss_names = ("ranking", "pointwise")

    def __init__(self, ranking: RankingObjective, tokenizer: ListTokenizer, temperature: float) -> None:
        self._ranking, self._tokenizer, self._temperature = ranking, tokenizer, temperature
        self._document, self._query = cache(tokenizer.document), cache(tokenizer.query)
        self._usable = cache(lambda size: usable_queries(ranking.data.dataset, size))
        (document,), (query,) = tokenizer.ids(DOCUMENT_TOKEN), tokenizer.ids(QUERY_TOKEN)
        self._ends = document, query

    @property
    def data(self) -> EncodedDataset:
        """What lists are drawn from."""
        return self._ranking.data

    @property
    def network(self) -> PairNetwork:
        """As steps and evaluation use it."""
        return self._ranking.network

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything is trained."""
        return self._ranking.parameters()

    def start_step(self, stage: TrainingStage, first: bool) -> None:
        """Nothing to prepare."""

    def draw(self, sampler: Sampler, random: np.random.Generator, progress: float) -> Batch:
        """Queries with so many of their candidates, one of them relevant at least, in random order."""
        stage, dataset = cast(ListStage, sampler.stage), self.data.dataset
        queries = random.permutation(self._usable(stage.documents))[: stage.groups]
        lists = [draw_list(dataset, int(query), stage.documents, random) for query in queries]
        grades = np.zeros((len(queries) * stage.documents, len(queries)), dtype=np.int64)
        for number, documents in enumerate(lists):
            rows = slice(number * stage.documents, (number + 1) * stage.documents)
            grades[rows, number] = dataset.relevance(documents, queries[[number]])[:, 0]
        return Batch(np.concatenate(lists), queries, len(queries), grades, np.ones(grades.shape, dtype=bool))

    def pairs(self, stage: TrainingStage, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each query with its own documents."""
        return self._ranking.pairs(stage, batch)

    def losses(self, stage: TrainingStage, batch: Batch) -> WeightedLosses:
        """Of lists, and of the first documents of each, which are in random order, by themselves."""
        stage, groups = cast(ListStage, stage), batch.shards(batch.groups)
        lists = [(group.documents, int(group.queries[0])) for group in groups]
        losses: WeightedLosses = {}
        if stage.ranking_weight:
            losses["ranking"] = (stage.ranking_weight, self._loss(self.cosines(lists), groups))
        if stage.pointwise_weight:
            singles = [(documents[[n]], query) for documents, query in lists for n in range(stage.singles)]
            cosines = self.cosines(singles).view(len(groups), stage.singles)
            losses["pointwise"] = (stage.pointwise_weight, self._loss(cosines, groups))
        return losses

    def _loss(self, cosines: Tensor, groups: Sequence[Batch]) -> Tensor:
        """The mean over lists of the loss of their first documents' cosines (B, D)."""
        losses = []
        for scores, group in zip(cosines, groups, strict=True):
            grades, known = (each[: len(scores)] for each in labels(group, scores.device))
            losses.append(listnet(scores[:, None] / self._temperature, grades, known))
        return torch.stack(losses).mean()

    def cosines(self, lists: Sequence[tuple[Rows, int]], data: EncodedDataset | None = None) -> Tensor:
        """Cosines (B, D) of lists of equal length: rows of documents in order, and the query's. `data`: held out."""
        data = data or self.data
        documents, queries = data.dataset.documents.texts, data.dataset.queries.texts
        prompts = []
        for rows, query in lists:
            encoded = self._tokenizer.prompt(self._query(queries[query]), [self._document(documents[r]) for r in rows])
            prompts.append(torch.from_numpy(encoded.token_ids).to(self.network.device))
        cosines: Tensor = self.network.network(prompts, len(lists[0][0]), self._ends)
        return cosines

    def grid_scores(self, stage: TrainingStage, data: EncodedDataset, documents: Rows, queries: Rows) -> np.ndarray:
        """Cosines (D, Q), each query's documents one list."""
        columns = [self.cosines([(documents, int(query))], data)[0].cpu().numpy() for query in queries]
        return np.stack(columns, axis=1)


def usable_queries(dataset: Dataset, size: int) -> Rows:
    """Queries with so many candidates and a relevant one among them."""
    return np.array(
        [
            query
            for query, listed in enumerate(dataset.candidates)
            if len(listed) >= size and any(dataset.is_relevant(row, query) for row in listed)
        ],
        dtype=np.int64,
    )


def draw_list(dataset: Dataset, query: int, size: int, random: np.random.Generator) -> Rows:
    """So many of a query's candidates in random order, a relevant one among them."""
    rows = random.permutation(np.array([*dataset.candidates[query]], dtype=np.int64))
    relevant = next(row for row in rows.tolist() if dataset.is_relevant(row, query))
    kept = np.append(rows[rows != relevant][: size - 1], relevant)
    return random.permutation(kept)
