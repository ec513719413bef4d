"""Which reranker scores a run, in plain values: one checkpoint, or one for texts and one for images. Without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lakerank.cost import CostProfile, Sizing
from lakerank.errors import CheckpointError
from lakerank.fingerprint import fingerprint
from lakerank.limits import Limits, LogitScale
from lakerank.model.identity import CheckpointIdentity, identify
from lakerank.model.registry import LoadedReranker, family_named
from lakerank.model.routed import CalibratedReranker, RoutedReranker

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
    """An identified reranker: what a plan needs to know of it, and how a worker recognises it.

    `parameters`: of its largest checkpoint, whose tokens costs are counted in. `readings`: how pairs are read, all of
    them, or those of texts and those with an image.
    """

    fingerprint: str
    logit_bias: float
    parameters: int
    identities: tuple[CheckpointIdentity, ...]
    readings: tuple[CostProfile, ...]

    def document_sizing(self) -> Sizing:
        """What bounds the cost of a document."""
        return self._sizing(list(map(_max_document_tokens, self.identities)))

    def query_sizing(self) -> Sizing:
        """What bounds the cost of a query."""
        return self._sizing([identity.limits.max_query_length for identity in self.identities])

    def _sizing(self, lengths: list[int]) -> Sizing:
        limits = self.identities[-1].limits
        plain = lengths[0] if len(lengths) > 1 else None
        return Sizing(limits.min_pixels, limits.max_pixels, lengths[-1], plain)


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """A checkpoint, its adapter and how they are read: the arguments of `load_reranker` that scores depend on."""

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
        identity = identify(**asdict(self), limits=limits)
        reading = _reading(identity, identity.parameters)
        return ScorerIdentity(identity.fingerprint, identity.logit_bias, identity.parameters, (identity,), (reading,))

    def load(
        self, device: str, limits: Limits, options: RuntimeOptions, scorer: ScorerIdentity | None = None
    ) -> LoadedReranker:
        """The reranker in memory.

        Args:
            scorer: the result of `identify` in another process, so that large weights are not hashed again.

        Raises:
            CheckpointError: it cannot be loaded as it stands, or is not the scorer's.
        """
        return self.load_identified(device, limits, options, None if scorer is None else scorer.identities[0])

    def load_identified(
        self, device: str, limits: Limits, options: RuntimeOptions, identity: CheckpointIdentity | None
    ) -> LoadedReranker:
        """`load`, by the checkpoint's identity."""
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
        text, image = identities = tuple(
            identify(**asdict(checkpoint), limits=limits) for checkpoint in (self.text, self.image)
        )
        check_reads_images(image)
        parts = {
            "routing": ROUTING_PROTOCOL,
            "text": [text.fingerprint, asdict(self.text_scale)],
            "image": [image.fingerprint, asdict(self.image_scale)],
        }
        largest = max(text.parameters, image.parameters)
        readings = (_reading(text, largest), _reading(image, largest))
        return ScorerIdentity(fingerprint(parts), 0.0, largest, identities, readings)

    def load(
        self, device: str, limits: Limits, options: RuntimeOptions, scorer: ScorerIdentity | None = None
    ) -> LoadedReranker:
        """Both rerankers in memory, as one; see `CheckpointSpec.load`."""
        scorer = scorer or self.identify(limits)
        text, image = (
            checkpoint.load_identified(device, limits, options, identity)
            for checkpoint, identity in zip((self.text, self.image), scorer.identities, strict=True)
        )
        return RoutedReranker(
            CalibratedReranker(text, self.text_scale), CalibratedReranker(image, self.image_scale), scorer.fingerprint
        )


ModelSpec = CheckpointSpec | RoutedSpec


def check_reads_images(identity: CheckpointIdentity) -> None:
    """Raises CheckpointError for a checkpoint that cannot take the pairs with an image."""
    family = family_named(identity.family)
    if not family.accepts_images:
        raise CheckpointError(f"model.image: {family.name} reads text alone; name a reranker that reads images")


def _max_document_tokens(identity: CheckpointIdentity) -> int:
    """Tokens of a document that are read at most."""
    family, limits = family_named(identity.family), identity.limits
    if family.sliding_window:
        return _ALL_TOKENS
    return limits.max_length - (0 if family.truncates_document_only else limits.max_query_length)


def _reading(identity: CheckpointIdentity, largest: int) -> CostProfile:
    family = family_named(identity.family)
    return CostProfile(family.document_major, family.accepts_images, identity.parameters / largest)
