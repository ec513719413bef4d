"""Two rerankers in one: each pair's score is its own model's, calibrated, in any batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.encoders import write_bge
from lakerank.errors import CheckpointError
from lakerank.limits import Limits, LogitScale
from lakerank.model.routed import CalibratedReranker, RoutedReranker, RoutedSpec
from lakerank.model.spec import CheckpointSpec, RuntimeOptions
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair
from oracles.pairs import pair_logits

TEXT, IMAGE = LogitScale(0.37, -1.2), LogitScale(2.5, 0.3)


@dataclass
class Seen:
    computed: int = 0
    pairwise: int = 0


@dataclass
class Hashing:
    """Scores a pair by a hash of its own name and the pair's contents; what says so is rejected."""

    name: str
    fingerprint: str = ""
    logit_bias: float = 0.0
    gpu: str = "GPU of texts"
    counters: Seen = field(default_factory=Seen)

    def logit(self, query: Query, document: Document) -> float:
        content = repr((self.name, query.text, query.image, document.text, document.image)).encode()
        return float(np.float32(int.from_bytes(hashlib.blake2b(content, digest_size=3).digest()) / 2**20 - 8))

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        for group in groups:
            for query in group.queries:
                ids = (query.query_id, group.document.doc_id)
                self.counters.computed += 1
                if group.document.text == "bad":
                    yield Reject(*ids, RejectReason.INPUT_TOO_LONG, self.name)
                else:
                    yield ScoredPair(*ids, self.logit(query, group.document), 3, 4, False, True)


def composite(**options: int) -> RoutedReranker:
    text, image = CalibratedReranker(Hashing("text"), TEXT), CalibratedReranker(Hashing("image"), IMAGE)
    return RoutedReranker(text, image, "both", **options)


texts = st.sampled_from(["a", "b", "long " * 9, "bad", None])
images = st.sampled_from([None, None, b"png", b"jpeg"])
documents = st.lists(st.tuples(texts, images, st.lists(st.tuples(texts, images), max_size=5)), max_size=12)


def groups_of(made: list[Any]) -> list[DocumentGroup]:
    return [
        DocumentGroup(
            Document(f"d{number}", text, image),
            tuple(Query(f"q{place}", *query) for place, query in enumerate(queries)),
        )
        for number, (text, image, queries) in enumerate(made)
    ]


def expected(query: Query, document: Document) -> ScoredPair | Reject:
    with_image = query.image is not None or document.image is not None
    model, scale = (Hashing("image"), IMAGE) if with_image else (Hashing("text"), TEXT)
    ids = (query.query_id, document.doc_id)
    if document.text == "bad":
        return Reject(*ids, RejectReason.INPUT_TOO_LONG, model.name)
    logit = np.float32(np.float64(model.logit(query, document)) * scale.scale + scale.bias)
    return ScoredPair(*ids, float(logit), 3, 4, False, True)


@given(documents, st.randoms(use_true_random=False), st.integers(1, 6))
def test_each_pair_is_its_own_models_calibrated_in_any_order_and_mixture(made, random, waiting):
    groups = groups_of(made)
    random.shuffle(groups)
    results = [*composite(buffered_pairs=waiting).score_groups(iter(groups))]
    required = {(q.query_id, g.document.doc_id): expected(q, g.document) for g in groups for q in g.queries}
    assert len(results) == len(required)
    assert {(result.query_id, result.doc_id): result for result in results} == required


def test_images_go_through_without_waiting_for_texts():
    """What is pulled from the lake ahead of a result stays as little as the image reranker itself asks for."""
    pulled = []

    def groups() -> Iterator[DocumentGroup]:
        for number in range(100):
            pulled.append(number)
            yield DocumentGroup(Document(f"d{number}", image=b"png"), (Query("q", "a"),))

    first = next(composite().score_groups(groups()))
    assert isinstance(first, ScoredPair)
    assert len(pulled) == 1


def test_work_is_that_of_both():
    reranker = composite()
    group = DocumentGroup(Document("d", "a"), (Query("q", "a"), Query("p", image=b"png")))
    assert len([*reranker.score_groups([group])]) == 2
    assert reranker.counters.computed == 2
    assert reranker.gpu == "GPU of texts", "a manifest names it"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> RoutedSpec:
    folder = tmp_path_factory.mktemp("bge")
    write_bge(folder)
    return RoutedSpec(CheckpointSpec(str(folder)), CheckpointSpec(str(tiny_checkpoint)), TEXT, IMAGE)


def test_real_models_give_each_its_own_pairs(source: RoutedSpec, mixed_pairs: list[tuple[Query, Document]]) -> None:
    limits, hosting = Limits(), RuntimeOptions()
    both = source.load("cpu", limits, hosting)
    pairs = mixed_pairs[::3]
    logits = pair_logits(both, pairs)
    for (query, document), logit in zip(pairs, logits.tolist(), strict=True):
        with_image = query.image is not None or document.image is not None
        one, scale = (source.image, IMAGE) if with_image else (source.text, TEXT)
        alone = pair_logits(one.load("cpu", limits, hosting), [(query, document)])
        assert logit == float(np.float32(alone.astype(np.float64)[0] * scale.scale + scale.bias))
    assert both.logit_bias == 0.0


def test_a_text_only_reranker_rejects_a_pair_with_an_image(source: RoutedSpec, make_image: Any) -> None:
    alone = source.text.load("cpu", Limits(), RuntimeOptions())
    pair = (Query("q", text="red apple"), Document("d", image=make_image(30, 30)))
    (result,) = alone.score_groups([DocumentGroup(pair[1], pair[:1])])
    assert isinstance(result, Reject)
    assert result.reason == RejectReason.MODALITY_UNSUPPORTED


def test_the_name_of_both_is_made_of_each_and_of_their_scales(source: RoutedSpec) -> None:
    def name(**changes: Any) -> str:
        parts = {"text": source.text, "image": source.image, "text_scale": TEXT, "image_scale": IMAGE} | changes
        return RoutedSpec(**parts).identify(Limits()).fingerprint

    shorter = CheckpointSpec(source.text.path, max_length=64)
    names = [name(), name(text=shorter), name(text_scale=IMAGE), name(image_scale=TEXT), name(text=source.image)]
    assert len({*names}) == len(names)
    assert name() == source.identify(Limits()).fingerprint == source.load("cpu", Limits(), RuntimeOptions()).fingerprint


def test_a_text_only_reranker_is_not_given_images(source: RoutedSpec) -> None:
    with pytest.raises(CheckpointError, match=r"model\.image: bge-reranker reads text alone"):
        RoutedSpec(source.text, source.text, TEXT, IMAGE).identify(Limits())


def test_a_plan_counts_by_the_larger_model(source: RoutedSpec) -> None:
    scorer = source.identify(Limits())
    text, image = scorer.readings
    assert (text.document_major, text.accepts_images, image.document_major) == (False, False, True)
    assert image.weight == 1.0
    assert text.weight == scorer.identities[0].parameters / scorer.parameters < 1
    assert scorer.document_sizing().max_plain_text_tokens == 256, "a document has what its query leaves"
    assert scorer.document_sizing().max_text_tokens == 10240 - 512
