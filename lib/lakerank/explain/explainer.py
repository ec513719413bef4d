"""Weighs the parts of documents by a method that was measured on such a model, and tests each explanation by deletion.

Shapes: L tokens of a query, S of a document, P parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from lakerank.errors import ConfigError
from lakerank.explain.parts import Floats, Parts, Reading, parts_of
from lakerank.model.config import read_config
from lakerank.model.inputs import DocumentQueries, EncodedInput, RejectedInput
from lakerank.model.preprocess.images import patch_shape
from lakerank.model.preprocess.pipeline import Prepared
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.registry import M0, CheckpointIdentity
from lakerank.records import DocumentGroup, Query, Reject, ScoredPair

#: Passages that a longer text is cut into, each a fifth of it; a query is cut into its words.
_PASSAGES, _WORDS = 5, 512

#: How many times as much as any other a query's word takes of a part that it is named with, each relative to what it
#: takes of a part in the mean.
_CLEARLY = 2


@dataclass(frozen=True, slots=True)
class Method:
    """How a kind of model is explained. `document`, `query`: what its prompts have before and behind a text.

    `layer`: images, and texts beside them, by what a query's last token takes in this layer, the first of which is 0;
    None: it reads no images. Texts alone by leaving out one passage at a time.
    """

    layer: int | None = None
    document: tuple[str, str] = ("", "")
    query: tuple[str, str] = ("", "")


#: What was measured, by family and number of weights: docs/explanations.md has the figures.
METHODS: Mapping[tuple[str, int], Method] = {
    (M0, 9_051_841): Method(2, ("**Document**:\n", "\n"), ("**Query**:\n", "")),
    ("bert-reranker", 33_360_385): Method(),
}
_MEASURED = "embedded, minilm-en, and what is fine-tuned from these"


def method_of(identity: CheckpointIdentity) -> Method | None:
    """How a checkpoint's scores are explained; None: of such a model nothing was measured."""
    return METHODS.get((identity.family, identity.parameters))


def unmeasured(identities: Iterable[CheckpointIdentity]) -> ConfigError:
    """The error of a run none of whose rerankers can be explained."""
    names = ", ".join(sorted({f"{identity.family} of {identity.parameters:,} weights" for identity in identities}))
    return ConfigError([f"model: {names}: no explanations of it were measured, so none are given; but of {_MEASURED}"])


@dataclass(frozen=True, slots=True)
class Case:
    """A document, its queries, and how the network reads it (`read`) and them (`reads`).

    `taken`: (L, P), what a query's tokens take of the parts. `logits` of queries on the document but for some parts.
    """

    doc_id: str
    parts: Parts
    read: EncodedInput
    queries: Mapping[str, Query]
    reads: Mapping[str, EncodedInput]
    taken: dict[str, Floats] = field(default_factory=dict)
    logits: dict[tuple[frozenset[int], str], float] = field(default_factory=dict)

    @property
    def singles(self) -> list[frozenset[int]]:
        """Each passage of a text alone."""
        count = len(self.parts.parts)
        return [frozenset([part]) for part in range(count)] if count > 1 and not self.parts.images else []

    @property
    def random(self) -> list[frozenset[int]]:
        """Of an image a fifth at random, the same in each run; of a text, which has five passages at most, each."""
        order = np.random.default_rng(crc32(self.doc_id.encode())).permutation(len(self.parts.parts))
        return self.singles or [self.parts.fifth(order)]

    def heaviest(self, query_id: str) -> frozenset[int]:
        """The fifth of the parts that weighs most for a query."""
        return self.parts.fifth(np.argsort(-self.weights(query_id), kind="stable"))

    def falls(self, query_id: str) -> bool:
        """Whether a query's logit falls without that."""
        whole, without = self.without([frozenset(), self.heaviest(query_id)], query_id)
        return bool(without < whole)

    def without(self, removed: Iterable[frozenset[int]], query_id: str) -> Floats:
        """A query's logits on the document but for each of some sets of parts; NaN: it has none."""
        return np.array([self.logits.get((parts, query_id), np.nan) for parts in removed])

    def weights(self, query_id: str) -> Floats:
        """(P,), sum 1: what a query's last token takes of each part, or how much its logit falls without each."""
        weights = np.zeros(len(self.parts.parts))
        if self.parts.images:
            weights = self.taken[query_id][-1]
        elif self.singles:
            falls = self.logits[frozenset(), query_id] - self.without(self.singles, query_id)
            weights = np.nan_to_num(falls).clip(0)
        return weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / max(1, len(weights)))


@dataclass(frozen=True, slots=True)
class Explanation:
    """A pair's parts with weights (P,), and for each the words of the query that it answers.

    `logits`: of the document, without its most weighted fifth, and without random ones.
    """

    query_id: str
    doc_id: str
    parts: Parts
    weights: Floats
    words: Sequence[str | None]
    logits: Sequence[float]
    method: str

    @property
    def faithful(self) -> bool:
        """Whether the logit falls without the most weighted fifth, and more than without a random one."""
        whole, without, *random = self.logits
        return bool(without < whole and without < np.mean(random))

    def rows(self) -> Iterator[dict[str, Any]]:
        """As schemas.EXPLANATIONS."""
        of_pair = {"query_id": self.query_id, "doc_id": self.doc_id, "method": self.method, "faithful": self.faithful}
        for part, weight, words in zip(self.parts.parts, self.weights.tolist(), self.words, strict=True):
            yield of_pair | part._asdict() | {"weight": weight, "query_words": words}


