"""Preprocessing on the host: threads decode, resize and tokenise ahead of the device, and cache what they made."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, groupby
from typing import Generic, Protocol, TypeVar

import numpy as np

from lakerank.model.inputs import DocumentQueries, EncodedInput, Images, NamedImage, RejectedInput
from lakerank.model.preprocess.images import PatchShape, count_frames, cut, load_frames
from lakerank.model.preprocess.tokenizer import text_positions
from lakerank.model.registry import CheckpointIdentity
from lakerank.records import TRANSIENT_REASONS, Document, DocumentGroup, Query, RejectReason

#: Encoded inputs (token ids and 8-bit patches) kept for reuse: a query comes back for every document it is paired with,
#: a document only when its queries were split among several groups.
QUERY_CACHE_BYTES = 256 * 2**20
DOCUMENT_CACHE_BYTES = 32 * 2**20

#: Queries of one group that are prepared at once; more are taken in turn.
QUERIES_AHEAD = 1024

#: How inputs are sized before they are read, to bound prefetching: rough on purpose.
CHARACTERS_PER_TOKEN = 4
BYTES_PER_VISUAL_TOKEN = 64
MOST_VISUAL_TOKENS = 768

#: Tokens of groups that are fetched ahead for a reranker that does not say how many it scores together.
TOKENS_AHEAD = 32_768

#: Bytes that a cached reject, or an entry's bookkeeping, is counted as.
_ENTRY_BYTES = 256

T = TypeVar("T")

#: Entered with an encoded image while it is decoded. Raises RejectedInput: it is not to be decoded.
Watch = Callable[[bytes], AbstractContextManager[object]]

_watch: ContextVar[Watch] = ContextVar("watch", default=nullcontext)


@contextmanager
def watched_by(watch: Watch) -> Iterator[None]:
    """Have the images watched that are decoded for this thread."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def watched(data: bytes) -> AbstractContextManager[object]:
    """What is entered while an image is decoded. Raises RejectedInput: it is not to be decoded."""
    return _watch.get()(data)


class BoundedCache(Generic[T]):
    """Computes each value once and evicts those least recently used; threads wait for a value that another computes."""

    def __init__(self, max_bytes: int, size_of: Callable[[T], int]) -> None:
        self.max_bytes, self.bytes, self._size_of = max_bytes, 0, size_of
        self._lock = threading.Lock()
        self._futures: dict[Hashable, Future[T]] = {}
        self._sizes: OrderedDict[Hashable, int] = OrderedDict()  # finished values, least recently used first

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `key`, cached or computed now. An error of `compute` is raised to all who wait, never cached."""
        with self._lock:
            future = self._futures.get(key)
            if key in self._sizes:
                self._sizes.move_to_end(key)
            if future is None:
                computed = self._futures[key] = Future()
        if future is not None:
            return future.result()
        try:
            value = compute()
        except BaseException as error:
            with self._lock:
                del self._futures[key]
            computed.set_exception(error)
            raise
        computed.set_result(value)
        with self._lock:
            self._sizes[key] = self._size_of(value)
            self.bytes += self._sizes[key]
            self._sizes.move_to_end(key, last=self._sizes[key] <= self.max_bytes)  # a larger one goes, no other
            while self.bytes > self.max_bytes:
                self._evict_oldest()
        return value

    def find(self, key: Hashable) -> T | None:
        """The value of `key` if it is cached."""
        with self._lock:
            if key not in self._sizes:
                return None
            self._sizes.move_to_end(key)
            return self._futures[key].result()

    def put(self, key: Hashable, value: T) -> None:
        """Cache a value that was computed elsewhere."""
        self.get(key, lambda: value)

    def clear(self) -> None:
        """Evict every value."""
        with self._lock:
            while self._sizes:
                self._evict_oldest()

    def _evict_oldest(self) -> None:
        key, size = self._sizes.popitem(last=False)
        del self._futures[key]
        self.bytes -= size


class EngineInput(Protocol):
    """What an engine scores of a group, and how many tokens that takes."""

    @property
    def tokens(self) -> int: ...


@dataclass(slots=True)
class Seconds:
    """Processor time of one thread on one group, and how long the group was waited for."""

    decode: float = 0.0
    tokenise: float = 0.0
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A group whose inputs are encoded. `engine_input` is None where nothing can be scored."""

    group: DocumentGroup
    document: EncodedInput | RejectedInput
    queries: tuple[EncodedInput | RejectedInput, ...]
    engine_input: EngineInput | None
    seconds: Seconds

    @property
    def sides(self) -> tuple[EncodedInput | RejectedInput, ...]:
        """Its queries; with a document that cannot be read none is encoded: that is why, for each."""
        document = self.document
        return (document,) * len(self.group.queries) if isinstance(document, RejectedInput) else self.queries


