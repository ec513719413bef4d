"""Weighs the parts of documents by a method that was measured on such a model, and tests each explanation by deletion.

Shapes: L tokens of a query, S of a document, P parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, islice, repeat
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from lakerank.errors import ConfigError
from lakerank.explain.parts import Floats, Parts, Reading, parts_of
from lakerank.model.config import read_config
from lakerank.model.inputs import EncodedInput, RejectedInput
from lakerank.model.preprocess.images import patch_shape
from lakerank.model.preprocess.pipeline import Prepared
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.registry import M0, CheckpointIdentity
from lakerank.records import DocumentGroup, Query, Reject, ScoredPair

#: Passages that a longer text is cut into, each a fifth of it; a query is cut into its words.
_PASSAGES, _WORDS = 5, 512

#: A word of the query answers a part that it takes at least this share of what the word takes that takes most.
_ANSWERS = 0.5


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
    """A document, its queries, and how they are read. `taken`: (L, P), what a query's tokens take of the parts.

    `logits` of the queries on the document but for some parts.
    """

    doc_id: str
    parts: Parts
    queries: Mapping[str, Query]
    read: Mapping[str, EncodedInput]
    taken: Mapping[str, Floats]
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

    def without(self, removed: Iterable[frozenset[int]], query_id: str) -> list[float]:
        """A query's logits on the document but for each of some sets of parts; NaN: it has none."""
        return [self.logits.get((parts, query_id), np.nan) for parts in removed]

    def weights(self, query_id: str) -> Floats:
        """(P,): what a query's last token takes of each part, or how much its logit falls without each; sum 1."""
        weights = np.zeros(len(self.parts.parts))
        if self.parts.images:
            weights = self.taken[query_id][-1]
        elif self.singles:
            falls = self.logits[frozenset(), query_id] - np.array(self.without(self.singles, query_id))
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
        cases = self._cases([group for group in prepared if group.engine_input is not None])
        for case in cases:
            case.logits.update({(frozenset(), name): logits[name, case.doc_id] for name in case.queries})
        self._score(
            [
                (case, removed, name)
                for case in cases
                for removed in (*case.singles, *case.random)
                for name in case.queries
            ]
        )
        weighed = [(case, name, case.weights(name)) for case in cases for name in case.queries]
        tops = [case.parts.fifth(np.argsort(-weights, kind="stable")) for case, _, weights in weighed]
        self._score([(case, top, name) for (case, name, _), top in zip(weighed, tops, strict=True)])
        for (case, name, weights), top in zip(weighed, tops, strict=True):
            tested = case.without([frozenset(), top, *case.random], name)
            method = f"attention of layer {self._method.layer}" if case.parts.images else "leave-one-out"
            yield Explanation(name, case.doc_id, case.parts, weights, self._words(case, name), tested, method)

    def _cases(self, prepared: Sequence[Prepared]) -> list[Case]:
        layer, cases = self._method.layer, []
        inputs = [group.engine_input for group in prepared]
        taken = iter(() if layer is None or not inputs else self._network.engine.attention(inputs, layer))
        for group in prepared:
            document, encoded = group.group.document, group.document
            if isinstance(encoded, EncodedInput):
                pairs = zip(group.group.queries, group.queries, strict=True)
                read = {query.query_id: each for query, each in pairs if isinstance(each, EncodedInput)}
                queries = {query.query_id: query for query in group.group.queries if query.query_id in read}
                parts = parts_of(document, encoded, self._document)
                of_parts = [tokens @ parts.of_tokens for tokens in islice(taken, len(read))]
                cases.append(Case(document.doc_id, parts, queries, read, dict(zip(read, of_parts, strict=False))))
        return cases

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
        """The words of a query that each part answers: those whose tokens take most of it."""
        query = case.queries[query_id]
        if not query.text or query_id not in case.taken:
            return [None] * len(case.parts.parts)
        asked = parts_of(query, case.read[query_id], self._query)
        spans = [part for part in asked.parts if part.kind == "span"]
        starts = {part.start for part in spans}  # in a script without spaces words adjoin
        words = [query.text[part.start : part.end] + " " * (part.end not in starts) for part in spans]
        of_words = (asked.of_tokens.T @ case.taken[query_id])[-len(words) :]  # (words, P)
        answered = of_words >= _ANSWERS * of_words.max(axis=0, initial=0.0)
        return ["".join(compress(words, column)).strip() or None for column in answered.T]
