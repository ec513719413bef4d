"""The Python API: a reranker that takes strings, images, files, arrays and tables as they come, and ranks them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from lakerank.errors import ConfigError, PairRejected
from lakerank.limits import Limits, Listwise
from lakerank.model import frames
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.content import is_missing, list_of, to_record
from lakerank.model.registry import LoadedReranker
from lakerank.model.spec import CheckpointSpec, RuntimeOptions, load
from lakerank.ranking import relevance
from lakerank.records import (
    CandidateList,
    Document,
    DocumentGroup,
    ListReranker,
    Query,
    RankResult,
    Reject,
    RejectReason,
    ScoredPair,
)

logger = logging.getLogger(__name__)

#: What becomes of a pair that cannot be scored: an exception, or a null with its reject code.
Errors = Literal["raise", "null"]

Pair = tuple[Query, Document]

_QUERY_COLUMNS = {"query_id": "query_id", "query": "text", "query_image": "image", "instruction": "instruction"}
_DOCUMENT_COLUMNS = {"doc_id": "doc_id", "text": "text", "image": "image", "images": "images"}


@dataclass(frozen=True)
class RerankModel:
    """A reranker in memory, and what it is; made by `load_reranker`.

    A query or a document is a string (its text: never a path or a URL, nothing is fetched), an image (bytes of an
    encoded file, a `pathlib.Path`, a PIL image, a uint8 array), a mapping with `text` or `image`, or a record. A
    document may have several `images` instead: pages, frames or figures in order, and a text after them. A mapping or
    a record of a query may have an `instruction`.
    `reranker` is the engine, which takes document groups.
    """

    reranker: LoadedReranker = field(repr=False)
    path: str
    family: str
    parameters: int
    device: str
    dtype: str
    limits: Limits = field(default_factory=Limits, repr=False)

    def score(self, pairs: Any, *, errors: Errors | None = None, show_progress: bool = False) -> Any:
        """Raw float32 logits (P,) of pairs (query, document), in order; pairs that share a document share its work.

        A table (pandas, polars, Arrow) with columns query or query_image, and text or image, gives the same table with
        columns logit, relevance and reason. `errors`: null makes a pair without a score NaN; it is the default for
        tables, raise for all else.

        Raises:
            PairRejected: a pair cannot be scored; the first is named.
            TypeError: names the pair, and what is accepted.
            ConfigError: it scores lists.
        """
        if isinstance(self.reranker, ListReranker):
            self.score_groups(())
        if not frames.is_frame(pairs):
            return self._logits(self._pairs(pairs, _null(errors or "raise")), _null(errors or "raise"), show_progress)
        null = _null(errors or "null")
        sides = (frames.records(pairs, columns) for columns in (_QUERY_COLUMNS, _DOCUMENT_COLUMNS))
        given = self._pairs([*zip(*sides, strict=True)], null, "row")
        results = self._checked(given, null, "row", show_progress)
        return frames.with_results(pairs, *self._columns(results))

    def rank(
        self,
        query: Any,
        documents: Any,
        *,
        top_k: int | None = None,
        return_documents: bool = True,
        errors: Errors | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Documents by relevance to a query, best first, as RankResult; the order of those alike is the given one.

        A table with columns text or image gives its rows so, with columns logit, relevance and reason. `top_k`: at most
        so many. `return_documents`: with their texts. `errors`: as for `score`; what has no score comes last.

        Raises:
            PairRejected, TypeError: as `score`.
            ValueError: `top_k` is under 1.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; expected 1 or more, or None for all")
        table = frames.is_frame(documents)
        null = _null(errors or ("null" if table else "raise"))
        what = "row" if table else "document"
        items = frames.records(documents, _DOCUMENT_COLUMNS) if table else list_of(documents, "documents")
        query = self._record(Query, query, "the query", null)
        given = [self._pair(query, item, "", null, f"{what} {number}") for number, item in enumerate(items)]
        results = self._checked(given, null, what, show_progress)
        logits, relevances, reasons = self._columns(results)
        order = [int(number) for number in np.argsort(-logits, kind="stable")[:top_k]]
        if table:
            rows = frames.take(documents, order)
            return frames.with_results(rows, logits[order], relevances[order], [reasons[number] for number in order])
        return [
            _rank_result(number, given[number], results[number], float(relevances[number]), return_documents)
            for number in order
        ]

    def relevance(self, logits: Sequence[float] | np.ndarray) -> np.ndarray:
        """The relevance (P,) of logits (P,): float32 in [0, 1], comparable between queries."""
        return relevance(np.asarray(logits, dtype=np.float32), self.reranker.logit_bias)

    @property
    def fingerprint(self) -> str:
        """The scorer's name: the same for the same weights, adapter, dtype and limits."""
        return self.reranker.fingerprint

    @property
    def logit_bias(self) -> float:
        """Relevance = sigmoid(logit - logit_bias)."""
        return self.reranker.logit_bias

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """One result for each pair, as any Reranker."""
        if isinstance(self.reranker, ListReranker):
            advice = "rank a query's documents, or load it with pointwise=True where it has that use"
            raise ConfigError([f"{self.path} is a {self.family}, which scores lists: {advice}"])
        return self.reranker.score_groups(groups)

    def _pairs(self, pairs: Any, null: bool, name: str = "pair") -> list[Pair | RejectedInput]:
        given = []
        for number, pair in enumerate(list_of(pairs, "pairs")):
            if not isinstance(pair, tuple | list | np.ndarray) or len(pair) != 2:
                raise TypeError(f"pair {number} is of type {type(pair).__qualname__}; expected (query, document)")
            given.append(self._pair(pair[0], pair[1], f"{name} {number}: ", null))
        return given

    def _pair(self, query: Any, document: Any, place: str, null: bool, name: str = "document") -> Pair | RejectedInput:
        """A pair as records, or why an input cannot be read."""
        both = self._record(Query, query, f"{place}query", null), self._record(Document, document, place + name, null)
        rejected = next((side for side in both if isinstance(side, RejectedInput)), None)
        return rejected or both

    def _record(self, record: Any, value: Any, where: str, null: bool) -> Any:
        if isinstance(value, RejectedInput):
            return value
        try:
            return record() if null and is_missing(value) else to_record(record, value, where, self.limits)
        except RejectedInput as rejected:
            return rejected

    def _logits(self, given: list[Pair | RejectedInput], null: bool, show_progress: bool) -> np.ndarray:
        results = self._checked(given, null, "pair", show_progress)
        failed = Counter(result.reason.value for result in results if isinstance(result, RejectedInput))
        if failed:
            counts = ", ".join(f"{count} {reason}" for reason, count in failed.most_common())
            logger.warning("%d of %d pairs have no score: %s", failed.total(), len(results), counts)
        return self._columns(results)[0]

    def _columns(
        self, results: Sequence[ScoredPair | RejectedInput]
    ) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
        """Logits and relevances (P,), NaN where there are none, and reject codes where there are."""
        logits = np.array([getattr(result, "logit", np.nan) for result in results], dtype=np.float32)
        reasons = [result.reason.value if isinstance(result, RejectedInput) else None for result in results]
        return logits, self.relevance(logits), reasons

    def _checked(
        self, given: Sequence[Pair | RejectedInput], null: bool, what: str, show_progress: bool
    ) -> list[ScoredPair | RejectedInput]:
        """A result for each pair; without `null` they are all scores. Raises PairRejected: the first that is not."""
        results = self._results(given, show_progress)
        for number, result in enumerate(results):
            if isinstance(result, RejectedInput) and not null:
                pair = given[number]
                ids = ("", "") if isinstance(pair, RejectedInput) else (pair[0].query_id, pair[1].doc_id)
                raise PairRejected(*ids, result.reason, result.detail, f"{what} {number}")
        return results

    def _results(self, given: Sequence[Pair | RejectedInput], show_progress: bool) -> list[ScoredPair | RejectedInput]:
        """One for each pair, in order: ids are numbers meanwhile, and pairs are grouped by the document's content.

        What scores lists is given one of all the documents, as they come.
        """
        results: list[Any] = [*given]
        readable = {number: pair for number, pair in enumerate(given) if not isinstance(pair, RejectedInput)}
        if lists := isinstance(self.reranker, ListReranker) and bool(readable):
            documents = tuple(replace(pair[1], doc_id=str(number)) for number, pair in readable.items())
            scored = self.reranker.score_lists([CandidateList(next(iter(readable.values()))[0], documents)])
        else:
            numbers: dict[Document, list[int]] = {}
            for number, (_, document) in readable.items():
                numbers.setdefault(replace(document, doc_id=""), []).append(number)
            scored = self.score_groups(
                DocumentGroup(document, tuple(replace(results[at][0], query_id=str(at)) for at in members))
                for document, members in numbers.items()
            )
        for result in _progress(scored, len(readable), show_progress):
            number = int(result.doc_id if lists else result.query_id)
            results[number] = _rejected(result, given[number]) if isinstance(result, Reject) else result
        return results


