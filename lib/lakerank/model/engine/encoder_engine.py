"""Cross-encoder scoring: pairs' sequences sorted by length and packed into micro-batches.

A sequence's logit has the same bits whatever is scored beside it: linear layers are batch-invariant (`linear`), and a
call of attention has the shape of one sequence, those of one length batched in a dimension of their own. Only a
micro-batch as a whole is padded. On a CPU each of torch's threads runs micro-batches of its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lakerank.model.engine import budget as budgets
from lakerank.model.engine.attention import choose_varlen
from lakerank.model.engine.budget import LEAST_TOKENS, MicroBatcher, busy_budget, device_budget, micro_batches
from lakerank.model.engine.device import ThreadPool, to_device
from lakerank.model.engine.encoder import PackedEncoder
from lakerank.model.engine.layout import Varlen
from lakerank.model.engine.linear import BatchInvariantLinear, LinearProbe, any_packed, choose_linear
from lakerank.model.inputs import RejectedInput
from lakerank.records import RejectReason

logger = logging.getLogger(__name__)

#: Micro-batches of each thread whose sequences are sorted by length together. More would find more of one length; what
#: waits are token ids.
BATCHES_SORTED = 32


@dataclass(frozen=True, slots=True)
class PairTokens:
    """Ids of the special tokens around a pair, and of the one that fills a batch.

    `between`: separators between query and document. `document_row`: of a network whose tokens have types, the row of
    the positions' table where those of a document's type begin; None: there is one type.
    """

    start: int
    separator: int
    padding: int
    between: int = 2
    document_row: int | None = None

    def sequence(self, query: np.ndarray, document: np.ndarray) -> np.ndarray:
        """Token ids (L,) of a pair, or of a window of it."""
        ends = np.array([self.start, self.separator], dtype=np.int64)
        return np.concatenate((ends[:1], query, ends[[1] * self.between], document, ends[1:]))

    def positions(self, sequence: np.ndarray, query_tokens: int) -> np.ndarray:
        """Rows of the positions' table (L,) for a sequence's tokens (L,), of which so many are a query's text.

        Where there is one type of token, positions count from the padding token's id + 1; that token has its own id for
        a position, and is not counted, wherever a text should name it. Sources: transformers,
        `XLMRobertaEmbeddings.create_position_ids_from_input_ids`, `BertEmbeddings`.
        """
        if self.document_row is not None:
            positions = np.arange(len(sequence))
            positions[1 + query_tokens + self.between :] += self.document_row
            return positions
        real = sequence != self.padding
        return np.where(real, np.cumsum(real), 0) + self.padding


@dataclass(frozen=True, slots=True)
class Window:
    """A sequence to score: a query's token ids, and those of a document or of a window on it.

    `length` counts the special tokens around them, too.
    """

    query: np.ndarray
    document: np.ndarray
    length: int


@dataclass(frozen=True, slots=True)
class DocumentWindows:
    """The windows of each of a document's pairs."""

    pairs: tuple[tuple[Window, ...], ...]

    @property
    def tokens(self) -> int:
        """Tokens of all windows."""
        return sum(window.length for windows in self.pairs for window in windows)