class InputTokenizer(Protocol):
    """Encodes a family's documents and queries. Both raise RejectedInput."""

    def document(self, text: str | None, images: Images = ()) -> EncodedInput: ...

    def query(self, text: str | None, images: Images = (), instruction: str | None = None) -> EncodedInput: ...


#: What the device is given for a document and queries on it, which all have one instruction.
Arrange = Callable[[EncodedInput, tuple[EncodedInput, ...]], EngineInput]


class Preprocessor:
    """Prepares groups for the device; encoded inputs are cached by their content's hash.

    `shape`: how images are cut; None where they are not read, and an input that has one cannot be scored.
    """

    def __init__(
        self,
        tokenizer: InputTokenizer,
        identity: CheckpointIdentity,
        shape: PatchShape | None,
        *,
        arrange: Arrange = DocumentQueries,
        threads: int = 2,
        query_bytes: int = QUERY_CACHE_BYTES,
        document_bytes: int = DOCUMENT_CACHE_BYTES,
    ) -> None:
        self._tokenizer, self._arrange, self._threads = tokenizer, arrange, threads
        self._limits, self._instructions, self._shape = identity.limits, identity.instructions, shape
        self._queries: BoundedCache[EncodedInput | RejectedInput] = BoundedCache(query_bytes, _size)
        self._documents: BoundedCache[EncodedInput | RejectedInput] = BoundedCache(document_bytes, _size)

    def prefetch(self, groups: Iterable[DocumentGroup], tokens: int) -> Iterator[Prepared]:
        """Prepared groups, in order, pulled as they are needed; about `tokens` tokens of them are prepared ahead."""
        pending: deque[tuple[int, Future[Prepared]]] = deque()
        expected = 0
        with ThreadPoolExecutor(self._threads, thread_name_prefix="lakerank-host") as pool:
            try:
                for group in _split(groups):
                    size, _ = expected_size(group)
                    pending.append((size, pool.submit(copy_context().run, self._prepare, group)))
                    expected += size
                    while len(pending) > self._threads and expected > tokens:
                        size, future = pending.popleft()
                        expected -= size
                        yield _finished(future)
                while pending:
                    yield _finished(pending.popleft()[1])
            finally:
                for _, future in pending:
                    future.cancel()

    def _prepare(self, group: DocumentGroup) -> Prepared:
        spent = Seconds()
        document = self._document(group, spent)
        if isinstance(document, RejectedInput):
            return Prepared(group, document, (), None, spent)
        queries = tuple(self._encode(query, spent) for query in group.queries)
        encoded = tuple(query for query in queries if isinstance(query, EncodedInput))
        engine_input = self._arrange(document, encoded) if encoded else None
        return Prepared(group, document, queries, engine_input, spent)

    def _document(self, group: DocumentGroup, spent: Seconds) -> EncodedInput | RejectedInput:
        """A group's document; one whose state is known is not read."""
        state = group.state
        if state is not None and state.encoded:
            unread = np.zeros(state.tokens, dtype=np.int64)
            return EncodedInput(unread, text_positions(0, 0), 0, truncated=state.truncated, state=state)
        document = self._encode(group.document, spent)
        return document if state is None or isinstance(document, RejectedInput) else replace(document, state=state)

    def _encode(self, item: Query | Document, spent: Seconds) -> EncodedInput | RejectedInput:
        """Token ids and patches of an input, or why there are none; from the cache where its content is in it."""
        image_keys = tuple(map(digest, item.images))
        text_key = None if item.text is None else digest(item.text.encode("utf-8", "surrogatepass"))
        cache = self._documents if isinstance(item, Document) else self._queries

        def encode() -> EncodedInput | RejectedInput:
            try:
                return self._encode_uncached(item, image_keys, spent)
            except RejectedInput as rejected:
                if rejected.reason in TRANSIENT_REASONS:
                    raise  # not cached
                return rejected

        try:
            return cache.get((text_key, image_keys, _instruction(item)), encode)
        except RejectedInput as rejected:
            return rejected

    def _encode_uncached(self, item: Query | Document, image_keys: Sequence[str], spent: Seconds) -> EncodedInput:
        if item.images and self._shape is None:
            raise RejectedInput(RejectReason.MODALITY_UNSUPPORTED, "an image, and this reranker reads texts alone")
        started, decoding = time.thread_time(), spent.decode
        files: list[int] = []  # of each image that is pulled
        tokenize = self._tokenizer.document
        if isinstance(item, Query):
            tokenize = partial(self._tokenizer.query, instruction=self._instructions.of(item))
        try:
            encoded = tokenize(item.text, self._images(item.images, image_keys, files, spent))
        finally:
            spent.tokenise += time.thread_time() - started - (spent.decode - decoding)
        if not encoded.images:
            return encoded
        read = files[: len(encoded.images)]
        left_out = sum(map(count_frames, item.images[: read[-1] + 1])) - len(read)
        truncated = encoded.truncated or left_out > 0 or read[-1] + 1 < len(item.images)
        return replace(encoded, truncated=truncated, files_read=read[-1] + 1, frames_left_out=max(0, left_out))

    def _images(
        self, images: Sequence[bytes], keys: Sequence[str], files: list[int], spent: Seconds
    ) -> Iterator[NamedImage]:
        """The images of files, decoded as they are pulled; `files` gets the number of each one's."""
        shape = self._shape or PatchShape()
        for number, (data, key) in enumerate(zip(images, keys, strict=True)):
            frames = load_frames(data, self._limits, shape)
            for frame in count():
                started = time.thread_time()
                try:
                    with watched(data):
                        pixels = next(frames, None)
                except RejectedInput as rejected:
                    names = [f"image {number + 1}"] * (len(images) > 1) + [f"frame {frame + 1}"] * (frame > 0)
                    raise RejectedInput(rejected.reason, ": ".join([*names, rejected.detail])) from rejected
                finally:
                    spent.decode += time.thread_time() - started
                if pixels is None:
                    break
                files.append(number)
                yield f"{key}#{frame}" if frame else key, cut(pixels, shape)


