"""A pair's logit has the same bits whatever is scored beside it."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerank.limits import Limits
from lakerank.model.api import load_reranker
from lakerank.model.engine.attention import varlen
from lakerank.model.engine.budget import LEAST_TOKENS, Budget
from lakerank.model.engine.decoder import PackedDecoder, Prefix, ScoreHead
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.linear import ROW_MULTIPLE, BatchInvariantLinear, choose_linear
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.engine.vision import PackedVision
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.tokenize import PromptTokenizer, read_special_tokens
from lakerank.model.jina_m0.weights import load_network
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.registry import CheckpointIdentity
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair

SHAPES = ["grouped", "one_kv_head", "ungrouped"]

Bits = dict[tuple[str, str], bytes]


@pytest.fixture(scope="module")
def queries(make_image: Callable[..., bytes]) -> list[Query]:
    """Queries of many lengths, on both sides of every boundary, some of them images."""
    lengths = [1, 2, 3, 5, 8, 13, 21, 30, 50, 80]
    texts = [Query(f"q{length}", text="red apple " * length) for length in lengths]
    images = [Query(f"i{seed}", image=make_image(60 + 40 * seed, 70, seed=seed)) for seed in range(2)]
    return [*texts, *images, *(Query(f"s{number}", text=f"apple {number}") for number in range(9))]


@pytest.fixture(scope="module")
def documents(make_image: Callable[..., bytes]) -> list[Document]:
    """Documents that attend in each of the ways there are."""
    texts = [Document(f"t{length}", text="apple " * length) for length in (1, 3, 9, 40, 90, 300)]
    return [*texts, Document("image", image=make_image(333, 222, seed=9)), Document("icon", image=make_image(60, 60))]


def logits_of(results: Iterable[ScoredPair | Reject]) -> Bits:
    """Bits of each pair's logit."""
    return {
        (result.query_id, result.doc_id): np.float32(result.logit).tobytes()
        for result in results
        if isinstance(result, ScoredPair)
    }


def with_engine(
    checkpoint: Path,
    decoder: type[PackedDecoder] = PackedDecoder,
    head: type[ScoreHead] = ScoreHead,
    dtype: str = "float32",
    budget: Budget | None = None,
    **options: Any,
) -> BatchedReranker:
    """A reranker whose engine has another decoder, score head, budget or options."""
    stored = read_settings(checkpoint, dtype)
    network = load_network(checkpoint, stored)
    engine = DocumentMajorEngine(
        decoder(network, head.of_mlp(network.score)), PackedVision(network, stored.patches), **options
    )
    engine.batcher.budget = budget or engine.batcher.budget
    return replace(load_reranker(str(checkpoint), device="cpu", dtype=dtype).reranker, engine=engine)


@pytest.mark.parametrize(("dtype", "packs"), [("float32", platform.machine() == "x86_64"), ("bfloat16", False)])
def test_products_on_a_cpu_are_of_packed_weights(tiny_checkpoint: Path, dtype: str, packs: bool) -> None:
    """All of them, as they are probed, and nothing of them is in memory twice."""
    network = load_network(tiny_checkpoint, read_settings(tiny_checkpoint, dtype))
    decoder = PackedDecoder(network, ScoreHead.of_mlp(network.score))
    probed = [weights for weights in decoder.weights() if weights.weight.dtype == network.dtype]
    assert {weights.weight.is_mkldnn for weights in probed} == {packs}
    layers, (heads, groups, dim) = decoder.weights(), (decoder.heads, decoder.kv_heads, decoder.head_dim)
    assert {(heads * dim, decoder.hidden_size), (2 * groups * dim, decoder.hidden_size)} <= {
        tuple(weights.weight.shape) for weights in layers
    }, "the parts that the last layer computes apart"
    matrices = [part for part in network.model.language_model.layers.parameters() if part.ndim == 2]
    assert not (packs and matrices), "of the modules' own weights"