class EncoderEngine:
    """Scores pairs on one device; to be used by one thread. A pair's logit is the largest of its windows'.

    `reproducible`: a logit has the same bits whatever is scored beside it, by a linear function that `choose_linear`
    finds. `varlen` and `free_tokens` (what fits memory at once) are chosen for the device where None.
    """

    def __init__(
        self,
        encoder: PackedEncoder,
        tokens: PairTokens,
        *,
        reproducible: bool = True,
        choose_linear: Callable[[Iterable[LinearProbe]], BatchInvariantLinear] = choose_linear,
        varlen: Varlen | None = None,
        free_tokens: int | None = None,
    ) -> None:
        self.encoder, self.tokens = encoder, tokens
        self._device = encoder.device
        self._threads = ThreadPool(torch.get_num_threads() if self._device.type == "cpu" else 1)
        bytes_per_token = encoder.bytes_per_token
        self._free_tokens = free_tokens or budgets.free_tokens(self._device, bytes_per_token)
        budget = device_budget(self._device, bytes_per_token, self._threads.count)
        self.batcher = MicroBatcher(self._device, budget, self._threads.count)
        most = busy_budget(self._device).tokens  # not of the present budget: bits would depend on free memory
        probes = [LinearProbe(weights, most) for weights in encoder.weights()]
        self._linear = BatchInvariantLinear(packed=any_packed(probes))
        if reproducible:
            (self._linear,) = self._threads.map(choose_linear, [probes])
        encoder.linear = self._linear
        heads, dim = encoder.shape.heads, encoder.shape.hidden // encoder.shape.heads
        self._varlen = varlen or choose_varlen(self._device, encoder.dtype, [(heads, heads, dim)], reproducible)

    @property
    def group_tokens(self) -> int:
        """Tokens of the document groups to score together, whose windows are sorted by length."""
        return BATCHES_SORTED * self.batcher.budget.tokens * self._threads.count

    def score(self, documents: Sequence[DocumentWindows]) -> list[list[float | RejectedInput]]:
        """The raw logit of each document's pairs; a reject for a pair with a window that does not fit into memory."""
        windows = [window for document in documents for pair in document.pairs for window in pair]
        logits = iter(self.batcher.run(self._logits, windows, smaller_batches_help=self._smaller_batches_help))
        self.batcher.counters.documents += len(documents)
        self.batcher.counters.pairs += sum(len(document.pairs) for document in documents)
        self.batcher.counters.pairwise += sum(document.tokens for document in documents)
        return [[_pair_logit(pair, logits) for pair in document.pairs] for document in documents]

    def _smaller_batches_help(self, windows: Sequence[Window]) -> bool:
        """Whether micro-batches have several windows each; longer ones are alone, and fewer must run at once."""
        return len(windows) > 1 and max(window.length for window in windows) <= self.batcher.budget.tokens

    def _logits(self, windows: Sequence[Window]) -> list[float]:
        longest_first = sorted(range(len(windows)), key=lambda number: -windows[number].length)
        batches = self._batches([windows[number] for number in longest_first])
        rounds = (self._threads.map(self._forward, batches) for batches in self._rounds(batches))
        computed = torch.cat([logits for parts in rounds for logits in parts]).cpu().numpy()
        for batch in batches:
            lengths = [window.length for window in batch]
            self.batcher.counters.computed += sum(lengths) + self._padding(lengths)
            self.batcher.counters.padding += self._padding(lengths)
            self.batcher.counters.flops += sum(map(self.encoder.shape.flops, lengths))
        logits = np.empty(len(windows), dtype=np.float32)
        logits[longest_first] = computed
        return [*map(float, logits)]

    def _batches(self, longest_first: Sequence[Window]) -> list[Sequence[Window]]:
        """Micro-batches of the budget, or smaller ones where a thread would have none.

        The last one, for which all threads wait, is the cheapest.
        """
        lengths = [window.length for window in longest_first]
        share = -(-sum(lengths) // self._threads.count)
        return [*micro_batches(longest_first, lengths, min(self.batcher.budget.tokens, max(LEAST_TOKENS, share)))]

    def _rounds(self, batches: Sequence[Sequence[Window]]) -> list[Sequence[Sequence[Window]]]:
        """Micro-batches that may run at the same time: of windows longer than the budget as many as memory has room
        for; then all others.
        """
        long = [batch for batch in batches if batch[0].length > self.batcher.budget.tokens]
        return [*micro_batches(long, [batch[0].length for batch in long], self._free_tokens), batches[len(long) :]]

    def _forward(self, windows: Sequence[Window]) -> Tensor:
        """Logits (N,) of the windows of a micro-batch, on the device."""
        lengths = [window.length for window in windows]
        padding = self._padding(lengths)
        sequences = [self.tokens.sequence(window.query, window.document) for window in windows]
        token_ids = np.pad(np.concatenate(sequences), (0, padding))
        query_tokens = (len(window.query) for window in windows)
        positions = np.pad(np.concatenate(list(map(self.tokens.positions, sequences, query_tokens))), (0, padding))
        with self.batcher.timer.stage("suffix_s"):
            ids, places = (to_device(values, self._device) for values in (token_ids, positions))
            return self.encoder.logits(ids, places, lengths, self._varlen)

    def _padding(self, lengths: Sequence[int]) -> int:
        """Rows after those of sequences of these lengths."""
        return self._linear.padded(sum(lengths)) - sum(lengths)


def _pair_logit(pair: Sequence[Window], logits: Iterator[float | None]) -> float | RejectedInput:
    """The largest logit of a pair's windows, for which `logits` has the next; the first that is not finite, if any."""
    values = [next(logits) for _ in pair]
    fitting = [value for value in values if value is not None]
    if len(fitting) < len(values):
        longest = max(window.length for window in pair)
        logger.warning("out of memory at a sequence of %d tokens: its pair is rejected", longest)
        return RejectedInput(RejectReason.OUT_OF_MEMORY, f"a sequence of {longest} tokens")
    return next((value for value in fitting if not math.isfinite(value)), max(fitting))
