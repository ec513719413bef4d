"""Attention over packed rows against plain attention, sequence by sequence."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lakerank.model.engine.attention import (
    HeadShape,
    attend,
    attend_blocks,
    attend_eager,
    batch_invariant,
    batch_invariant_blocks,
    block_attention,
    block_by_block,
    choose_varlen,
    document_attention,
    query_attention,
    varlen,
)
from lakerank.model.engine.cpu_attention import attend_by_products
from lakerank.model.engine.layout import Layouts, Span, Varlen, packed, window_blocks
from lakerank.model.engine.linear import multiplies

HEADS, GROUPS, DIM = 4, 2, 8
CPU = torch.device("cpu")

has_products = pytest.mark.skipif(not multiplies(torch.empty(1)), reason="no products of oneDNN's")

lengths = st.integers(1, 20) | st.integers(60, 70) | st.integers(125, 140)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The last rows of one sequence, causally: (T, H, D), two of (S, G, D) -> (T, H * D)."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = torch.einsum("thd,shd->hts", query.double(), key.double()) * query.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(len(key) - len(query) + 1)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("hts,shd->thd", weights, value.double()).flatten(1).float()


@pytest.mark.parametrize("function", [lambda *states: attend(*states)[0], lambda *states: attend_blocks(*states, None)])
def test_a_sequence_has_the_same_bits_whichever_thread_computes_it(function: Callable[..., Tensor]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for rows, keys in itertools.product((1, 2, 5, 31, 33), (32, 33, 40)):
            states = (random(1, 1, size, 96, seed=seed) for seed, size in enumerate((rows, keys, keys)))
            many = function(*(part.expand(13, 2, -1, -1).contiguous() for part in states))
            assert torch.equal(many, many[:1, :1].expand_as(many)), (rows, keys)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_and_eager_attention_agree(dtype: torch.dtype, causal: bool) -> None:
    query, key, value = (random(3, 2, 40, 16, seed=seed).to(dtype) for seed in range(3))
    mask = torch.zeros(3, 1, 40, 40)
    mask[1, :, :, 7:] = float("-inf")
    for given_mask in (None, None if causal else mask):
        out, sums = attend(query, key, value, given_mask, causal)
        plain_out, plain_sums = attend_eager(query, key, value, given_mask, causal)
        torch.testing.assert_close(out, plain_out, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)
        torch.testing.assert_close(sums, plain_sums, atol=5e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)


@pytest.mark.parametrize("constant", [10.0, 50.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_constants_in_a_few_channels_cost_no_more_than_in_flash_attention(
    dtype: torch.dtype, constant: float
) -> None:
    """As biases of queries and keys make them, in Qwen2: scores of up to 92,000, which differ by less than 10."""
    query, key, value = (random(1, 2, 96, 128, seed=seed) for seed in range(3))
    for states in (query, key):
        states[..., ::32] += constant
    query, key, value = (states.to(dtype) for states in (query, key, value))
    scores = query.double() @ key.double().transpose(-1, -2) * 128**-0.5
    exact = scores.softmax(dim=-1) @ value.double()
    flash, eager = (
        float((function(query, key, value)[0].double() - exact).norm() / exact.norm())
        for function in (attend, attend_eager)
    )
    assert eager <= 1.05 * flash
    torch.testing.assert_close(attend_eager(query, key, value)[1].double(), scores.logsumexp(-1), atol=1e-3, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(lengths, min_size=1, max_size=6), st.integers(0, 31))
def test_packed_documents_see_themselves_alone(sizes: list[int], spare: int) -> None:
    rows = sum(sizes) + spare
    query, key, value = (
        random(rows, HEADS, DIM, seed=1),
        random(rows, GROUPS, DIM, seed=2),
        random(rows, GROUPS, DIM, seed=3),
    )
    for kernel in (None, varlen):
        layout = Layouts(CPU, HEADS // GROUPS, kernel).documents(sizes, rows)
        out = document_attention(query, key, value, layout)
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            torch.testing.assert_close(out[part], plain(query[part], key[part], value[part]), atol=1e-5, rtol=0)
            start += size
        assert out.isfinite().all(), "padding"


@settings(max_examples=40, deadline=None)
@given(st.data(), st.lists(lengths, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_packed_queries_see_their_document_and_themselves(
    data: st.DataObject, prefixes: list[int], last_only: bool, joined: bool
) -> None:
    states = [
        (random(size, GROUPS, DIM, seed=n), random(size, GROUPS, DIM, seed=n + 50)) for n, size in enumerate(prefixes)
    ]
    spans: list[Span] = []
    for document, size in enumerate(prefixes):
        for length in sorted(data.draw(st.lists(lengths, min_size=1, max_size=3)), key=lambda length: length > 64):
            start = spans[-1].start + spans[-1].length if spans else 0
            spans.append(Span(start, length, document, size))
    spare = data.draw(st.integers(0, 31))
    rows = spans[-1].start + spans[-1].length + spare
    key, value = random(rows, GROUPS, DIM, seed=7), random(rows, GROUPS, DIM, seed=8)
    asking = random(len(spans) + spare if last_only else rows, HEADS, DIM, seed=9)
    whole = [(torch.cat([keys for keys, _ in states]), torch.cat([values for _, values in states]))]
    layout = Layouts(CPU, HEADS // GROUPS, varlen if joined else None).queries(spans, len(asking), last_only)
    out = query_attention(asking, key, value, whole if joined else states, layout)
    assert out.isfinite().all(), "padding"
    for number, span in enumerate(spans):
        own = slice(span.start, span.start + span.length)
        part = slice(number, number + 1) if last_only else own
        both = (torch.cat((states[span.document][at], rows[own])) for at, rows in enumerate((key, value)))
        torch.testing.assert_close(out[part], plain(asking[part], *both), atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.integers(0, 90), st.integers(0, 90))
def test_a_window_in_blocks_shows_what_a_mask_does(sizes: list[int], before: int, after: int) -> None:
    rows = sum(sizes) + 3
    query, key, value = (random(rows, heads, DIM, seed=heads) for heads in (HEADS, GROUPS, GROUPS))
    out = block_attention(query, key, value, window_blocks(sizes, before, after, CPU))
    document = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    distance = torch.arange(sum(sizes)) - torch.arange(sum(sizes))[:, None]
    seen = (distance >= -before) & (distance <= after) & (document == document[:, None])
    q, *states = (part[: sum(sizes)].transpose(0, 1) for part in (query, key, value))
    k, v = (part.repeat_interleave(HEADS // GROUPS, dim=0) for part in states)
    expected = F.scaled_dot_product_attention(q, k, v, seen).transpose(0, 1)
    torch.testing.assert_close(out[: sum(sizes)], expected, atol=1e-5, rtol=0)
    assert not out[sum(sizes) :].any()


def test_a_cpu_attends_document_by_document() -> None:
    assert choose_varlen(CPU, torch.float32, [(HEADS, GROUPS, DIM)], reproducible=False) is None


def test_a_kernel_that_depends_on_its_company_is_called_for_each_sequence(caplog: pytest.LogCaptureFixture) -> None:
    def splitting(query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """As kernels that split keys where few sequences leave a GPU idle: rounded in another way."""
        out, sums = varlen(query, key, value, cu_q, *rest)
        return (out.bfloat16().float() if len(cu_q) > 4 else out), sums

    def careless(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        out, sums = varlen(query, *rest)
        return out + len(query) * 1e-3, sums

    def splitting_of_wide(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return (splitting if query.shape[-1] == 16 else varlen)(query, *rest)

    def chosen(kernel: Varlen, *others: HeadShape) -> Varlen:
        probed = ((1, 70), (26, 26), (50, 40), (90, 90))
        return batch_invariant(kernel, CPU, torch.float32, [(2, 1, 8), *others], probed)

    assert chosen(varlen) is varlen
    assert not caplog.records
    sizes, shapes = [5, 130, 17, 8, 3], ((HEADS, 1), (GROUPS, 2), (GROUPS, 3))
    states = [random(sum(sizes), heads, DIM, seed=seed) for heads, seed in shapes]
    expected = packed(varlen, sizes, sizes, CPU, causal=True)(*states)
    results = packed(chosen(splitting), sizes, sizes, CPU, causal=True)(*states)
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other, atol=1e-6, rtol=0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert chosen(careless) is careless
    assert len(caplog.records) == 3, "neither holds: the log says so"
    assert chosen(splitting_of_wide, (2, 2, 8)) is splitting_of_wide
    assert chosen(splitting_of_wide, (2, 2, 16)) is not splitting_of_wide, "an encoder of other heads than the decoder"


def test_blocks_of_a_window_that_depend_on_others_are_computed_alone(caplog: pytest.LogCaptureFixture) -> None:
    def splitting(query: Tensor, *rest: Tensor) -> Tensor:
        """As kernels that are chosen by how many blocks there are."""
        out = attend_blocks(query, *rest)
        return out.bfloat16().float() if len(query) == 1 else out

    def placed(query: Tensor, *rest: Tensor) -> Tensor:
        return attend_blocks(query, *rest) + torch.arange(len(query))[:, None, None, None] % 2 * 1e-3

    probe = CPU, torch.float32, HEADS, 64, DIM, 130
    assert batch_invariant_blocks(attend_blocks, *probe) is attend_blocks
    assert not caplog.records
    assert batch_invariant_blocks(splitting, *probe) is batch_invariant_blocks(placed, *probe) is block_by_block
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    bucket = window_blocks([100, 30, 70], 40, 26, CPU)
    query, key, value = (random(203, HEADS, DIM, seed=seed) for seed in range(3))
    states = [query[bucket.index], *(rows[bucket.own_index] for rows in (key, value))]
    blocks = [*(part.transpose(1, 2) for part in states), bucket.mask]
    assert torch.equal(block_by_block(*blocks), attend_blocks(*blocks))


@has_products
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from([1, 2, 4]), st.booleans())
def test_attention_by_products_is_plain_attention(rows: int, keys: int, groups: int, causal: bool) -> None:
    keys = rows if causal else keys
    states = random(max(rows, keys), HEADS + 2 * groups, DIM, seed=rows)
    query, key, value = states.split([HEADS, groups, groups], dim=1)  # strided, as parts of a joined product are
    query, key, value = query[:rows], key[:keys], value[:keys]
    out, sums = attend_by_products(query, key, value, causal, shared=True)
    k, v = (part.repeat_interleave(HEADS // groups, dim=1).transpose(0, 1).double() for part in (key, value))
    scores = query.transpose(0, 1).double() @ k.transpose(1, 2) * DIM**-0.5
    scores = scores + torch.full_like(scores, -torch.inf).triu(1) if causal else scores
    expected = (scores.softmax(-1) @ v).transpose(0, 1).float()
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(sums, scores.logsumexp(-1).T.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(attend_by_products(query, key, value, causal)[0], expected, atol=1e-5, rtol=0)


@has_products
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(192, 900), st.integers(0, 150), st.sampled_from([1, 2, 3, 4, 8]))
def test_a_querys_bits_on_a_document_are_its_own(rows: int, keys: int, first: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    query = random(first + rows + 30, HEADS, DIM, seed=rows)
    key, value = (random(keys, GROUPS, DIM, seed=seed) for seed in (1, 2))
    together = attend_by_products(query, key, value, shared=True)
    alone = attend_by_products(query[first : first + rows], key, value, shared=True)
    torch.set_num_threads(before)
    for whole, part in zip(together, alone, strict=True):
        assert torch.equal(whole[first : first + rows], part)