class Explainer:
    """Explains pairs that a reranker has scored, document by document."""

    def __init__(self, reranker: Any, identity: CheckpointIdentity) -> None:
        folder, self._method = Path(identity.folder), METHODS[identity.family, identity.parameters]
        config, tokenizer = read_config(folder), read_tokenizer(folder / "tokenizer.json")
        shape, image = patch_shape(folder, config.get("vision_config", {})), config.get("image_token_id", -1)
        self._document = Reading(tokenizer, self._method.document, _PASSAGES, image, shape, identity.limits)
        self._query = replace(self._document, around=self._method.query, passages=_WORDS)
        # What scores on another scale than its network's wraps that.
        self._reranker, self._network = reranker, getattr(reranker, "reranker", reranker)

    def explain(
        self, groups: Sequence[DocumentGroup], logits: Mapping[tuple[str, str], float]
    ) -> Iterator[Explanation | Reject]:
        """One result for each pair of groups that fit into memory together; `logits` by (query_id, doc_id)."""
        prepared = [*self._network.preprocessor.prefetch(groups, self._network.engine.group_tokens)]
        for group in prepared:
            reads = repeat(group.document) if isinstance(group.document, RejectedInput) else group.queries
            for query, read in zip(group.group.queries, reads, strict=False):
                if isinstance(read, RejectedInput):
                    yield Reject(query.query_id, group.group.document.doc_id, read.reason, read.detail)
        cases = [*self._cases(prepared)]
        self._attend([case for case in cases if case.parts.images])
        for case in cases:
            case.logits.update({(frozenset(), name): logits[name, case.doc_id] for name in case.queries})
        pairs = [(case, name) for case in cases for name in case.queries]
        self._score((case, removed, name) for case, name in pairs for removed in case.singles or [case.heaviest(name)])
        # Where the logit does not fall without the heaviest fifth, a random one decides nothing.
        self._score((case, removed, name) for case, name in pairs if case.falls(name) for removed in case.random)
        method = f"attention of layer {self._method.layer}"
        for case, name in pairs:
            words = self._words(case, name)
            tested = case.without([frozenset(), case.heaviest(name), *case.random], name).tolist()
            how = method if case.parts.images else "leave-one-out"
            yield Explanation(name, case.doc_id, case.parts, case.weights(name), words, tested, how)

    def _cases(self, prepared: Sequence[Prepared]) -> Iterator[Case]:
        for group in prepared:
            document, encoded = group.group.document, group.document
            if isinstance(encoded, EncodedInput):
                pairs = zip(group.group.queries, group.queries, strict=True)
                reads = {query.query_id: each for query, each in pairs if isinstance(each, EncodedInput)}
                queries = {query.query_id: query for query in group.group.queries if query.query_id in reads}
                yield Case(document.doc_id, parts_of(document, encoded, self._document), encoded, queries, reads)

    def _attend(self, cases: Sequence[Case]) -> None:
        """What queries take of the parts of images."""
        pairs = [(case, name) for case in cases for name in case.queries]
        inputs = [DocumentQueries(case.read, tuple(case.reads.values())) for case in cases if case.queries]
        taken = self._network.engine.attention(inputs, self._method.layer) if inputs else ()
        for (case, name), tokens in zip(pairs, taken, strict=True):
            case.taken[name] = tokens @ case.parts.of_tokens

    def _score(self, asked: Iterable[tuple[Case, frozenset[int], str]]) -> None:
        """Add the logits of queries on documents but for some parts: of those that are new, and can be scored."""
        documents: dict[tuple[int, frozenset[int]], tuple[Case, dict[str, Query]]] = {}
        for case, removed, query_id in asked:
            if (removed, query_id) not in case.logits:
                queries = documents.setdefault((id(case), removed), (case, {}))[1]
                queries[query_id] = case.queries[query_id]
        altered = [*documents.items()]
        groups = (
            DocumentGroup(case.parts.without(removed, str(number)), tuple(queries.values()))
            for number, ((_, removed), (case, queries)) in enumerate(altered)
        )
        for result in self._reranker.score_groups(groups):
            (_, removed), (case, _) = altered[int(result.doc_id)]
            if isinstance(result, ScoredPair):
                case.logits[removed, result.query_id] = result.logit

    def _words(self, case: Case, query_id: str) -> list[str | None]:
        """For each of the heaviest parts of an image the word of a query that takes clearly more of it than others."""
        answers: list[str | None] = [None] * len(case.parts.parts)
        if query_id not in case.taken:
            return answers
        asked = parts_of(case.queries[query_id], case.reads[query_id], self._query)
        words = [part for part in asked.parts if part.kind == "span"]
        if len(words) > 1:
            of_words = (asked.of_tokens.T @ case.taken[query_id])[-len(words) :]  # (words, P)
            of_words /= of_words.mean(axis=1, keepdims=True) + 1e-12
            for part in (number for number in case.heaviest(query_id) if case.parts.parts[number].kind == "box"):
                second, first = np.argsort(of_words[:, part])[-2:]
                if of_words[first, part] > _CLEARLY * of_words[second, part]:
                    answers[part] = asked.text[words[first].start : words[first].end]
        return answers
