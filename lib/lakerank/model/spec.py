"""Where a reranker comes from, in plain values: one checkpoint, or one for texts and one for images; torch waits."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lakerank.cost import Reading, Sizing
from lakerank.errors import CheckpointError
from lakerank.fingerprint import fingerprint
from lakerank.limits import Limits, LogitScale
from lakerank.model.identity import CheckpointIdentity, identify
from lakerank.model.registry import LoadedReranker, ModelFamily, family_named
from lakerank.model.routed import RoutedReranker

#: Changes when two rerankers with the same names and scales would score other pairs, or otherwise.
ROUTING_PROTOCOL = 1

#: Tokens of a text that is read whole, however long.
_ALL_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What a reranker may take of the machine; see `load_reranker`."""

    host_threads: int = 2
    device_threads: int | None = None
    reproducible: bool = True


@dataclass(frozen=True, slots=True)
class ScorerIdentity:
    """A reranker whose files have been found: what a plan must know of it, and what a worker knows it by.

    `parameters`: of its largest checkpoint, whose tokens costs are counted in. `readings`: how pairs are read, all of
    them, or those of texts and those with an image.
    """

    fingerprint: str
    logit_bias: float
    parameters: int
    identities: tuple[CheckpointIdentity, ...]
    readings: tuple[Reading, ...]

    def document_sizing(self) -> Sizing:
        """What bounds the cost of a document."""
        return self._sizing([_most_of_document(one) for one in self.identities])

    def query_sizing(self) -> Sizing:
        """What bounds the cost of a query."""
        return self._sizing([one.limits.max_query_length for one in self.identities])

    def _sizing(self, lengths: list[int]) -> Sizing:
        limits = self.identities[-1].limits
        plain = lengths[0] if len(lengths) > 1 else None
        return Sizing(limits.min_pixels, limits.max_pixels, lengths[-1], plain)


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """A checkpoint and how it is read; the arguments of `load_reranker` that scores depend on."""

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None
    family: str | None = None
    max_length: int | None = None
    dtype: str = "auto"

    def identify(self, limits: Limits) -> ScorerIdentity:
        """Find the checkpoint.

        Raises:
            CheckpointError: it cannot be found or is not one.
        """
        found = identify(
            self.path,
            revision=self.revision,
            adapter=self.adapter,
            adapter_revision=self.adapter_revision,
            dtype=self.dtype,
            limits=limits,
            family=self.family,
            max_length=self.max_length,
        )
        reading = _reading(found, found.parameters)
        return ScorerIdentity(found.fingerprint, found.logit_bias, found.parameters, (found,), (reading,))

    def load(
        self, device: str, limits: Limits, options: RuntimeOptions, scorer: ScorerIdentity | None = None
    ) -> LoadedReranker:
        """The reranker in memory.

        Args:
            scorer: what `identify` made of it elsewhere, so that large weights are not hashed again.

        Raises:
            CheckpointError: it cannot be loaded as it stands, or is not the scorer's.
        """
        return self.load_known(device, limits, options, None if scorer is None else scorer.identities[0])

    def load_known(
        self, device: str, limits: Limits, options: RuntimeOptions, identity: CheckpointIdentity | None
    ) -> LoadedReranker:
        """`load`, by the checkpoint's own identity."""
        from lakerank.model.api import load_reranker

        return load_reranker(
            **asdict(self),
            device=device,
            limits=limits,
            host_threads=options.host_threads,
            device_threads=options.device_threads,
            reproducible=options.reproducible,
            identity=identity,
        )


@dataclass(frozen=True, slots=True)
class RoutedSpec:
    """One checkpoint for pairs of texts and one for pairs with an image; the scales bring their logits together."""

    text: CheckpointSpec
    image: CheckpointSpec
    text_scale: LogitScale
    image_scale: LogitScale

    def identify(self, limits: Limits) -> ScorerIdentity:
        """Find both checkpoints.

        Raises:
            CheckpointError: one cannot be found, is not one, or (the one for images) reads text alone.
        """
        found = tuple(one.identify(limits).identities[0] for one in (self.text, self.image))
        check_reads_images(found[1])
        parts = {
            "routing": ROUTING_PROTOCOL,
            "text": [found[0].fingerprint, asdict(self.text_scale)],
            "image": [found[1].fingerprint, asdict(self.image_scale)],
        }
        most = max(one.parameters for one in found)
        readings = tuple(_reading(one, most) for one in found)
        return ScorerIdentity(fingerprint(parts), 0.0, most, found, readings)

    def load(
        self, device: str, limits: Limits, options: RuntimeOptions, scorer: ScorerIdentity | None = None
    ) -> LoadedReranker:
        """Both rerankers in memory, as one; see `CheckpointSpec.load`."""
        scorer = scorer or self.identify(limits)
        text, image = (
            source.load_known(device, limits, options, identity)
            for source, identity in zip((self.text, self.image), scorer.identities, strict=True)
        )
        return RoutedReranker(text, image, self.text_scale, self.image_scale, scorer.fingerprint)


ModelSpec = CheckpointSpec | RoutedSpec


def check_reads_images(identity: CheckpointIdentity) -> None:
    """Raises CheckpointError for a checkpoint that cannot take the pairs with an image."""
    family = _family(identity)
    if not family.accepts_images:
        raise CheckpointError(f"model.image: {family.name} reads text alone; name a reranker that reads images")


def _family(identity: CheckpointIdentity) -> ModelFamily:
    return family_named(identity.family)


def _most_of_document(identity: CheckpointIdentity) -> int:
    """Tokens of a document that are read at most."""
    family, limits = _family(identity), identity.limits
    if family.sliding_window:
        return _ALL_TOKENS
    return limits.max_length - (0 if family.truncates_document_only else limits.max_query_length)


def _reading(identity: CheckpointIdentity, largest: int) -> Reading:
    family = _family(identity)
    return Reading(family.document_major, family.accepts_images, identity.parameters / largest)
