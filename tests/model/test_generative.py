"""Generative rerankers against transformers' own networks, prompts and positions, and what they refuse."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lakerank import load_reranker
from lakerank.errors import CheckpointError, ConfigError
from lakerank.limits import Limits
from lakerank.model.checkpoint import read_json
from lakerank.model.engine.attention import varlen
from lakerank.model.engine.budget import Budget
from lakerank.model.engine.elementwise.plain import rotary_sections
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.generative.config import MONO_QWEN2_VL, QWEN3_RERANKER, QWEN3_VL_RERANKER, ChatPrompt
from lakerank.model.generative.tokenize import ChatTokenizer
from lakerank.model.inputs import Patches, RejectedInput
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.model.weights import current_name
from lakerank.records import Document, DocumentGroup, Query, Reject, RejectReason, ScoredPair
from lakerank_benchmark.checkpoints import random_checkpoint
from lakerank_benchmark.request import GENERATIVE as FAMILIES
from lakerank_pictograms.network import Shape
from oracles.generative_reference import PublishedGenerativeLoop
from oracles.pairs import pair_logits

MONO, QWEN3_VL, QWEN3 = FAMILIES
PROMPTS: dict[str, ChatPrompt] = {MONO: MONO_QWEN2_VL, QWEN3_VL: QWEN3_VL_RERANKER, QWEN3: QWEN3_RERANKER}
SHAPE = Shape(0, 64, 128, 5, 4, 2, 4, 64, 2)

#: What a text may be made of to trouble a split of the prompt.
PIECES = [
    *["\n", "\r\n", " ", "   ", "\t", "\u3000", "\u2028", "\u200b", "\u0301", "\u0338", "e\u0301"],
    *[":", ">", ">:", "<", "(", '"', "<Document>:", "\n<Document>", "is:", "|>", "<|", "'s", ".", "7"],
    *["apple", "яблоко", "りんご", "تفاحة", "👩‍🍳", "ﬁ", "\u1100\u1161", "\ufeff", "\0"],
]
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), min_size=1, max_size=10).map("".join), st.text(max_size=20))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random checkpoint of each family; not to be written to."""
    folder = tmp_path_factory.mktemp("generative")
    return {name: random_checkpoint(folder, name, SHAPE, "float32") for name in FAMILIES}


@pytest.fixture(scope="module")
def pairs(make_image: Callable[..., bytes]) -> list[tuple[Query, Document]]:
    """Every combination of text, image and both, on both sides of the engine's boundaries."""
    queries = [
        Query("q-text", text="red apple"),
        Query("q-signs", text='"(what) \n is: red?'),
        Query("q-long", text="Красное яблоко " * 12),
        Query("q-image", image=make_image(90, 130, seed=1)),
        Query("q-both", text="赤いりんご", image=make_image(64, 140, seed=2)),
    ]
    documents = [
        Document("d-text", text="(A red apple) lies on the table.\n\n"),
        Document("d-long", text="apple " * 300),
        Document("d-image", image=make_image(330, 200, seed=3)),
        Document("d-icon", image=make_image(60, 60, seed=5)),
        Document("d-both", text="Der rote Apfel", image=make_image(64, 96, seed=4)),
        Document("d-pages", images=(make_image(90, 60, seed=6), make_image(64, 120, seed=7))),
        Document("d-figures", text="table", images=tuple(make_image(60, 60, seed=seed) for seed in (8, 9, 8))),
    ]
    return [(query, document) for document in documents for query in queries]


def load(checkpoint: Path, **options: Any) -> BatchedReranker:
    loaded = load_reranker(str(checkpoint), device="cpu", **{"dtype": "float32", **options}).reranker
    assert isinstance(loaded, BatchedReranker)
    return loaded


def results_of(
    reranker: BatchedReranker, pairs: list[tuple[Query, Document]]
) -> dict[tuple[str, str], ScoredPair | Reject]:
    grouped: dict[Document, list[Query]] = {}
    for query, document in pairs:
        grouped.setdefault(document, []).append(query)
    groups = [DocumentGroup(document, tuple(queries)) for document, queries in grouped.items()]
    return {(result.query_id, result.doc_id): result for result in reranker.score_groups(groups)}


def scored_of(results: dict[tuple[str, str], ScoredPair | Reject]) -> dict[tuple[str, str], bytes]:
    return {key: np.float32(one.logit).tobytes() for key, one in results.items() if isinstance(one, ScoredPair)}


