"""Tokens: the split prompt equals the joint one, special tokens' names stay text, and every budget holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lakerank.errors import CheckpointError, ConfigError
from lakerank.limits import Limits
from lakerank.model.inputs import RejectedInput
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.tokenize import PromptTokenizer, SpecialTokens, check_tokenizer, read_special_tokens
from lakerank.model.jina_m0.weights import load_network
from lakerank.model.preprocess.images import PatchShape, load_patches
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.records import RejectReason

SPECIAL = SpecialTokens(vision_start=1, vision_end=2, image=3, score=100)

#: What a text may be made of to trouble a split: newlines, odd blanks, combining marks, special tokens' names, scripts.
PIECES = [
    *["\n", "\r\n", "\r", " ", "   ", "\t", "\u00a0", "\u3000", "\u2028", "\u200b", "\u0301", "\u0327", "e\u0301"],
    *["**", ":", "**Query**:\n", "**Document**:", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>", "|>"],
    *["apple", "яблоко", "りんご", "تفاحة", "👩‍🍳", "한", "7", ".", "'s", "ﬁ", "\u1100\u1161", "\ufeff", "\0"],
]
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=30))


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return read_tokenizer(tiny_checkpoint / "tokenizer.json")


def prompt(tokenizer: Tokenizer, **limits: int) -> PromptTokenizer:
    return PromptTokenizer(tokenizer, SPECIAL, Limits(**limits), merge=2)


@given(document=TEXTS, query=TEXTS)
def test_split_equals_joint(tokenizer: Tokenizer, document: str, query: str) -> None:
    if not document.strip() or not query.strip():
        return
    sides = prompt(tokenizer)
    split = [*sides.document(document).token_ids, *sides.query(query).token_ids]
    joint = tokenizer.encode(f"**Document**:\n{document}\n**Query**:\n{query}", add_special_tokens=False).ids
    assert split == [*joint, 100]
    assert not {0, 1, 2, 3, 4} & set(split), "no text may become a special token"


@given(text=TEXTS, max_query_length=st.integers(20, 40), room=st.integers(0, 60))
def test_budgets_hold_for_all_texts(tokenizer: Tokenizer, text: str, max_query_length: int, room: int) -> None:
    if not text.strip():
        return
    limits = Limits(max_length=2 * max_query_length + room, max_query_length=max_query_length)
    sides = PromptTokenizer(tokenizer, SPECIAL, limits, merge=2)
    document, query = sides.document(text * 3), sides.query(text * 3)
    assert len(document.token_ids) + len(query.token_ids) <= limits.max_length
    assert query.token_ids[-1] == 100
    assert query.truncated == (len(prompt(tokenizer).query(text * 3).token_ids) > sides.limits.query)
    if len(tokenizer.encode(text * 3).ids) > sides.limits.text:
        assert document.truncated


def test_document_is_cut_as_published(tokenizer: Tokenizer) -> None:
    text = "A red apple lies on the table, " * 30
    side = prompt(tokenizer, max_length=200, max_query_length=50).document(text)
    kept = tokenizer.decode(tokenizer.encode(text).ids[:150])
    assert side.truncated
    assert side.token_ids.tolist() == tokenizer.encode(f"**Document**:\n{kept}\n").ids


def test_a_cut_inside_a_character_still_fits(tokenizer: Tokenizer) -> None:
    sides = prompt(tokenizer, max_length=200, max_query_length=50)
    lengths = {len(sides.document("a" * start + "한" * 200).token_ids) for start in range(4)}
    assert max(lengths) <= sides.limits.document


def test_text_at_its_budget_is_whole(tokenizer: Tokenizer) -> None:
    sides = prompt(tokenizer, max_length=200, max_query_length=50)
    assert len(tokenizer.encode("7" * 150).ids) == 150
    assert not sides.document("7" * 150).truncated
    assert sides.document("7" * 151).truncated
    room = sides.limits.query - 1 - len(tokenizer.encode("**Query**:\n").ids)
    assert not sides.query("7" * room).truncated
    assert sides.query("7" * (room + 1)).truncated


def test_a_huge_text_is_not_read_whole(tokenizer: Tokenizer) -> None:
    side = prompt(tokenizer).document("apple " * 3_000_000)
    assert side.truncated
    assert len(side.token_ids) <= prompt(tokenizer).limits.document


def test_visual_tokens_are_never_cut(tokenizer: Tokenizer, make_image: Callable[..., bytes]) -> None:
    image = load_patches(make_image(280, 280), Limits(), PatchShape())
    sides = prompt(tokenizer, max_length=200, max_query_length=50)
    document = sides.document("apple " * 200, [("a", image)])
    assert (document.token_ids == 3).sum() == 100
    assert document.truncated
    assert len(document.token_ids) <= sides.limits.document
    query = sides.query("apple " * 200, [("a", image)])
    assert (query.token_ids == 3).sum() == 100
    assert query.truncated
    narrow = prompt(tokenizer, max_length=100, max_query_length=30)
    for build in (narrow.document, narrow.query):
        with pytest.raises(RejectedInput) as caught:
            build(None, [("a", image)])
        assert caught.value.reason == RejectReason.INPUT_TOO_LONG


@pytest.mark.parametrize("text", [None, "", " \n\t\u3000"])
def test_empty(tokenizer: Tokenizer, text: str | None) -> None:
    sides = prompt(tokenizer)
    for build, reason in ((sides.document, RejectReason.EMPTY_DOCUMENT), (sides.query, RejectReason.EMPTY_QUERY)):
        with pytest.raises(RejectedInput) as caught:
            build(text)
        assert caught.value.reason == reason


def test_lone_surrogates(tokenizer: Tokenizer) -> None:
    for build in (prompt(tokenizer).document, prompt(tokenizer).query):
        with pytest.raises(RejectedInput) as caught:
            build("apple \ud800")
        assert caught.value.reason == RejectReason.TEXT_UNDECODABLE


def test_positions_equal_transformers(tiny_checkpoint: Path, make_image: Callable[..., bytes]) -> None:
    network = load_network(tiny_checkpoint, read_settings(tiny_checkpoint, "float32"))
    sides = prompt(read_tokenizer(tiny_checkpoint / "tokenizer.json"))
    tall = load_patches(make_image(60, 300), Limits(), PatchShape())
    wide = load_patches(make_image(300, 90), Limits(), PatchShape())
    document, query = sides.document("apple", [("a", tall)]), sides.query("table", [("b", wide)])
    token_ids = torch.from_numpy(np.concatenate((document.token_ids, query.token_ids)))[None]
    grids = torch.tensor([[1, *tall.grid], [1, *wide.grid]])
    expected, _ = network.model.get_rope_index(
        token_ids, mm_token_type_ids=(token_ids == 3).int(), image_grid_thw=grids
    )
    result = np.concatenate((document.positions, query.positions + document.end), axis=1)
    np.testing.assert_array_equal(result, expected[:, 0])


def test_special_tokens_come_from_the_checkpoint(tiny_checkpoint: Path) -> None:
    settings = read_settings(tiny_checkpoint)
    assert read_special_tokens(tiny_checkpoint, settings) == SPECIAL


def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(CheckpointError, match="token ids up to 399 but an embedding of 300"):
        check_tokenizer(tokenizer, SPECIAL, 300, "x")
    with pytest.raises(CheckpointError, match="score token id 400 is outside the vocabulary of 400"):
        check_tokenizer(tokenizer, SpecialTokens(1, 2, 3, 400), 400, "x")
    with pytest.raises(CheckpointError, match=r"image token id 450 is not in tokenizer\.json"):
        check_tokenizer(tokenizer, SpecialTokens(1, 2, 450, 100), 500, "x")
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    plain.add_tokens(["<|picture|>"])
    with pytest.raises(CheckpointError, match=r"image token <\|picture\|> is not marked special"):
        check_tokenizer(plain, SpecialTokens(1, 2, 400, 100), 401, "x")


def test_no_room_for_a_query_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="the prompt itself takes that"):
        prompt(tokenizer, max_length=100, max_query_length=8)
