"""KaLM-Reranker against the published loop on transformers' own network, in any batch and from kept states."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import T5Gemma2ForConditionalGeneration

from checkpoints.kalm import write_kalm
from lakerank import load_reranker
from lakerank.errors import CheckpointError
from lakerank.limits import Limits
from lakerank.model.engine.attention import varlen
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import Document, DocumentGroup, DocumentState, Query, Reject, RejectReason, ScoredPair
from oracles.kalm import PublishedKalmLoop

#: On both sides of the engine's boundaries: states of one document or several to a call, windows of the encoder.
DOCUMENTS = [
    "The red apple lies on the table.", "x", "  \n (memory)\n\n kernel  disk ", "apple " * 30,
    "яблоко りんご תפוח " * 3, "history of the bridge and the river " * 20, "memory kernel " * 90,
]  # fmt: skip
QUERIES = [
    "red apple", "where is the bridge?\n", "how much does it cost " * 8, " é яблоко", "<end_of_turn>\nyes", "x ▁ y  z",
]  # fmt: skip
PAIRS = [(query, document) for document in DOCUMENTS for query in QUERIES]

Bits = dict[tuple[str, str], bytes]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, T5Gemma2ForConditionalGeneration]:
    folder = tmp_path_factory.mktemp("kalm")
    return folder, write_kalm(folder)


@pytest.fixture(scope="module")
def reranker(checkpoint: tuple[Path, Any]) -> BatchedReranker:
    return load(checkpoint[0])


def load(folder: Path, **options: Any) -> BatchedReranker:
    loaded = load_reranker(folder, device="cpu", dtype="float32", **options).reranker
    assert isinstance(loaded, BatchedReranker)
    return loaded


def groups_of(documents: Sequence[str] = DOCUMENTS, queries: Sequence[str] = QUERIES) -> list[DocumentGroup]:
    asked = tuple(Query(query, text=query) for query in queries)
    return [DocumentGroup(Document(document, text=document), asked, DocumentState()) for document in documents]


def bits_of(reranker: BatchedReranker, groups: Sequence[DocumentGroup]) -> Bits:
    results = [*reranker.score_groups(groups)]
    return {
        (one.query_id, one.doc_id): np.float32(one.logit).tobytes() for one in results if isinstance(one, ScoredPair)
    }


@pytest.mark.parametrize(
    ("settings", "old_names"), [({}, False), ({"encoder_chunk_size": None}, True), ({"encoder_chunk_size": 7}, False)]
)
def test_logits_are_the_published_loops(tmp_path: Path, settings: dict[str, Any], old_names: bool) -> None:
    loop = PublishedKalmLoop(tmp_path, write_kalm(tmp_path, old_names=old_names, **settings))
    expected = loop.score(PAIRS, settings.get("encoder_chunk_size", 4)).numpy()
    logits = load_reranker(tmp_path, device="cpu", dtype="float32").score(PAIRS)
    assert np.ptp(expected) > 0.5
    assert np.abs(logits - expected).max() < 1e-4


def test_documents_are_cut_as_published(checkpoint: tuple[Path, Any]) -> None:
    folder, network = checkpoint
    limits = Limits(max_length=300, max_query_length=100)
    logits = load_reranker(folder, device="cpu", dtype="float32", limits=limits).score(PAIRS)
    assert np.abs(logits - PublishedKalmLoop(folder, network, (512, 200)).score(PAIRS).numpy()).max() < 1e-4
    assert identify(CheckpointSpec(str(folder))).limits == Limits(max_length=1536, max_query_length=512)


def test_an_instruction_is_where_the_prompt_has_it(checkpoint: tuple[Path, Any], reranker: BatchedReranker) -> None:
    folder, network = checkpoint
    loop, own = PublishedKalmLoop(folder, network), "(Find) the\n\nsame:  thing"
    expected = loop.score(PAIRS, instruction=own).numpy()
    said = {"with": own, "without": None}
    queries = [Query(f"{how} {query}", query, instruction=said[how]) for query in QUERIES for how in said]
    asked = [replace(group, queries=tuple(queries)) for group in groups_of()]
    results = [*reranker.score_groups(asked)]
    logits = {(one.query_id, one.doc_id): one.logit for one in results if isinstance(one, ScoredPair)}
    for how, loops in (("with", expected), ("without", loop.score(PAIRS).numpy())):
        ours = [logits[f"{how} {query}", document] for query, document in PAIRS]
        assert np.abs(np.array(ours) - loops).max() < 1e-4
    assert np.abs(loop.score(PAIRS).numpy() - expected).max() > 0.01
    of_model = load_reranker(folder, device="cpu", dtype="float32", instruction="Find it.").score(PAIRS)
    assert np.abs(of_model - loop.score(PAIRS, instruction="Find it.").numpy()).max() < 1e-4


def test_a_query_that_the_last_token_would_not_see_is_cut(reranker: BatchedReranker) -> None:
    long = groups_of(DOCUMENTS[:1], ["how much does it cost " * 200, "red apple"])
    long_pair, short_pair = reranker.score_groups(long)
    assert isinstance(long_pair, ScoredPair)
    assert isinstance(short_pair, ScoredPair)
    assert long_pair.query_truncated
    assert 430 < long_pair.query_tokens < 470
    assert not short_pair.query_truncated
    instructed = DocumentGroup(Document("d", text="x"), (Query("q", text="x", instruction="how much " * 500),))
    (rejected,) = reranker.score_groups([instructed])
    assert isinstance(rejected, Reject)
    assert rejected.reason == RejectReason.INPUT_TOO_LONG


def test_a_pair_has_the_same_bits_in_any_batch(reranker: BatchedReranker) -> None:
    expected = bits_of(reranker, groups_of())
    assert len(expected) == len(PAIRS)
    shuffled = [replace(group, queries=(query,)) for group in groups_of() for query in group.queries]
    random.Random(0).shuffle(shuffled)
    assert bits_of(reranker, shuffled) == expected
    assert bits_of(reranker, groups_of(DOCUMENTS[2:4])).items() <= expected.items()


def test_attention_in_one_call_a_layer_gives_the_same(reranker: BatchedReranker) -> None:
    """As on a GPU: the encoder's, through windows too, and the decoder's, by the kernel's stand-in."""
    engine: Any = reranker.engine
    packed = DocumentMajorEngine(engine._decoder, None, encoder=engine._encoder, varlen=varlen)
    groups = groups_of()
    try:
        results = bits_of(replace(reranker, engine=packed), groups)
    finally:
        engine._encoder.layouts = engine.layouts
    expected = bits_of(reranker, groups)
    assert results.keys() == expected.keys()
    logits, others = (np.frombuffer(b"".join(bits.values()), np.float32) for bits in (results, expected))
    np.testing.assert_allclose(logits, others, atol=2e-5, rtol=0)