def _null(errors: Errors) -> bool:
    if errors not in ("raise", "null"):
        raise ValueError(f"errors is {errors!r}; expected 'raise' or 'null'")
    return errors == "null"


def _rejected(result: Reject, pair: Any) -> RejectedInput:
    """Why a pair has no score; an empty record with an id is one whose text was taken for it."""
    side = {RejectReason.EMPTY_QUERY: pair[0], RejectReason.EMPTY_DOCUMENT: pair[1]}.get(result.reason)
    if side is None or side.text is not None or side.image is not None:
        return RejectedInput(result.reason, result.detail)
    name, identifier = ("query_id", side.query_id) if isinstance(side, Query) else ("doc_id", side.doc_id)
    hint = f"; the first argument of {type(side).__name__} is {name}: write text=… or image=…" if identifier else ""
    return RejectedInput(result.reason, result.detail + hint)


def _rank_result(
    number: int, pair: Pair | RejectedInput, result: ScoredPair | RejectedInput, relevance: float, with_text: bool
) -> RankResult:
    document = Document() if isinstance(pair, RejectedInput) else pair[1]
    text = document.text if with_text else None
    if isinstance(result, RejectedInput):
        return RankResult(number, None, None, text, document.doc_id, result.reason, result.detail)
    return RankResult(number, relevance, result.logit, text, document.doc_id)