def _finished(future: Future[Prepared]) -> Prepared:
    started = time.perf_counter()
    prepared = future.result()
    prepared.seconds.wait = time.perf_counter() - started
    return prepared


def _split(groups: Iterable[DocumentGroup]) -> Iterator[DocumentGroup]:
    """Groups of queries of one instruction, no more than are prepared at once; the document's prefix is kept."""
    for group in groups:
        alike = groupby(sorted(group.queries, key=_instruction), key=_instruction)
        for queries in [tuple(some) for _, some in alike] or [()]:
            for first in range(0, max(1, len(queries)), QUERIES_AHEAD):
                yield replace(group, queries=queries[first : first + QUERIES_AHEAD])


def _instruction(item: Query | Document) -> str:
    return item.instruction or "" if isinstance(item, Query) else ""


def expected_size(group: DocumentGroup) -> tuple[int, int]:
    """Tokens that a group will take, roughly, and bytes that it has, before anything is read."""
    inputs: list[Query | Document] = [group.document, *group.queries]
    size = sum(len(item.text or "") + sum(map(len, item.images)) for item in inputs)
    return sum(map(_expected_tokens, inputs)), size


def _expected_tokens(item: Query | Document) -> int:
    """Tokens that an input will take, roughly, before anything is read."""
    visual = sum(min(len(image) // BYTES_PER_VISUAL_TOKEN, MOST_VISUAL_TOKENS) for image in item.images)
    return 8 + len(item.text or "") // CHARACTERS_PER_TOKEN + visual


def digest(content: bytes) -> str:
    """Names an input's content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _size(encoded: EncodedInput | RejectedInput) -> int:
    return _ENTRY_BYTES + (encoded.nbytes if isinstance(encoded, EncodedInput) else 0)