@pytest.mark.parametrize("linear", [choose_linear, lambda _: BatchInvariantLinear(64)], ids=["probed", "blocks"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_company_or_order(
    make_checkpoint: Callable[..., Path],
    queries: list[Query],
    documents: list[Document],
    shape: str,
    linear: Any,
) -> None:
    reranker = with_engine(make_checkpoint(shape), choose_linear=linear)
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


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def scored_alone(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, queries: list[Query], documents: list[Document]
) -> tuple[BatchedReranker, Bits]:
    """A reranker, and the bits of every pair's logit, scored one at a time."""
    reranker = with_engine(tiny_checkpoint, dtype=request.param)
    pairs = ((query, document) for query in queries for document in documents)
    return reranker, logits_of(reranker.score_groups(DocumentGroup(document, (query,)) for query, document in pairs))


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_bits_are_the_pairs_own(
    scored_alone: tuple[BatchedReranker, Bits], queries: list[Query], documents: list[Document], data: st.DataObject
) -> None:
    """Any pairs, in any order and grouping, at any budget, before and after others: the same bits."""
    reranker, expected = scored_alone
    pairs = [(query, document) for query in queries for document in documents]
    drawn = data.draw(st.lists(st.sampled_from(range(len(pairs))), min_size=1, max_size=30, unique=True))
    chosen = [pairs[number] for number in drawn]
    budget = data.draw(st.sampled_from([64, 200, 1024, 4096]))
    reranker.engine.batcher.budget = Budget(budget)
    if data.draw(st.booleans()):
        reranker.engine.release()
    groups: dict[Document, list[Query]] = {}
    for query, document in chosen:
        groups.setdefault(document, []).append(query)
    logits = logits_of(reranker.score_groups(DocumentGroup(doc, (*members,)) for doc, members in groups.items()))
    assert logits == {(query.query_id, doc.doc_id): expected[query.query_id, doc.doc_id] for query, doc in chosen}


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_caches_or_loading(
    tiny_checkpoint: Path, queries: list[Query], make_image: Callable[..., bytes], threads: int
) -> None:
    document = Document("image", image=make_image(120, 90, seed=3))
    group = DocumentGroup(document, tuple(queries))
    before = torch.get_num_threads()
    try:
        first = load_reranker(str(tiny_checkpoint), device="cpu", device_threads=threads).reranker
        cold = logits_of(first.score_groups([group]))
        warm = logits_of(first.score_groups([group]))
        fresh = logits_of(load_reranker(str(tiny_checkpoint), device="cpu").score_groups([group]))
    finally:
        torch.set_num_threads(before)
    assert first.counters.images_encoded == 3, "one document and two queries, each once"
    assert cold == warm == fresh


def test_bits_do_not_depend_on_whether_there_are_caches(
    tiny_checkpoint: Path, queries: list[Query], documents: list[Document]
) -> None:
    groups = [DocumentGroup(document, tuple(queries)) for document in documents] * 2
    cached = with_engine(tiny_checkpoint)
    expected = [*cached.score_groups(groups)]
    stored, tokenizer = read_settings(tiny_checkpoint), read_tokenizer(tiny_checkpoint / "tokenizer.json")
    prompt = PromptTokenizer(tokenizer, read_special_tokens(tiny_checkpoint, stored), Limits(), stored.patches.merge)
    identity = CheckpointIdentity("", "", 0, 0)
    preprocessor = Preprocessor(prompt, identity, stored.patches, query_bytes=0, document_bytes=0)
    bare = replace(with_engine(tiny_checkpoint, image_cache_bytes=(0, 0)), preprocessor=preprocessor)
    assert [*bare.score_groups(groups)] == expected
    assert bare.counters.images_encoded > cached.counters.images_encoded == 4


def test_bits_do_not_depend_on_the_memory_that_is_free(
    tiny_checkpoint: Path, queries: list[Query], documents: list[Document]
) -> None:
    """On a machine that multiplies many rows in another way than few, an engine that has room for few as any other."""
    linear = torch.nn.functional.linear

    def of_this_machine(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        weight = weight.to_dense() if weight.is_mkldnn else weight
        if len(rows) <= 512:
            return linear(rows, weight, bias)
        return linear(rows.double(), weight.double(), None if bias is None else bias.double()).to(rows.dtype)

    choose = partial(choose_linear, function=of_this_machine)
    documents = [*documents, Document("t700", text="apple " * 700)]
    groups = [DocumentGroup(document, tuple(queries)) for document in documents]
    roomy, narrow = (
        logits_of(with_engine(tiny_checkpoint, budget=Budget(tokens), choose_linear=choose).score_groups(groups))
        for tokens in (2048, 64)
    )
    assert len(roomy) == len(queries) * len(documents)
    assert narrow == roomy


def test_attention_in_one_call_a_layer_gives_the_same(
    tiny_checkpoint: Path, queries: list[Query], documents: list[Document]
) -> None:
    """As on a GPU: vision, prefixes and suffixes, by the kernel's stand-in."""
    groups = [DocumentGroup(document, tuple(queries)) for document in documents]
    plain, packed = (
        [result.logit for result in with_engine(tiny_checkpoint, **options).score_groups(groups)]
        for options in ({}, {"varlen": varlen})
    )
    np.testing.assert_allclose(packed, plain, atol=2e-5, rtol=0)


def test_fast_mode_differs_by_rounding_only(tiny_checkpoint: Path, queries: list[Query]) -> None:
    pairs = [(query, Document("d", text="A red apple")) for query in queries]
    reproducible = load_reranker(str(tiny_checkpoint), device="cpu").score(pairs)
    fast = load_reranker(str(tiny_checkpoint), device="cpu", reproducible=False).score(pairs)
    np.testing.assert_allclose(fast, reproducible, atol=1e-4)


def test_work_is_counted(tiny_checkpoint: Path) -> None:
    reranker = load_reranker(str(tiny_checkpoint), device="cpu").reranker
    queries = tuple(Query(str(number), text="red apple") for number in range(10))
    results = list(reranker.score_groups([DocumentGroup(Document("d", text="A red apple " * 30), queries)]))
    tokens = [(result.document_tokens, result.query_tokens) for result in results if isinstance(result, ScoredPair)]
    work = reranker.counters
    assert work.pairwise == sum(document + query for document, query in tokens)
    needed = tokens[0][0] + sum(query for _, query in tokens)
    assert work.computed - work.padding == needed
    assert 0 <= work.padding < 2 * ROW_MULTIPLE
    assert (work.pairs, work.documents) == (10, 1)
    assert 2 * needed * 40_000 < work.flops < 2 * needed * 80_000, "two for each weight of the decoder layers"
    assert min(work.tokenise_s, work.prefix_s, work.suffix_s) > 0
    assert work.prefix_s + work.suffix_s <= work.host_s


def test_a_hot_document_keeps_one_prefix(tiny_checkpoint: Path) -> None:
    reranker = load_reranker(str(tiny_checkpoint), device="cpu").reranker
    hot = Document("hot", text="A red apple lies on the table. " * 9)
    groups = [
        DocumentGroup(hot, tuple(Query(f"{part} {number}", text=f"apple {part} {number}") for number in range(90)))
        for part in range(4)
    ]
    split = logits_of(reranker.score_groups(groups))
    assert reranker.counters.prefixes_reused == 3
    queries = tuple(query for group in groups for query in group.queries)
    fresh = load_reranker(str(tiny_checkpoint), device="cpu").reranker
    assert logits_of(fresh.score_groups([DocumentGroup(hot, queries)])) == split
    assert fresh.counters.prefixes_reused == 0


def test_queries_that_are_images_are_encoded_once(
    tiny_checkpoint: Path, make_image: Callable[..., bytes], documents: list[Document]
) -> None:
    reranker = load_reranker(str(tiny_checkpoint), device="cpu").reranker
    texts = [document for document in documents if document.image is None]
    queries = tuple(Query(str(seed), image=make_image(70, 50, seed=seed % 5)) for seed in range(20))
    list(reranker.score_groups(DocumentGroup(document, queries) for document in texts))
    assert reranker.counters.images_encoded == 5


class Remembering(PackedDecoder):
    """A decoder that keeps all prefixes it has computed."""

    computed: ClassVar[list[Prefix]] = []

    def prefixes(self, *arguments: Any) -> list[Prefix]:
        prefixes = super().prefixes(*arguments)
        self.computed.extend(prefixes)
        return prefixes


def test_kept_prefixes_hold_the_memory_that_they_say(tiny_checkpoint: Path, documents: list[Document]) -> None:
    Remembering.computed.clear()
    list(
        with_engine(tiny_checkpoint, Remembering).score_groups(
            [DocumentGroup(d, (Query("q", text="apple"),)) for d in documents]
        )
    )
    storages = {prefix.untyped_storage() for prefix in Remembering.computed}
    assert len(Remembering.computed) == len(documents)
    kept = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert sum(kept.values()) <= 1.1 * sum(prefix.nbytes for prefix in Remembering.computed)


class ShortOfMemory(PackedDecoder):
    """A decoder that cannot hold more than `ROOM` tokens of documents."""

    ROOM = 70
    failures = 0

    def prefixes(self, embeddings: Any, positions: Any, end: int, lengths: Sequence[int], *rest: Any) -> list[Prefix]:
        if sum(lengths) > self.ROOM:
            type(self).failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return super().prefixes(embeddings, positions, end, lengths, *rest)


class Broken(PackedDecoder):
    """A decoder that fails in a way that is no document's fault."""

    def prefixes(self, *_: Any) -> list[Prefix]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


class NotANumber(ScoreHead):
    """A score head without results."""

    def __call__(self, hidden: torch.Tensor, linear: BatchInvariantLinear) -> torch.Tensor:
        return super().__call__(hidden, linear) * float("nan")


def score_texts(reranker: BatchedReranker, texts: Sequence[str]) -> list[ScoredPair | Reject]:
    groups = [
        DocumentGroup(Document(str(place), text=text), (Query("q", text="apple"), Query("r", text="red apple")))
        for place, text in enumerate(texts)
    ]
    return list(reranker.score_groups(groups))


def test_out_of_memory_rejects_one_document_and_goes_on(tiny_checkpoint: Path) -> None:
    reranker = with_engine(tiny_checkpoint, ShortOfMemory)
    results = score_texts(reranker, ["apple", "A red apple " * 50, "table"])
    reasons = [result.reason if isinstance(result, Reject) else None for result in results]
    assert reasons == [None, None, RejectReason.OUT_OF_MEMORY, RejectReason.OUT_OF_MEMORY, None, None]


def test_out_of_memory_halves_and_tries_again(tiny_checkpoint: Path) -> None:
    texts = [f"A red apple {number}" for number in range(40)]
    whole, short = with_engine(tiny_checkpoint), with_engine(tiny_checkpoint, ShortOfMemory)
    failures = ShortOfMemory.failures
    assert logits_of(score_texts(short, texts)) == logits_of(score_texts(whole, texts))
    assert ShortOfMemory.failures > failures
    assert short.counters.flops == pytest.approx(whole.counters.flops, rel=1e-12), "those of failed tries do not count"
    for name in ("documents", "pairs", "pairwise", "images_encoded", "prefixes_reused"):
        assert getattr(short.counters, name) == getattr(whole.counters, name), name
    assert short.counters.computed - short.counters.padding == whole.counters.computed - whole.counters.padding


def test_budget_is_halved_to_a_least() -> None:
    assert Budget(300).halved().halved().halved() == Budget(LEAST_TOKENS)
    with pytest.raises(ValueError, match="not halved"):
        Budget(LEAST_TOKENS).halved()


def test_other_failures_stop_the_job(tiny_checkpoint: Path) -> None:
    reranker = with_engine(tiny_checkpoint, Broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        score_texts(reranker, ["apple"])


def test_non_finite_logit_is_a_reject(tiny_checkpoint: Path) -> None:
    results = score_texts(with_engine(tiny_checkpoint, head=NotANumber), ["apple"])
    assert [result.reason for result in results if isinstance(result, Reject)] == [RejectReason.NON_FINITE_LOGIT] * 2
