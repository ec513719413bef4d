"""Inputs have their documented sizes, and no run finds another's in a cache."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lakerank.errors import ConfigError
from lakerank.limits import Limits
from lakerank.model.checkpoint import EMBEDDED
from lakerank.model.preprocess.images import PatchShape, load_patches
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.records import Document, DocumentGroup, Query
from lakerank_benchmark.pages import drawn_pages
from lakerank_benchmark.request import WORKLOADS
from lakerank_benchmark.workloads import (
    LONGEST,
    PAGE_PIXELS,
    SHORTEST,
    build,
    evenly_spaced,
    pairs_of,
    pdf_files,
    pdf_pages,
    scorable,
    skewed_lengths,
    text_of,
)

TOKENIZER = read_tokenizer(EMBEDDED / "tokenizer.json")


@pytest.mark.parametrize("tokens", [17, 500, 4000])
def test_a_text_has_as_many_tokens_as_asked(tokens: int) -> None:
    ids = TOKENIZER.encode(text_of(TOKENIZER, tokens, seed=1), add_special_tokens=False).ids
    assert len(ids) == pytest.approx(tokens, abs=2)


@pytest.mark.parametrize("count", [8, 64])
def test_skewed_lengths_are_skewed_however_few(count: int) -> None:
    lengths = skewed_lengths(count)
    assert len(lengths) == count
    assert min(lengths) >= SHORTEST
    assert max(lengths) <= LONGEST
    assert np.mean(lengths) > 1.3 * np.median(lengths)


def test_a_drawn_page_fills_the_models_cap() -> None:
    (page,) = drawn_pages(1)
    patches = load_patches(page, Limits(), PatchShape())
    assert patches.grid[0] * patches.grid[1] // 4 == PAGE_PIXELS // 28**2 == 768


@pytest.mark.parametrize(("name", "size"), [("pages-150", (1240, 1754)), ("pages-300", (2480, 3508))])
def test_scanned_pages_are_of_a_size_that_is_resized(name: str, size: tuple[int, int]) -> None:
    (document,) = build(name, TOKENIZER, pages=lambda count: [], pictograms=lambda count: []).take(1)
    assert document.image is not None
    assert Image.open(io.BytesIO(document.image)).size == size
    patches = load_patches(document.image, Limits(), PatchShape())
    assert patches.grid[0] * patches.grid[1] // 4 == 736


def test_pages_are_of_every_pdf_file_in_turn(tmp_path: Path) -> None:
    for name, side in (("a.pdf", 300), ("b.pdf.gz", 500)):
        stream = io.BytesIO()
        sheets = [
            Image.new("RGB", (side, 400), colour) for colour in ("red", "green", "blue", "white", "black", "grey")
        ]
        sheets[0].save(stream, "PDF", save_all=True, append_images=sheets[1:])
        (tmp_path / name).write_bytes(gzip.compress(stream.getvalue()) if name.endswith("gz") else stream.getvalue())
    pages = [Image.open(io.BytesIO(page)) for page in pdf_pages(pdf_files([tmp_path]), count=5)]
    assert [page.format for page in pages] == ["JPEG"] * 4  # two files, and two pages of each from the fifth on
    assert [page.width < page.height for page in pages] == [True, False, True, False]
    assert all(0.97 * PAGE_PIXELS < page.width * page.height <= PAGE_PIXELS for page in pages)


def test_a_place_without_pdf_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no PDF file is there"):
        pdf_files([tmp_path])


@pytest.mark.parametrize("name", WORKLOADS)
def test_another_salt_is_another_content_of_the_same_size(name, small_pages, small_pictograms) -> None:
    workload = build(name, TOKENIZER, small_pages, small_pictograms)
    first, second = (scorable(workload.groups(4, 2, salt)) for salt in (1, 2))
    for one, other in zip(first, second, strict=True):
        assert one.document != other.document
        assert set(one.queries).isdisjoint(other.queries)
        assert len(set(one.queries)) == 2
        if one.document.image is not None:
            cut = [load_patches(group.document.image, Limits(), PatchShape()).pixels for group in (one, other)]
            assert (cut[0] == cut[1]).all()
        else:
            lengths = [len(TOKENIZER.encode(group.document.text).ids) for group in (one, other)]
            assert lengths[0] == lengths[1]


def test_two_per_cent_of_the_mixed_pairs_are_bad(small_pages, small_pictograms) -> None:
    groups = build("mixed", TOKENIZER, small_pages, small_pictograms).groups(24, 10, salt=1)
    pairs, good = pairs_of(groups), pairs_of(scorable(groups))
    assert (len(pairs) - len(good)) / len(good) == pytest.approx(0.02, abs=0.005)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 60))
def test_some_pairs_of_a_list_are_as_many_as_asked_and_in_order(sizes: list[int], count: int) -> None:
    groups = [
        DocumentGroup(Document(f"d{n}"), tuple(Query(f"q{n}-{i}") for i in range(size))) for n, size in enumerate(sizes)
    ]
    pairs, some = pairs_of(groups), pairs_of(evenly_spaced(groups, count))
    assert len(some) == min(count, len(pairs))
    places = [pairs.index(pair) for pair in some]
    assert places == sorted(set(places))


def test_equal_groups_lose_equally_many_pairs() -> None:
    groups = [DocumentGroup(Document(f"d{n}"), tuple(Query(f"q{i}") for i in range(5))) for n in range(7)]
    assert [len(group.queries) for group in evenly_spaced(groups, 14)] == [2] * 7