def readable(family: str, query: Query, document: Document) -> bool:
    """Whether the published code has a place for all that a pair holds."""
    if family == MONO:
        return query.image is None and document.image is not None and document.text is None
    return family == QWEN3_VL or (query.image is None and document.image is None)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_transformers_own(
    checkpoints: dict[str, Path], pairs: list[tuple[Query, Document]], family: str
) -> None:
    results = results_of(load(checkpoints[family]), pairs)
    readables = [pair for pair in pairs if readable(family, *pair)]
    expected = PublishedGenerativeLoop(checkpoints[family]).logits(readables)
    result = [results[query.query_id, document.doc_id] for query, document in readables]
    logits = np.array([score.logit for score in result if isinstance(score, ScoredPair)])
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert np.ptp(expected) > 0.1, "the inputs decide nothing"
    refused = {key: one.reason for key, one in results.items() if isinstance(one, Reject)}
    assert set(refused.values()) <= {RejectReason.MODALITY_UNSUPPORTED}
    assert len(refused) == len(pairs) - len(readables)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_in_one_call_a_layer_gives_the_same(
    checkpoints: dict[str, Path], pairs: list[tuple[Query, Document]], family: str
) -> None:
    """As on a GPU, by the kernel's stand-in."""
    plain = load(checkpoints[family])
    engine: Any = plain.engine
    packed = replace(plain, engine=DocumentMajorEngine(engine._decoder, engine._vision, varlen=varlen))
    results, expected = (
        {key: one.logit for key, one in results_of(reranker, pairs).items() if isinstance(one, ScoredPair)}
        for reranker in (packed, plain)
    )
    assert results.keys() == expected.keys()
    np.testing.assert_allclose([*results.values()], [*expected.values()], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_do_not_depend_on_company(
    checkpoints: dict[str, Path], pairs: list[tuple[Query, Document]], family: str
) -> None:
    reranker = load(checkpoints[family])
    together = scored_of(results_of(reranker, pairs))
    shuffled = random.Random(1).sample(pairs, len(pairs))
    alone = {key: logit for pair in shuffled for key, logit in scored_of(results_of(reranker, [pair])).items()}
    assert alone == together
    reranker.engine.batcher.budget = Budget(512)
    assert scored_of(results_of(reranker, shuffled)) == together


@pytest.mark.parametrize("family", [QWEN3_VL, QWEN3])
def test_instructions_are_the_published_prompts_own(
    checkpoints: dict[str, Path], pairs: list[tuple[Query, Document]], family: str
) -> None:
    """Some queries of a document with instructions, two of them alike: transformers' logits, and the bits that the same
    instruction of the whole reranker gives."""
    texts = [pair for pair in pairs if readable(QWEN3, *pair)]
    instructions = {"q-text": "Judge by colour.", "q-signs": "Is it a fruit?\n", "q-long": None}
    asked = [(replace(query, instruction=instructions[query.query_id]), document) for query, document in texts]
    asked += [(Query("q-again", "red apple", instruction="Is it a fruit?"), document) for _, document in texts[::3]]
    results = results_of(load(checkpoints[family]), asked)
    logits = [results[query.query_id, document.doc_id].logit for query, document in asked]
    expected = PublishedGenerativeLoop(checkpoints[family]).logits(asked)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    for instruction in ("Judge by colour.", "Is it a fruit?"):
        alike = [pair for pair in asked if (pair[0].instruction or "").strip() == instruction]
        plain = [(replace(query, instruction=None), document) for query, document in alike]
        whole = load(checkpoints[family], instruction=instruction)
        assert scored_of(results_of(whole, plain)) == {key: scored_of(results)[key] for key in results_of(whole, alike)}
    ignoring = load(checkpoints[family], ignore_instructions=True)
    plain = [(replace(query, instruction=None), document) for query, document in asked]
    assert scored_of(results_of(ignoring, asked)) == scored_of(results_of(load(checkpoints[family]), plain))
    assert (
        len({ignoring.fingerprint, *(load(checkpoints[family], instruction=i).fingerprint for i in (None, " ", "a"))})
        == 3
    )


def test_long_pairs_attend_block_by_block(checkpoints: dict[str, Path]) -> None:
    """Longer than two blocks of the attention's rows, beside a short one that shares none."""
    pairs = [(Query("q", text="red apple"), Document(f"d{size}", text="apple " * size)) for size in (5, 1300)]
    reranker, published = load(checkpoints[QWEN3]), PublishedGenerativeLoop(checkpoints[QWEN3]).logits(pairs)
    results = results_of(reranker, pairs)
    tokens = [
        result.query_tokens + result.document_tokens for result in results.values() if isinstance(result, ScoredPair)
    ]
    assert max(tokens) > 2048
    assert scored_of(results_of(reranker, pairs[::-1])) == scored_of(results)
    np.testing.assert_allclose(pair_logits(reranker, pairs), published, atol=1e-4, rtol=0)


def test_work_on_a_document_is_shared_where_it_comes_first(
    checkpoints: dict[str, Path], make_image: Callable[..., bytes]
) -> None:
    """Pages of 60 visual tokens: MonoQwen2-VL reads one once for all queries, Qwen3-VL-Reranker sees it once."""
    document = Document("page", image=make_image(280, 168, seed=6))
    group = [(Query(f"q{number}", text=f"red apple {number}"), document) for number in range(20)]
    works = {}
    for family in (MONO, QWEN3_VL):
        reranker = load(checkpoints[family])
        results_of(reranker, group)
        works[family] = reranker.counters
        assert reranker.counters.images_encoded == 1
    assert works[MONO].pairwise > 4 * works[MONO].computed
    assert works[QWEN3_VL].prefixes_reused == 0
    assert works[QWEN3_VL].pairwise > 1.3 * works[QWEN3_VL].computed  # the head alone


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own call
@pytest.mark.parametrize("names", ["older", "newer"])
def test_an_adapter_is_merged(
    checkpoints: dict[str, Path], pairs: list[tuple[Query, Document]], tmp_path: Path, names: str
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2VLForConditionalGeneration

    network = Qwen2VLForConditionalGeneration.from_pretrained(checkpoints[MONO])
    targets = r"(.*(model).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$)"
    tuned = get_peft_model(network, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    tuned.save_pretrained(str(tmp_path))
    required = [pair for pair in pairs if readable(MONO, *pair)]
    expected = PublishedGenerativeLoop(checkpoints[MONO], adapter=str(tmp_path)).logits(required)
    if names == "older":
        stored = load_file(tmp_path / "adapter_model.safetensors")
        renamed = {name.replace("model.model.language_model.", "model.model."): value for name, value in stored.items()}
        assert renamed.keys() != stored.keys()
        save_file(renamed, tmp_path / "adapter_model.safetensors")
    reranker = load(checkpoints[MONO], adapter=str(tmp_path), family=MONO)
    np.testing.assert_allclose(pair_logits(reranker, required), expected, atol=1e-4, rtol=0)
    assert np.abs(expected - pair_logits(load(checkpoints[MONO]), required)).max() > 0.01, "the adapter does nothing"


@pytest.fixture(scope="module")
def loops(checkpoints: dict[str, Path]) -> dict[str, PublishedGenerativeLoop]:
    return {name: PublishedGenerativeLoop(folder) for name, folder in checkpoints.items()}


@functools.cache
def chat(folder: Path, family: str, **limits: int) -> ChatTokenizer:
    config = read_json(folder / "config.json")
    return ChatTokenizer(folder / "tokenizer.json", config, PROMPTS[family], Limits(**limits), merge=2)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(query=TEXTS, text=TEXTS, instruction=TEXTS.map(lambda text: text.strip() or None))
def test_tokens_are_those_of_the_whole_prompt(
    checkpoints: dict[str, Path],
    loops: dict[str, PublishedGenerativeLoop],
    family: str,
    query: str,
    text: str,
    instruction: str | None,
) -> None:
    """Each side by itself, as against the conversation that transformers renders and tokenises at once."""
    if not query.strip() or not text.strip():
        return
    asked = Query("", text=query, instruction=None if family == MONO else instruction)
    pixels = np.zeros((4, 3, 14, 14), dtype=np.uint8)
    images = {MONO: (None, Patches(pixels, (2, 2))), QWEN3_VL: (text, Patches(pixels, (2, 2))), QWEN3: (text, None)}
    body, image = images[family]
    sides = chat(checkpoints[family], family)
    side = sides.query(query, (), asked.instruction)
    work = sides.arrange(sides.document(body, [("key", image)] if image else []), (side,))
    prompt = loops[family].prompt(asked, Document("", text=body, image=b"" if image else None))
    whole = loops[family]._tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert [*work.document.token_ids, *work.queries[0].token_ids] == whole


@pytest.mark.parametrize("family", FAMILIES)
def test_text_never_becomes_a_special_token(checkpoints: dict[str, Path], family: str) -> None:
    sides = chat(checkpoints[family], family)
    added = {token["id"] for token in read_json(checkpoints[family] / "tokenizer.json")["added_tokens"]}
    names = " ".join(token["content"] for token in read_json(checkpoints[family] / "tokenizer.json")["added_tokens"])
    plain, named = (
        [token for token in sides.query(text).token_ids.tolist() if token in added] for text in ("apple", names)
    )
    assert named == plain


@pytest.mark.parametrize(("family", "query", "room"), [(QWEN3_VL, 16, 150), (QWEN3_VL, 31, 167), (QWEN3, 24, 180)])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, more=st.integers(0, 40))
def test_a_pair_is_never_too_long(
    checkpoints: dict[str, Path], family: str, query: int, room: int, text: str, more: int
) -> None:
    """What an instruction has more than the published one is its query's, and refused where nothing is left."""
    if not text.strip():
        return
    sides = chat(checkpoints[family], family, max_length=query + room, max_query_length=query)
    document, asked = sides.document(text * 40), sides.query(text * 40)
    work = sides.arrange(document, (asked,))
    assert len(work.document.token_ids) + len(work.queries[0].token_ids) <= query + room
    assert len(asked.token_ids) <= query
    instruction = f"{PROMPTS[family].default_instruction}{' 7' * more}"
    left = query - (len(sides._preamble_of(instruction).token_ids) - len(sides._preamble.token_ids))
    if left <= sides._query.template_tokens:
        with pytest.raises(RejectedInput, match=r"input_too_long.*raise max_query_length"):
            sides.query(text, (), instruction)
    else:
        instructed = sides.query(text * 40, (), instruction)
        whole_pair = sides.arrange(document, (instructed,))
        assert len(whole_pair.document.token_ids) + len(whole_pair.queries[0].token_ids) <= query + room
        assert instructed.truncated == (len(chat(checkpoints[family], family).query(text * 40).token_ids) > left)
    whole = chat(checkpoints[family], family)
    assert asked.truncated == (len(whole.query(text * 40).token_ids) > query)
    assert sides.query("a").token_ids.tolist() == whole.query("a").token_ids.tolist()


def test_what_does_not_fit_is_refused(checkpoints: dict[str, Path]) -> None:
    big = Patches(np.zeros((1600, 3, 14, 14), dtype=np.uint8), (40, 40))
    with pytest.raises(RejectedInput, match="402 visual tokens") as result:
        chat(checkpoints[MONO], MONO, max_length=400, max_query_length=64).document(None, [("key", big)])
    assert result.value.reason is RejectReason.INPUT_TOO_LONG
    with pytest.raises(ConfigError, match="its prompt takes"):
        chat(checkpoints[QWEN3_VL], QWEN3_VL, max_length=96, max_query_length=48)


@pytest.mark.parametrize(
    ("text", "image", "reason"),
    [
        ("a page in words", False, RejectReason.MODALITY_UNSUPPORTED),
        ("words beside it", True, RejectReason.MODALITY_UNSUPPORTED),
        ("  ", False, RejectReason.EMPTY_DOCUMENT),
    ],
)
def test_mono_reads_images_alone(checkpoints: dict[str, Path], text: str, image: bool, reason: RejectReason) -> None:
    page = Patches(np.zeros((4, 3, 14, 14), dtype=np.uint8), (2, 2)) if image else None
    with pytest.raises(RejectedInput) as result:
        chat(checkpoints[MONO], MONO).document(text, [("key", page)] if page else [])
    assert result.value.reason is reason


def altered(checkpoint: Path, folder: Path, **settings: Any) -> Path:
    """A copy with other values in config.json."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    config = read_json(checkpoint / "config.json") | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_its_own(
    checkpoints: dict[str, Path], pairs: list[tuple[Query, Document]], tmp_path: Path, family: str
) -> None:
    """As in larger checkpoints, whose language head is not the embeddings."""
    text = read_json(checkpoints[family] / "config.json").get("text_config", {}) | {"tie_word_embeddings": False}
    nested = {"text_config": text} if family == QWEN3_VL else {}
    folder = altered(checkpoints[family], tmp_path, tie_word_embeddings=False, **nested)
    tensors = load_file(folder / "model.safetensors")
    embeddings = next(value for name, value in tensors.items() if name.endswith("embed_tokens.weight"))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        load(folder)
    tensors["lm_head.weight"] = embeddings.flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    required = [pair for pair in pairs if readable(family, *pair)][:4]
    expected = PublishedGenerativeLoop(folder).logits(required)
    np.testing.assert_allclose(pair_logits(load(folder), required), expected, atol=1e-4, rtol=0)
    tied = nested and {"text_config": text | {"tie_word_embeddings": True}}
    with pytest.raises(CheckpointError, match="differs from the embeddings"):
        load(altered(folder, tmp_path / "tied", tie_word_embeddings=True, **tied))


def test_newer_names_are_read_and_others_refused(
    checkpoints: dict[str, Path], pairs: list[tuple[Query, Document]], tmp_path: Path
) -> None:
    folder = altered(checkpoints[MONO], tmp_path)
    tensors = {current_name(name): value for name, value in load_file(folder / "model.safetensors").items()}
    assert all(name.startswith(("model.visual.", "model.language_model.")) for name in tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    expected = [pair for pair in pairs if readable(MONO, *pair)]
    np.testing.assert_array_equal(pair_logits(load(folder), expected), pair_logits(load(checkpoints[MONO]), expected))
    missing = sorted(tensors)[3]
    tensors["model.other.weight"] = tensors.pop(missing)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"1 missing: {missing}; 1 unexpected: model\.language_model\.other"):
        load(folder)


@pytest.mark.parametrize(
    ("family", "file", "old", "new", "message"),
    [
        (MONO, "tokenizer.json", '"True"', '"true, not"', "no True"),
        (QWEN3, "tokenizer.json", '"<|im_end|>"', '"<|other|>"', r"no <\|im_end\|>"),
        (MONO, "config.json", '"image_token_id"', '"no_token_id"', "names no image_token_id"),
        (MONO, "config.json", '"use_sliding_window": false', '"use_sliding_window": true', "use_sliding_window"),
        (QWEN3_VL, "preprocessor_config.json", '"image_mean"', '"mean"', "image_mean"),
    ],
)
def test_checkpoints_that_cannot_be_scored_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, family: str, file: str, old: str, new: str, message: str
) -> None:
    shutil.copytree(checkpoints[family], tmp_path, dirs_exist_ok=True)
    content = (tmp_path / file).read_text(encoding="utf-8")
    assert old in content
    (tmp_path / file).write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, family=family)


def test_a_family_may_be_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A checkpoint whose config.json names no architecture; the prompt is part of what names the scorer."""
    folder = altered(checkpoints[MONO], tmp_path, architectures=None)
    assert identify(CheckpointSpec(str(folder))).family == "sentence-transformers", "whose layout it has"
    named = identify(CheckpointSpec(str(folder), family="monoqwen2-vl"))
    assert named.fingerprint == identify(CheckpointSpec(str(checkpoints[MONO]))).fingerprint
    assert named.logit_bias == 0


@pytest.mark.parametrize("name", ["qwen3-reranker", "qwen3-vl-reranker"])
def test_a_family_of_another_language_model_is_refused_before_anything_is_planned(
    checkpoints: dict[str, Path], name: str
) -> None:
    with pytest.raises(
        CheckpointError, match=r"model_type 'qwen2_vl' in config\.json, but this family computes 'qwen3"
    ):
        identify(CheckpointSpec(str(checkpoints[MONO]), family=name))


def test_an_adapter_alone_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"an adapter: name it under model\.adapter"):
        identify(CheckpointSpec(str(tmp_path)))


def test_bfloat16(checkpoints: dict[str, Path], pairs: list[tuple[Query, Document]]) -> None:
    for family in FAMILIES:
        expected = [pair for pair in pairs if readable(family, *pair)]
        exact, half = (
            pair_logits(load(checkpoints[family], dtype=dtype), expected) for dtype in ("float32", "bfloat16")
        )
        np.testing.assert_allclose(half, exact, atol=0.25)


@given(side=st.integers(0, 9), other=st.integers(0, 9), rest=st.integers(0, 9))
def test_interleaved_sections(side: int, other: int, rest: int) -> None:
    """Frequencies follow the axes that transformers gives them, whatever the sections."""
    size = 1 + rest + 3 * max(side, other)
    axes = np.zeros(size, dtype=int)
    for axis, section in ((1, side), (2, other)):
        axes[axis : 3 * section : 3] = axis
    result: list[int] = []
    for number, count in enumerate(rotary_sections("qwen3_vl_text", {"mrope_section": [rest, side, other]}, size)):
        result += [number % 3] * count
    assert result == axes.tolist()
