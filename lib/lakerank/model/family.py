"""What a family of rerankers is: how its checkpoints are known, read and loaded, and what is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lakerank.errors import CheckpointError
from lakerank.limits import Limits
from lakerank.records import Document, DocumentGroup, Query, Reject, ScoredPair

#: A checkpoint's config.json.
Config = Mapping[str, Any]


class TokensRead(Protocol):
    """Tokens through the model since it was loaded, and what whole pairs would have cost."""

    @property
    def computed(self) -> int: ...

    @property
    def pairwise(self) -> int: ...


class LoadedReranker(Protocol):
    """A reranker in memory.

    `fingerprint` names the scorer, `load_id` this loading of it; relevance = sigmoid(logit - `logit_bias`).
    """

    fingerprint: str
    logit_bias: float
    load_id: str

    @property
    def work(self) -> TokensRead: ...

    def score(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
        """Raw float32 logits (P,) of pairs, in order; raises PairRejected where a pair cannot be scored."""
        ...

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        """One result for each pair of each group."""
        ...


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a family reads in a checkpoint's JSON files.

    `dtype`: what its weights are computed in. `parts`: JSON-able settings that scores depend on, for the fingerprint,
    beyond those that every fingerprint holds (weights, config.json, tokenizer, adapter, dtype, bias and limits).
    """

    dtype: str
    logit_bias: float = 0.0
    parts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a checkpoint that has been identified is to be loaded; `adapter` is a folder.

    `dtype` and `device` are torch's names, chosen already. `limits` are the family's own (`ModelFamily.limits`).
    """

    folder: Path
    adapter: str | None
    dtype: str
    device: str
    limits: Limits
    host_threads: int
    reproducible: bool
    fingerprint: str
    logit_bias: float


def _unbounded(config: Config) -> int | None:
    return None


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Rerankers that are computed in one way.

    Attributes:
        name: what `model.family` calls it.
        models: what it is published as, and what is recognised: for messages.
        protocol: changes when the same weights and limits would give other scores. `NAME/1`, `NAME/2`, …; that of
            jina-reranker-m0 is a bare number, from when there was no other.
        document_major: work on a document is shared by its queries; if not, a pair costs document + query tokens.
        accepts_images: False: a pair with an image is rejected as `modality_unsupported`.
        accepts_adapter: a LoRA adapter may be merged on load.
        recognises: whether a checkpoint with this config.json is of the family.
        read: (folder, dtype or auto) to CheckpointInfo, from the JSON files and the weights' headers alone.
            Raises CheckpointError for what cannot be computed as it stands.
        load: the reranker in memory.
        files: names of further files in the fingerprint, where a checkpoint has them.
        usual_length: tokens of a pair as published: `scoring.max_length` is brought down to it, `model.max_length` is
            not. None: as the config says.
        positions: the most tokens that a pair can have, by config.json; None: no such bound.
        query_share: of a pair's tokens, those that a query may have.
        cuts_document_alone: a document has all the room that its pair's query leaves, not what the longest would.
        reads_whole: texts longer than a pair may be are read in windows, not cut: a plan counts all of their tokens.
    """

    name: str
    models: str
    protocol: int | str
    document_major: bool
    accepts_images: bool
    accepts_adapter: bool
    recognises: Callable[[Config], bool]
    read: Callable[[Path, str], CheckpointInfo]
    load: Callable[[LoadOptions], LoadedReranker]
    files: tuple[str, ...] = ()
    usual_length: int | None = None
    positions: Callable[[Config], int | None] = _unbounded
    query_share: float = 0.5
    cuts_document_alone: bool = False
    reads_whole: bool = False

    def limits(self, config: Config, limits: Limits, max_length: int | None, source: str) -> Limits:
        """The limits that hold for a checkpoint; those that its scores cannot depend on are the defaults.

        Args:
            max_length: the model's own, instead of `limits.max_length`; None where the config states none.

        Raises:
            CheckpointError: `max_length` is more than the network has positions.
        """
        most = self.positions(config)
        if max_length is not None and most is not None and max_length > most:
            raise CheckpointError(f"{source}: model.max_length {max_length}, but {self.name} has {most} positions")
        bounds = [bound for bound in (limits.max_length, self.usual_length, most) if bound is not None]
        length = max_length or min(bounds)
        query = min(limits.max_query_length, int(length * self.query_share))
        if self.accepts_images:
            return replace(limits, max_length=length, max_query_length=query)
        return Limits(max_length=length, max_query_length=query)