def _progress(results: Iterator[Any], total: int, show: bool) -> Iterator[Any]:
    from tqdm import tqdm

    return iter(tqdm(results, total=total, unit=" pairs", disable=not show))


def load_reranker(
    path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    adapter_revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    limits: Limits | None = None,
    host_threads: int | None = None,
    device_threads: int | None = None,
    reproducible: bool = True,
    family: str | None = None,
    max_length: int | None = None,
    instruction: str | None = None,
    ignore_instructions: bool = False,
    pointwise: bool = False,
    listwise: Listwise | None = None,
) -> RerankModel:
    """Load a checkpoint: a folder, a hub id with its revision, or the name of a bundled or fetched one (`embedded`).

    Args:
        adapter: folder (or hub id with `adapter_revision`) of a LoRA adapter, merged on load.
        dtype: auto (the checkpoint's, or float32 where the device has no units for that), float32, bfloat16 or float16.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1, mps, …
        limits: tokens of a pair and of a query, pixels of an image; the defaults are jina-reranker-m0's.
        host_threads: decode and tokenise ahead of the device; None: two, or for a GPU one less than the task's cores.
        device_threads: torch's threads on a CPU, for the whole process; None leaves them alone.
        reproducible: a pair's score has the same bits whatever is scored beside it; False: it may not, and is faster.
        family: how it is computed, where its config.json is not to decide: a name in the registry.
        max_length: tokens of a pair, the model's own instead of `limits.max_length`.
        instruction: that of queries without their own. ignore_instructions: queries' own are passed over.
        pointwise: what scores lists is to score pairs. listwise: how it scores lists.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: it takes no instruction, or does not score so.
        TypeError: `path` is no path.
    """
    path = os.path.expanduser(os.fspath(path))  # noqa: PTH111 - a name or a hub id stays as it is
    adapter = None if adapter is None else os.path.expanduser(os.fspath(adapter))  # noqa: PTH111
    of_checkpoint = revision, adapter, adapter_revision, family, max_length, dtype
    spec = CheckpointSpec(path, *of_checkpoint, instruction, ignore_instructions, pointwise, listwise)
    runtime = RuntimeOptions(host_threads, device_threads, reproducible)
    options = spec.load_options(device, limits or Limits(), runtime)
    named = options.identity
    return RerankModel(load(options), path, named.family, named.parameters, options.device, options.dtype, named.limits)


def loaded(model: object) -> RerankModel:
    """The model itself, or the one that `load_reranker` loads by its path or name. Raises TypeError: it is neither."""
    if isinstance(model, RerankModel):
        return model
    if isinstance(model, str | os.PathLike):
        return load_reranker(model)
    raise TypeError(f"model is of type {type(model).__qualname__}; expected a RerankModel, or a path or name to load")