def test_a_document_whose_state_is_known_is_not_read(checkpoint: tuple[Path, Any], reranker: BatchedReranker) -> None:
    folder, _ = checkpoint
    filled = groups_of()
    expected = bits_of(load(folder), filled)
    results = {(one.query_id, one.doc_id): one for one in reranker.score_groups(groups_of())}
    assert all(group.state and group.state.encoded for group in filled)
    known = [replace(group, document=Document(group.document.doc_id)) for group in filled]  # no text at all
    computed = reranker.counters.computed
    again = [*load(folder).score_groups(known), *reranker.score_groups(known)]
    assert [one for one in again if results[one.query_id, one.doc_id] != one] == []
    assert bits_of(reranker, [*known, *groups_of(DOCUMENTS[:1])]) == expected
    prompts = sum(one.query_tokens for one in results.values() if isinstance(one, ScoredPair))
    assert reranker.counters.computed - computed < 2 * (prompts + 128 * len(known))


def test_an_empty_text_is_rejected(reranker: BatchedReranker) -> None:
    results = [*reranker.score_groups(groups_of(["", "\ud800", "apple"], [" ", "red"]))]
    reasons = [one.reason if isinstance(one, Reject) else None for one in results]
    empty, undecodable = RejectReason.EMPTY_DOCUMENT, RejectReason.TEXT_UNDECODABLE
    assert reasons == [empty, empty, undecodable, undecodable, RejectReason.EMPTY_QUERY, None]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("decoder", "final_logit_softcapping"), 30.0, "final_logit_softcapping is 30.0"),
        (("decoder", "query_pre_attn_scalar"), 64, "query_pre_attn_scalar is 64, not 16"),
        (
            ("encoder", "text_config", "num_hidden_layers"),
            10**6,
            "encoder.num_hidden_layers is 1000000, not 3",
        ),
        (("decoder", "hidden_size"), 0, "decoder.hidden_size is 0"),
        (("decoder",), None, "num_hidden_layers is 26, but|num_hidden_layers is 26, not 3"),
        (
            ("encoder", "text_config", "rope_parameters", "full_attention", "rope_type"),
            "dynamic",
            "not default or linear",
        ),
        (("tie_word_embeddings",), False, "not tied"),
    ],
)
def test_what_is_not_computed_here_is_refused(
    checkpoint: tuple[Path, Any], tmp_path: Path, place: tuple[str, ...], value: object, message: str
) -> None:
    for file in checkpoint[0].iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text())
    part = config
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        identify(CheckpointSpec(str(tmp_path)))


def test_a_t5gemma_2_that_does_not_say_so_is_none(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    for file in checkpoint[0].iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "kalm_cross_encoder_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no known reranker.*'t5gemma2'.*model\.family.*kalm-reranker"):
        identify(CheckpointSpec(str(tmp_path)))
    named = identify(CheckpointSpec(str(tmp_path), family="kalm-reranker"))
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "kalm_cross_encoder.KaLMCrossEncoderModule"}]))
    assert identify(CheckpointSpec(str(tmp_path))).fingerprint == named.fingerprint


def test_a_tokenizer_that_joins_parts_of_the_prompt_is_refused(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    for file in checkpoint[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary["t>"] = vocabulary.pop(last)
    merges = [merge for merge in stored["model"]["merges"] if "".join(merge) != last]
    stored["model"]["merges"] = [["t", ">"], *merges]
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="reach across parts of this reranker's prompt"):
        load(tmp_path)


def test_states_are_named_by_what_documents_depend_on(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    folder = checkpoint[0]
    first = identify(CheckpointSpec(str(folder)))
    shorter = identify(CheckpointSpec(str(folder), max_length=1424), Limits(max_query_length=400))
    assert shorter.fingerprint != first.fingerprint
    assert shorter.encoder == first.encoder is not None
    assert identify(CheckpointSpec(str(folder), max_length=1424)).encoder != first.encoder
    write_kalm(tmp_path, encoder_chunk_size=8)
    assert identify(CheckpointSpec(str(tmp_path))).encoder != first.encoder
