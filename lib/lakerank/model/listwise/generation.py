"""Lists ranked by a language model that writes their order, `[2] > [1] > …`, window by window from the list's end.

Decoding is greedy among the identifiers that remain: each answer is a permutation, the one that the model would have
written where it writes permutations. What it cannot choose between is not computed. Sources: as in `config`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from lakerank.limits import Listwise
from lakerank.model.engine.budget import micro_batches
from lakerank.model.engine.engine import DocumentMajorEngine, Pair
from lakerank.model.inputs import EncodedInput, RejectedInput
from lakerank.model.listwise.tokenize import EncodedList, ListTokenizer
from lakerank.model.preprocess.tokenizer import text_positions
from lakerank.records import RejectReason

#: Yields the tokens so far and those that may follow, is sent the one that does; returns the order.
Decoding = Generator[tuple[list[int], list[int]], int, list[int]]


class Identifiers:
    """The tokens of a document's number in an answer, first or behind others; `tokens`: all of them."""

    def __init__(self, tokenizer: ListTokenizer, count: int) -> None:
        numbers = range(1, count + 1)
        self._first, self._others = ([tokenizer.ids(f"{lead}[{n}]") for n in numbers] for lead in ("", " > "))
        self.tokens = sorted({token for ids in (*self._first, *self._others) for token in ids})

    def decode(self, count: int) -> Decoding:
        """The order of a window's documents."""
        tokens, order = list[int](), list[int]()
        while len(order) < count:
            names = self._others if order else self._first
            remaining = {place: names[place] for place in range(count) if place not in order}
            depth = 0
            while len(remaining) > 1:
                following = sorted({ids[depth] for ids in remaining.values()})
                token = following[0] if len(following) == 1 else (yield tokens, following)
                remaining = {place: ids for place, ids in remaining.items() if ids[depth] == token}
                tokens, depth = [*tokens, token], depth + 1
            ((place, ids),) = remaining.items()
            tokens, order = tokens + ids[depth:], [*order, place]
        return order


class ListGenerator:
    """Scores lists on one device; to be used by one thread. The engine's logits are those of `identifiers.tokens`.

    A document on place r of n has the logit ln((n - r + 1/2) / (r - 1/2)): relevance is the share of the list that is
    behind it.
    """

    def __init__(
        self, engine: DocumentMajorEngine, tokenizer: ListTokenizer, identifiers: Identifiers, listwise: Listwise
    ) -> None:
        self._engine, self._tokenizer, self._identifiers = engine, tokenizer, identifiers
        self._window, self._stride, self.batcher = listwise.window or 1, listwise.stride or 1, engine.batcher

    @property
    def group_tokens(self) -> int:
        """Tokens of the lists to score together."""
        return self._engine.group_tokens

    def score_lists(self, lists: Sequence[EncodedList]) -> list[np.ndarray | RejectedInput]:
        """Logits (N,) of each list's documents; a reject where a window does not fit into memory."""
        orders: list[list[int] | RejectedInput] = [[*range(len(each.documents))] for each in lists]
        spans = [[*self._spans(len(each.documents))] for each in lists]
        self.batcher.counters.pairs += sum(len(each.documents) for each in lists)
        for step in range(max(map(len, spans), default=0)):
            jobs = [
                (number, order, slice(*spans[number][step]))
                for number, order in enumerate(orders)
                if isinstance(order, list) and step < len(spans[number])
            ]
            windows = [
                [lists[number].query, *(lists[number].documents[place] for place in order[span])]
                for number, order, span in jobs
            ]
            answers = self.batcher.run(self._answers, windows, smaller_batches_help=lambda part: len(part) == 1)
            for (number, order, span), answer in zip(jobs, answers, strict=True):
                if isinstance(answer, list):
                    order[span] = [order[span][place] for place in answer]
                else:
                    orders[number] = answer or RejectedInput(RejectReason.OUT_OF_MEMORY, "a window of the list")
        return [_logits(order) if isinstance(order, list) else order for order in orders]

    def _spans(self, count: int) -> Iterator[tuple[int, int]]:
        """Windows of a list of `count` documents, from its end to its start."""
        while count > 1:
            start = max(0, count - self._window)
            yield start, count
            count = count - self._stride if start else 0

    @torch.inference_mode()
    def _answers(self, windows: Sequence[Sequence[EncodedInput]]) -> list[list[int] | RejectedInput]:
        """The order of each window's documents. What is written is read again at each step: it is short."""
        prompts = [self._tokenizer.prompt(query, documents) for query, *documents in windows]
        self.batcher.counters.pairwise += sum(len(prompt.token_ids) for prompt in prompts)
        prefixes, numbers = self._engine.prefixes([*map(_without_last, prompts)])
        decodings = [self._identifiers.decode(len(window) - 1) for window in windows]
        asked = {number: next(decoding) for number, decoding in enumerate(decodings)}
        answers: dict[int, list[int] | RejectedInput] = {}
        while asked:
            pairs = [_pair(prompts[n], tokens, numbers[n], n) for n, (tokens, _) in asked.items()]
            pairs.sort(key=lambda pair: pair.document)
            sizes = [len(pair.query.token_ids) for pair in pairs]
            for part in micro_batches(pairs, sizes, self.batcher.budget.tokens):
                logits = self._engine.suffixes(part, prefixes).cpu().numpy()
                for number, row in zip((pair.number for pair in part), logits, strict=True):
                    _, following = asked.pop(number)
                    values = row[np.searchsorted(self._identifiers.tokens, following)]
                    if not np.isfinite(values).all():
                        answers[number] = RejectedInput(RejectReason.NON_FINITE_LOGIT, "of an identifier's token")
                        continue
                    try:
                        asked[number] = decodings[number].send(following[int(values.argmax())])
                    except StopIteration as done:
                        answers[number] = done.value
        return [answers[number] for number in range(len(windows))]


def _without_last(prompt: EncodedInput) -> EncodedInput:
    """A prompt before its last token, whose logits are asked for."""
    ids, positions = prompt.token_ids[:-1], prompt.positions[:, :-1]
    return replace(prompt, token_ids=ids, positions=positions, end=prompt.end - 1)


def _pair(prompt: EncodedInput, tokens: Sequence[int], document: int, number: int) -> Pair:
    """A prompt's last token and what is written behind it, on the prefix of a number."""
    ids = np.array([prompt.token_ids[-1], *tokens], dtype=np.int64)
    return Pair(document, EncodedInput(ids, text_positions(0, len(ids)), len(ids)), prompt.end - 1, number)


def _logits(order: Sequence[int]) -> np.ndarray:
    """Logits (N,) of documents, by the order of their places."""
    before = np.argsort(order) + 0.5
    return np.asarray(np.log((len(order) - before) / before))
