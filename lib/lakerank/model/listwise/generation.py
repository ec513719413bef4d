"""Lists ranked by a language model that writes their order, `[2] > [1] > …`, window by window from the list's end.

Decoding is greedy among the identifiers that remain: each answer is a permutation, the one that the model would have
written where it writes permutations. What it cannot choose between is not computed. Sources: as in `config`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lakerank.limits import Listwise
from lakerank.model.engine.budget import micro_batches
from lakerank.model.engine.engine import DocumentMajorEngine, Pair
from lakerank.model.inputs import EncodedInput, RejectedInput
from lakerank.model.listwise.tokenize import EncodedList, ListTokenizer
from lakerank.model.preprocess.tokenizer import text_positions
from lakerank.records import RejectReason

#: Asks for one answer after the other, and returns a result.
Asking = Generator[Any, Any, Any]


class Identifiers:
    """The tokens of a document's number in an answer, first or behind others; `tokens`: all of them."""

    def __init__(self, tokenizer: ListTokenizer, count: int) -> None:
        numbers = range(1, count + 1)
        self._first, self._others = ([tokenizer.ids(f"{lead}[{n}]") for n in numbers] for lead in ("", " > "))
        self.tokens = sorted({token for ids in (*self._first, *self._others) for token in ids})

    def decode(self, window: int, count: int) -> Asking:
        """The order of a window's documents. Asks for the token behind others of those that may follow."""
        tokens, order = list[int](), list[int]()
        while len(order) < count:
            names = self._others if order else self._first
            remaining = {place: names[place] for place in range(count) if place not in order}
            depth = 0
            while len(remaining) > 1:
                following = sorted({ids[depth] for ids in remaining.values()})
                token = following[0] if len(following) == 1 else (yield window, tokens, following)
                if token is None:
                    return RejectedInput(RejectReason.NON_FINITE_LOGIT, "of a number's token")
                remaining = {place: ids for place, ids in remaining.items() if ids[depth] == token}
                tokens, depth = [*tokens, token], depth + 1
            ((place, ids),) = remaining.items()
            tokens, order = tokens + ids[depth:], [*order, place]
        return order


class ListGenerator:
    """Scores lists on one device; to be used by one thread. The engine's logits are those of `identifiers.tokens`."""

    def __init__(
        self, engine: DocumentMajorEngine, tokenizer: ListTokenizer, identifiers: Identifiers, listwise: Listwise
    ) -> None:
        self._engine, self._tokenizer, self._identifiers = engine, tokenizer, identifiers
        self._window, self._stride, self.batcher = listwise.window or 1, listwise.stride or 1, engine.batcher

    def score_lists(self, lists: Sequence[EncodedList]) -> list[np.ndarray | RejectedInput]:
        """Logits (N,) of each list's documents; a reject where a window does not fit into memory."""
        self.batcher.counters.pairs += sum(len(each.documents) for each in lists)
        return _together([*map(self._rank, lists)], self._orders)

    def _rank(self, each: EncodedList) -> Asking:
        """Logits of a list; asks for the orders of windows from its end to its start.

        On place r of n it is ln((n - r + 1/2) / (r - 1/2)): relevance is the share of the list that is behind it.
        """
        end = count = len(each.documents)
        order = [*range(count)]
        while end > 1:
            start = max(0, end - self._window)
            answer = yield [each.query, *(each.documents[place] for place in order[start:end])]
            if not isinstance(answer, list):
                return answer or RejectedInput(RejectReason.OUT_OF_MEMORY, f"a window of {end - start} documents")
            order[start:end] = [order[start + place] for place in answer]
            end = end - self._stride if start else 0
        before = np.argsort(order) + 0.5
        return np.log((count - before) / before)

    def _orders(self, windows: Sequence[Sequence[EncodedInput]]) -> list[list[int] | RejectedInput | None]:
        return self.batcher.run(self._decode, windows, smaller_batches_help=lambda part: len(part) == 1)

    @torch.inference_mode()
    def _decode(self, windows: Sequence[Sequence[EncodedInput]]) -> list[list[int] | RejectedInput]:
        """The order of each window's documents. What is written is read again at each step: it is short."""
        prompts = [self._tokenizer.prompt(query, documents) for query, *documents in windows]
        self.batcher.counters.pairwise += sum(len(prompt.token_ids) for prompt in prompts)
        prefixes, numbers = self._engine.prefixes([
            replace(prompt, token_ids=prompt.token_ids[:-1], positions=prompt.positions[:, :-1], end=prompt.end - 1)
            for prompt in prompts
        ])  # fmt: skip

        def choose(asked: Sequence[tuple[int, list[int], list[int]]]) -> list[int | None]:
            pairs = []
            for place, (window, tokens, _) in enumerate(asked):
                ids = np.array([prompts[window].token_ids[-1], *tokens], dtype=np.int64)
                written = EncodedInput(ids, text_positions(0, len(ids)), len(ids))
                pairs.append(Pair(numbers[window], written, prompts[window].end - 1, place))
            pairs.sort(key=lambda pair: pair.document)
            sizes = [len(pair.query.token_ids) for pair in pairs]
            parts = micro_batches(pairs, sizes, self.batcher.budget.tokens)
            rows = [row for part in parts for row in self._engine.suffixes(part, prefixes).cpu().numpy()]
            chosen: list[int | None] = [None] * len(asked)
            for pair, row in zip(pairs, rows, strict=True):
                following = asked[pair.number][2]
                values = row[np.searchsorted(self._identifiers.tokens, following)]
                chosen[pair.number] = following[int(values.argmax())] if np.isfinite(values).all() else None
            return chosen

        return _together([self._identifiers.decode(n, len(window) - 1) for n, window in enumerate(windows)], choose)


def _together(asking: Sequence[Asking], answer: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
    """The results of generators, whose questions are answered together as long as any asks."""
    results: list[Any] = [None] * len(asking)
    answers: dict[int, Any] = dict.fromkeys(range(len(asking)))
    while answers:
        questions = {}
        for number, value in answers.items():
            try:
                questions[number] = asking[number].send(value)
            except StopIteration as done:
                results[number] = done.value
        answers = dict(zip(questions, answer([*questions.values()]) if questions else (), strict=True))
    return results
