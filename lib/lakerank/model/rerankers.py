"""Rerankers: document groups in, one scored pair or reject out for every pair in them."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lakerank.errors import CheckpointError, PairRejected
from lakerank.model.cache import BoundedCache
from lakerank.model.checkpoint import identify, read_settings
from lakerank.model.engine import DocumentQueries, Engine
from lakerank.model.images import PatchShape, load_patches
from lakerank.model.prompt import Limits
from lakerank.model.rows import RowProducts
from lakerank.model.tokens import PromptTokenizer, Side, check_tokenizer, read_special_tokens, read_tokenizer
from lakerank.model.unscorable import Unscorable
from lakerank.model.weights import load_network
from lakerank.model.work import Work
from lakerank.records import TRANSIENT_REASONS, Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair

logger = logging.getLogger(__name__)

#: Sides (token ids and 8-bit patches) kept for reuse: a query comes back for every document it is paired with, a
#: document only when its queries were split among several groups.
QUERY_SIDES_BYTES = 256 * 2**20
DOCUMENT_SIDES_BYTES = 32 * 2**20

#: Queries of one group that are prepared at once; more are taken in turn.
QUERIES_AHEAD = 1024

#: How inputs are sized before they are read, to bound what threads prepare ahead: rough on purpose.
CHARACTERS_PER_TOKEN = 4
BYTES_PER_VISUAL_TOKEN = 64
MOST_VISUAL_TOKENS = 768

#: Bytes a remembered reject, or an entry's bookkeeping, is taken to hold.
_ENTRY_BYTES = 256


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A group whose host work is done."""

    group: DocumentGroup
    document: Side | Unscorable
    queries: tuple[Side | Unscorable, ...]
    decode_s: float
    tokenise_s: float

    @property
    def work(self) -> DocumentQueries | None:
        """What the device has to do; None where nothing can be scored."""
        sides = tuple(side for side in self.queries if isinstance(side, Side))
        return DocumentQueries(self.document, sides) if sides and isinstance(self.document, Side) else None

    @property
    def tokens(self) -> int:
        """Tokens of everything that can be scored."""
        return 0 if self.work is None else self.work.tokens


@dataclass(slots=True)
class _HostSeconds:
    """Processor time of one thread on one group."""

    decode: float = 0.0
    tokenise: float = 0.0


