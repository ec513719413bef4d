"""A pair's logit has the same bits whatever is scored beside it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lakerank.model.engine import Engine, slot_length
from lakerank.model.images import PatchShape
from lakerank.model.network import JinaVLForRanking, Prefix, feed_forward
from lakerank.model.rerankers import DocumentMajorReranker, load_reranker
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair

SHAPES = ["grouped", "one_kv_head", "ungrouped"]


@pytest.fixture(scope="module")
def queries(make_image: Callable[..., bytes]) -> list[Query]:
    """Queries of every slot length, some of them images."""
    lengths = [1, 2, 3, 5, 8, 13, 21, 30, 50, 80]
    texts = [Query(f"q{length}", text="red apple " * length) for length in lengths]
    images = [Query(f"i{seed}", image=make_image(60 + 40 * seed, 70, seed=seed)) for seed in range(2)]
    return [*texts, *images, *(Query(f"s{number}", text=f"apple {number}") for number in range(9))]


def logits_of(results: Iterator[ScoredPair | Reject]) -> dict[tuple[str, str], bytes]:
    """Bits of each pair's logit."""
    return {
        (result.query_id, result.doc_id): np.float32(result.logit).tobytes()
        for result in results
        if isinstance(result, ScoredPair)
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_company_or_order(
    make_checkpoint: Callable[..., Path], queries: list[Query], make_image: Callable[..., bytes], shape: str
) -> None:
    reranker = load_reranker(str(make_checkpoint(shape)), device="cpu")
    documents = [
        Document("text", text="A red apple lies on the table."),
        Document("long", text="Der rote Apfel liegt auf dem Tisch. " * 40),
        Document("image", image=make_image(333, 222, seed=9)),
    ]
    together = logits_of(reranker.score_groups([DocumentGroup(document, tuple(queries)) for document in documents]))
    assert len(together) == len(documents) * len(queries)
    alone = logits_of(
        reranker.score_groups(DocumentGroup(document, (query,)) for query in queries for document in documents)
    )
    assert alone == together
    shuffled = random.Random(1).sample(queries, len(queries))
    halves = [shuffled[:7], shuffled[7:]]
    split = logits_of(
        reranker.score_groups(DocumentGroup(document, tuple(half)) for half in halves for document in documents[::-1])
    )
    assert split == together


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_caches_or_loading(
    tiny_checkpoint: Path, queries: list[Query], make_image: Callable[..., bytes], threads: int
) -> None:
    document = Document("image", image=make_image(120, 90, seed=3))
    group = DocumentGroup(document, tuple(queries))
    before = torch.get_num_threads()
    try:
        first = load_reranker(str(tiny_checkpoint), device="cpu", device_threads=threads)
        cold = logits_of(first.score_groups([group]))
        warm = logits_of(first.score_groups([group]))
        fresh = logits_of(load_reranker(str(tiny_checkpoint), device="cpu").score_groups([group]))
    finally:
        torch.set_num_threads(before)
    assert first.work.images_encoded == 3, "one document and two queries, each once"
    assert cold == warm == fresh


def test_fast_mode_differs_by_rounding_only(tiny_checkpoint: Path, queries: list[Query]) -> None:
    pairs = [(query, Document("d", text="A red apple")) for query in queries]
    reproducible = load_reranker(str(tiny_checkpoint), device="cpu").score(pairs)
    fast = load_reranker(str(tiny_checkpoint), device="cpu", reproducible=False).score(pairs)
    np.testing.assert_allclose(fast, reproducible, atol=1e-4)


def test_work_is_counted(tiny_checkpoint: Path) -> None:
    reranker = load_reranker(str(tiny_checkpoint), device="cpu")
    queries = tuple(Query(str(number), text="red apple") for number in range(10))
    results = list(reranker.score_groups([DocumentGroup(Document("d", text="A red apple " * 30), queries)]))
    tokens = [(result.document_tokens, result.query_tokens) for result in results if isinstance(result, ScoredPair)]
    assert reranker.work.pairwise == sum(document + query for document, query in tokens)
    slot = slot_length(tokens[0][1])
    slots = 64 // slot
    assert reranker.work.computed == tokens[0][0] + -(-10 // slots) * slots * slot
    assert (reranker.work.pairs, reranker.work.documents) == (10, 1)


@pytest.mark.parametrize(("tokens", "length"), [(1, 8), (8, 8), (9, 16), (33, 40), (64, 64), (65, 128), (770, 832)])
def test_slot_length(tokens: int, length: int) -> None:
    assert slot_length(tokens) == length


@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_depend_on_the_place_in_a_row(tiny_checkpoint: Path, threads: int) -> None:
    network = load_reranker(str(tiny_checkpoint), device="cpu")._engine._network
    mlp = torch.nn.Module()
    mlp.gate_proj = mlp.up_proj = mlp.down_proj = torch.nn.Identity()
    mlp.act_fn = network.model.language_model.layers[0].mlp.act_fn
    hidden = torch.randn(1, 4, 16, 8960, generator=torch.Generator().manual_seed(1)) * 3  # enough for several parts
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(feed_forward(mlp, hidden).flip(1), feed_forward(mlp, hidden.flip(1)))
    finally:
        torch.set_num_threads(before)


class ShortOfMemory(JinaVLForRanking):
    """A network that cannot hold a document of more than 40 tokens."""

    def prefix(self, embeds: torch.Tensor, positions: torch.Tensor, valid: torch.Tensor | None = None) -> Prefix:
        if embeds.shape[1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return super().prefix(embeds, positions, valid)


class Broken(JinaVLForRanking):
    """A network that fails in a way that is no document's fault."""

    def prefix(self, embeds: torch.Tensor, positions: torch.Tensor, valid: torch.Tensor | None = None) -> Prefix:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def with_network(reranker: DocumentMajorReranker, kind: type[JinaVLForRanking]) -> DocumentMajorReranker:
    """The reranker with its network turned into another kind."""
    network = reranker._engine._network
    network.__class__ = kind
    reranker._engine = Engine(network, PatchShape())
    return reranker


def score_texts(reranker: DocumentMajorReranker, texts: Sequence[str]) -> list[ScoredPair | Reject]:
    groups = [
        DocumentGroup(Document(str(place), text=text), (Query("q", text="apple"), Query("r", text="red apple")))
        for place, text in enumerate(texts)
    ]
    return list(reranker.score_groups(groups))


def test_out_of_memory_rejects_one_document_and_goes_on(tiny_checkpoint: Path) -> None:
    reranker = with_network(load_reranker(str(tiny_checkpoint), device="cpu"), ShortOfMemory)
    results = score_texts(reranker, ["apple", "A red apple " * 50, "table"])
    reasons = [result.reason if isinstance(result, Reject) else None for result in results]
    assert reasons == [None, None, RejectReason.OUT_OF_MEMORY, RejectReason.OUT_OF_MEMORY, None, None]


def test_other_failures_stop_the_job(tiny_checkpoint: Path) -> None:
    reranker = with_network(load_reranker(str(tiny_checkpoint), device="cpu"), Broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        score_texts(reranker, ["apple"])


def test_non_finite_logit_is_a_reject(tiny_checkpoint: Path) -> None:
    reranker = load_reranker(str(tiny_checkpoint), device="cpu")
    with torch.no_grad():
        reranker._engine._network.score[2].bias.fill_(float("nan"))
    results = score_texts(reranker, ["apple"])
    assert [result.reason for result in results if isinstance(result, Reject)] == [RejectReason.NON_FINITE_LOGIT] * 2