class DocumentMajorReranker:
    """Scores document groups with jina-reranker-m0's architecture; see `load_reranker`.

    `logit_bias`: relevance = sigmoid(logit - logit_bias). `fingerprint` names the scorer, `load_id` this loading of it.
    `work` counts tokens computed and what whole pairs would have cost.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: PromptTokenizer,
        limits: Limits,
        shape: PatchShape,
        *,
        fingerprint: str,
        logit_bias: float,
        host_threads: int = 2,
    ) -> None:
        self.fingerprint = fingerprint
        self.logit_bias = logit_bias
        self.load_id = uuid.uuid4().hex
        self._engine = engine
        self._prompt = prompt
        self._limits = limits
        self._shape = shape
        self._host_threads = host_threads
        self._device = threading.Lock()
        self._query_sides: BoundedCache[Side | Unscorable] = BoundedCache(QUERY_SIDES_BYTES, _size)
        self._document_sides: BoundedCache[Side | Unscorable] = BoundedCache(DOCUMENT_SIDES_BYTES, _size)

    @property
    def work(self) -> Work:
        """What has been computed since loading."""
        return self._engine.work

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
        """Raw float32 logits (P,) of pairs, in order; pairs that share a document share the work on it.

        Raises:
            PairRejected: a pair cannot be scored; the first such pair is named.
        """
        grouped: dict[Document, list[int]] = {}
        for place, (_, document) in enumerate(pairs):
            grouped.setdefault(document, []).append(place)
        groups = [
            DocumentGroup(document, tuple(pairs[place][0] for place in places)) for document, places in grouped.items()
        ]
        order = [place for places in grouped.values() for place in places]
        results = dict(zip(order, self.score_groups(groups), strict=True))
        logits = np.empty(len(pairs), dtype=np.float32)
        for place in range(len(pairs)):
            result = results[place]
            if isinstance(result, Reject):
                raise PairRejected(result.query_id, result.doc_id, result.reason, result.detail)
            logits[place] = result.logit
        return logits

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """One result for each pair, group after group, queries in their order.

        Groups are pulled as they are needed, as many as fill the device twice; decoding, resizing and tokenising run in
        threads ahead of it.
        """
        filling: list[_Prepared] = []
        tokens = 0
        for prepared in self._prepared(groups):
            if filling and tokens + prepared.tokens > self._engine.budget.tokens:
                yield from self._score_prepared(filling)
                filling, tokens = [], 0
            filling.append(prepared)
            tokens += prepared.tokens
        yield from self._score_prepared(filling)

    def _prepared(self, groups: Iterable[DocumentGroup]) -> Iterator[_Prepared]:
        """Groups whose host work is done, in order, made ahead by threads."""
        ahead: deque[tuple[int, Future[_Prepared]]] = deque()
        expected = 0
        with ThreadPoolExecutor(self._host_threads, thread_name_prefix="lakerank-host") as pool:
            try:
                for group in _split(groups):
                    size = _expected_tokens(group)
                    ahead.append((size, pool.submit(self._prepare, group)))
                    expected += size
                    while len(ahead) > self._host_threads and expected > 2 * self._engine.budget.tokens:
                        size, future = ahead.popleft()
                        expected -= size
                        yield self._finished(future)
                while ahead:
                    yield self._finished(ahead.popleft()[1])
            finally:
                for _, future in ahead:
                    future.cancel()

    def _finished(self, future: Future[_Prepared]) -> _Prepared:
        started = time.perf_counter()
        prepared = future.result()
        work = self._engine.work
        work.wait_s += time.perf_counter() - started
        work.decode_s += prepared.decode_s
        work.tokenise_s += prepared.tokenise_s
        return prepared

    def _prepare(self, group: DocumentGroup) -> _Prepared:
        spent = _HostSeconds()
        document = self._side(group.document, spent)
        scorable = not isinstance(document, Unscorable)
        queries = tuple(self._side(query, spent) for query in group.queries) if scorable else ()
        return _Prepared(group, document, queries, spent.decode, spent.tokenise)

    def _side(self, item: Query | Document, spent: _HostSeconds) -> Side | Unscorable:
        """Token ids and patches of one side, or why there are none; from memory when its content was met before."""
        image_key = "" if item.image is None else _digest(item.image)
        text_key = None if item.text is None else _digest(item.text.encode("utf-8", "surrogatepass"))
        sides = self._document_sides if isinstance(item, Document) else self._query_sides

        def make() -> Side | Unscorable:
            started = decoded = time.thread_time()
            try:
                image = None if item.image is None else load_patches(item.image, self._limits, self._shape)
                decoded = time.thread_time()
                build = self._prompt.document if isinstance(item, Document) else self._prompt.query
                return build(item.text, image, image_key)
            except Unscorable as unscorable:
                if unscorable.reason in TRANSIENT_REASONS:
                    raise  # not remembered
                return unscorable
            finally:
                spent.decode += decoded - started
                spent.tokenise += time.thread_time() - decoded

        try:
            return sides.get((text_key, image_key), make)
        except Unscorable as unscorable:
            return unscorable

    def _score_prepared(self, prepared: Sequence[_Prepared]) -> Iterator[ScoredPair | Reject]:
        """Results of groups that share passes through the network."""
        works = [one.work for one in prepared]
        with self._device:
            outcomes = iter(self._logits([work for work in works if work is not None]))
        for one, work in zip(prepared, works, strict=True):
            yield from _results(one, next(outcomes) if work is not None else None)

    def _logits(self, works: Sequence[DocumentQueries]) -> list[np.ndarray | Unscorable]:
        """Logits of each document's queries. Out of memory, halves are tried, and less at a time; what a document alone
        does not fit in is its own fault, not the job's.
        """
        if not works:
            return []
        try:
            return [*self._engine.score(works)]
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
        self._engine.release()
        if len(works) > 1:
            half = len(works) // 2
            return self._logits(works[:half]) + self._logits(works[half:])
        if self._engine.halve_budget():
            return self._logits(works)
        tokens = len(works[0].document.token_ids)
        logger.warning("out of memory at a document of %d tokens: its pairs are rejected", tokens)
        return [Unscorable(RejectReason.OUT_OF_MEMORY, f"a document of {tokens} tokens")]


def load_reranker(
    path: str,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    limits: Limits | None = None,
    host_threads: int = 2,
    device_threads: int | None = None,
    reproducible: bool = True,
) -> DocumentMajorReranker:
    """Load a checkpoint: a folder, a hub id with its revision, or `embedded`.

    Args:
        adapter: folder of a LoRA adapter, merged on load.
        dtype: auto (the checkpoint's), float32, bfloat16 or float16.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1, …
        host_threads: decode and tokenise ahead of the device.
        device_threads: torch's threads on a CPU, for the whole process; None leaves them alone.
        reproducible: a pair's score has the same bits whatever is scored beside it; else a little faster.

    Raises:
        CheckpointError: the checkpoint cannot be loaded as it stands.
    """
    limits = limits or Limits()
    identity = identify(path, revision=revision, adapter=adapter, dtype=dtype, limits=limits)
    folder = Path(identity.folder)
    settings = read_settings(folder, dtype)
    special = read_special_tokens(folder, settings)
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    if device_threads is not None:
        torch.set_num_threads(device_threads)
    network = load_network(folder, settings, choose_device(device), adapter)
    check_tokenizer(tokenizer, special, network.config.text_config.vocab_size, str(folder))
    return DocumentMajorReranker(
        Engine(network, settings.patches, products=None if reproducible else RowProducts()),
        PromptTokenizer(tokenizer, special, limits, settings.patches.merge),
        limits,
        settings.patches,
        fingerprint=identity.fingerprint,
        logit_bias=identity.logit_bias,
        host_threads=host_threads,
    )


def choose_device(device: str) -> torch.device:
    """`auto` is the current GPU where there is one, else the CPU.

    Raises:
        CheckpointError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device {device!r}: {error}") from error
    return chosen


def _split(groups: Iterable[DocumentGroup]) -> Iterator[DocumentGroup]:
    """Groups of no more queries than are prepared at once; the document's prefix is kept from one to the next."""
    for group in groups:
        for first in range(0, max(1, len(group.queries)), QUERIES_AHEAD):
            yield DocumentGroup(group.document, group.queries[first : first + QUERIES_AHEAD])


def _expected_tokens(group: DocumentGroup) -> int:
    """Tokens that a group will take, roughly, before anything is read."""
    return _expected(group.document) + sum(map(_expected, group.queries))


def _expected(item: Query | Document) -> int:
    text = 0 if item.text is None else len(item.text) // CHARACTERS_PER_TOKEN
    image = 0 if item.image is None else len(item.image) // BYTES_PER_VISUAL_TOKEN
    return 8 + text + min(image, MOST_VISUAL_TOKENS)


def _results(prepared: _Prepared, outcome: np.ndarray | Unscorable | None) -> Iterator[ScoredPair | Reject]:
    """One result for each of a group's queries, in order."""
    group, document = prepared.group, prepared.document
    if isinstance(document, Unscorable):
        yield from (_reject(query, group.document, document) for query in group.queries)
        return
    logits = iter(outcome.tolist() if isinstance(outcome, np.ndarray) else ())
    for query, side in zip(group.queries, prepared.queries, strict=True):
        if isinstance(side, Unscorable):
            yield _reject(query, group.document, side)
        elif isinstance(outcome, Unscorable):
            yield _reject(query, group.document, outcome)
        else:
            yield _scored(query, side, group.document, document, next(logits))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _size(side: Side | Unscorable) -> int:
    return _ENTRY_BYTES + (side.nbytes if isinstance(side, Side) else 0)


def _reject(query: Query, document: Document, why: Unscorable) -> Reject:
    return Reject(query.query_id, document.doc_id, why.reason, why.detail)


def _scored(
    query: Query, query_side: Side, document: Document, document_side: Side, logit: float
) -> ScoredPair | Reject:
    if not np.isfinite(logit):
        return Reject(query.query_id, document.doc_id, RejectReason.NON_FINITE_LOGIT, str(logit))
    return ScoredPair(
        query.query_id,
        document.doc_id,
        logit,
        len(query_side.token_ids),
        len(document_side.token_ids),
        query_side.truncated,
        document_side.truncated,
    )


def _out_of_memory(error: Exception) -> bool:
    said = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in said for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
