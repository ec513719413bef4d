"""Batch-invariant linear layers and element-wise functions: a row's bits depend neither on the batch nor on its place.

Most BLAS libraries sum each element in one order, given by the inner dimension. Some split that dimension among threads
when rows are few. This machine's is probed when weights of new shapes are loaded: then batches are padded to a number
of rows from which on products are batch-invariant, or, if there is none, every product has one constant number of rows.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lakerank.model.engine.findings import Findings

logger = logging.getLogger(__name__)

#: Rows are padded to a multiple of this: products of a few rows have kernels, and rounding, of their own.
ROW_MULTIPLE = 32

#: Least rows of a product that are probed: on a CPU enough, where it matters, for every thread to have some; on a GPU,
#: for all its multiprocessors.
_MIN_ROWS_CPU, _MIN_ROWS_GPU = (ROW_MULTIPLE, 256, 512), (ROW_MULTIPLE, 256, 1024, 2048, 4096)

#: Rows of every product where the bits of a row depend on how many there are.
_BLOCK_CPU, _BLOCK_GPU = 64, 1024

#: Changes when a probe would give another result; what can be kept of one on a CPU: `block` and `min_rows`.
_PROBE = 1
_CPU_RESULTS = (*((None, rows) for rows in _MIN_ROWS_CPU), (_BLOCK_CPU, ROW_MULTIPLE))

#: Numbers of rows that are compared with the most that a micro-batch has.
_PROBED_ROWS_CPU = (32, 64, 96, 160, 224, 256, 288, 352, 416, 512, 544, 736, 1024, 1536)
_PROBED_ROWS_GPU = (*_PROBED_ROWS_CPU, 2048, 2080, 3072, 4096, 6144, 8192, 8224, 12288, 16384)
#: Rows that are drawn for a probe on a GPU, which has them over and over.
_DRAWN_ROWS_GPU = 2048

#: Elements of which torch gives one to each thread at least, when it cuts an element-wise function into parts (its
#: GRAIN_SIZE), and how many its kernels take in one step: the remainder at a part's end is rounded in another way.
_GRAIN, _STEP = 32768, 32

#: Whether torch has oneDNN's products of packed float32 weights, on processors that they were tried on.
_PACKS = platform.machine() in ("x86_64", "AMD64") and hasattr(torch.ops.mkldnn, "_linear_pointwise")

#: As torch.nn.functional.linear: (M, K), weight (N, K), bias (N,) or None -> (M, N).
LinearFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class LinearWeights(NamedTuple):
    """weight (N, K) and bias (N,)."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def taken(cls, *linears: nn.Linear) -> LinearWeights:
        """Those of layers of one input, joined, packed. So that memory is not doubled, modules have views of them or,
        where they are packed, none.
        """
        weights = [linear.weight.detach() for linear in linears]
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        joined = cls(torch.cat(weights) if len(weights) > 1 else weights[0], torch.cat(biases) if biases else None)
        packed = joined.packed()
        views = weights[0].new_empty(0) if packed.weight.is_mkldnn else joined.weight
        for linear, end in zip(linears, accumulate(map(len, weights)), strict=True):
            linear.weight.data = views[end - linear.out_features : end]
        return packed

    def rows(self, start: int | None, stop: int | None) -> LinearWeights:
        """The weights of outputs `start` to `stop`: views or, of packed ones, packed anew."""
        bias = None if self.bias is None else self.bias[start:stop]
        if self.weight.is_mkldnn:
            return LinearWeights(self.weight.to_dense()[start:stop], bias).packed()
        return LinearWeights(self.weight[start:stop], bias)

    def packed(self) -> LinearWeights:
        """In oneDNN's own layout, for `product` alone, where it is there: on AMD's processors twice as fast as MKL."""
        if not multiplies(self.weight):
            return self
        return LinearWeights(torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous()), self.bias)

    def float(self) -> LinearWeights:
        """In float32."""
        return LinearWeights(self.weight.float(), None if self.bias is None else self.bias.float())


def multiplies(states: Tensor) -> bool:
    """Whether `multiply` is here for such a tensor, and faster than torch's own products."""
    return _PACKS and states.device.type == "cpu" and states.dtype == torch.float32


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer by oneDNN, whose weight is packed or, or its transpose, contiguous."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], ""))


def padded_size(size: int, step: int) -> int:
    """The size to compute for one: a multiple of `step`, of few sizes, from 8 steps on at most an eighth more.

    oneDNN keeps a kernel, of half a megabyte, for each shape of a product.
    """
    step = max(step, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's linear layer, by oneDNN where weights are packed."""
    return (multiply if weight.is_mkldnn else F.linear)(rows, weight, bias)


@dataclass(frozen=True, slots=True)
class BatchInvariantLinear:
    """A linear function that gives a row the same bits in any batch.

    `block`: rows of every product; None where products are batch-invariant for multiples of ROW_MULTIPLE rows from
    `min_rows` on. `packed`: weights are, and products of few shapes.
    """

    block: int | None = None
    min_rows: int = ROW_MULTIPLE
    packed: bool = False
    function: LinearFunction = field(default=product, compare=False)

    @property
    def multiple(self) -> int:
        """What numbers of rows are padded to a multiple of."""
        return self.block or ROW_MULTIPLE

    def padded(self, rows: int) -> int:
        """The number of rows to compute for so many."""
        rows = max(-(-rows // self.multiple) * self.multiple, self.block or self.min_rows)
        return padded_size(rows, ROW_MULTIPLE) if self.packed and self.block is None else rows

    def __call__(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(M, K), (N, K) -> (M, N), M a padded number of rows."""
        if self.block is None or len(rows) == self.block:
            return self.function(rows, weight, bias)
        return torch.cat([self.function(part, weight, bias) for part in torch.split(rows, self.block)])

    def split(self, rows: Tensor, most: int) -> Sequence[Tensor]:
        """Views of (M, …) of `most` rows, a multiple of `multiple`, and of the rest; none has fewer than `min_rows`."""
        least = self.block or self.min_rows
        most = max(most, 2 * least)
        return torch.tensor_split(rows, [min(end, len(rows) - least) for end in range(most, len(rows), most)])


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """Weights to probe, and the most rows of a product with them that several inputs share.

    An input that has more alone has the same number of rows every time.
    """

    weights: LinearWeights
    most_rows: int

    def describe(self) -> list[Any]:
        """What its kernel is chosen by, in JSON's types."""
        weight, bias = self.weights
        layout = "packed" if weight.is_mkldnn else list(weight.stride())
        return [*weight.shape, str(weight.dtype), bias is not None, layout, self.most_rows]


def any_packed(probes: Iterable[LinearProbe]) -> bool:
    """Whether any weights are packed."""
    return any(probe.weights.weight.is_mkldnn for probe in probes)


def choose_linear(
    probes: Iterable[LinearProbe], function: LinearFunction = product, findings: Findings | None = None
) -> BatchInvariantLinear:
    """A linear function that is batch-invariant here, probed on random rows with the present number of threads.

    On a CPU, where a busy machine makes that take seconds, the result is taken from `findings` and kept there; their
    default is those of this machine, and none for another function than torch's.
    """
    ordered = sorted(probes, key=lambda probe: probe.most_rows)  # of those alike, the one with the most rows stays
    distinct = {str(probe.describe()[:-1]): probe for probe in ordered}.values()
    cpu, packed = next(iter(distinct)).weights.weight.device.type == "cpu", any_packed(distinct)
    if findings is None and cpu and function is product:
        findings = Findings.here()
    if findings is None:
        return replace(_probe(distinct, function, cpu)[0], packed=packed)
    tried = {"linear": _PROBE, "shapes": sorted(map(LinearProbe.describe, distinct), key=str)}
    kept = findings.read(tried)
    for block, min_rows in _CPU_RESULTS:
        if kept == [block, min_rows]:
            return BatchInvariantLinear(block, min_rows, packed, function)
    linear, invariant = _probe(distinct, function, cpu)
    if invariant:
        findings.write(tried, [linear.block, linear.min_rows])
    return replace(linear, packed=packed)


def _probe(probes: Collection[LinearProbe], function: LinearFunction, cpu: bool) -> tuple[BatchInvariantLinear, bool]:
    """The linear function for these weights, and whether it is batch-invariant."""
    for min_rows in _MIN_ROWS_CPU if cpu else _MIN_ROWS_GPU:
        counts = [count for count in (_PROBED_ROWS_CPU if cpu else _PROBED_ROWS_GPU) if count >= min_rows]
        if all(_batch_invariant(probe, counts, function) for probe in probes):
            if min_rows > ROW_MULTIPLE:
                logger.info("matrix products are batch-invariant from %d rows on: batches are padded to that", min_rows)
            return BatchInvariantLinear(min_rows=min_rows, function=function), True
    linear = BatchInvariantLinear(_BLOCK_CPU if cpu else _BLOCK_GPU, function=function)
    logger.info("matrix products depend on the number of rows: each is computed in blocks of %d", linear.block)
    invariant = all(_place_invariant(linear, probe.weights) for probe in probes)
    if not invariant:
        logger.warning("matrix products depend on a row's place: scores may differ in their last bits")
    return linear, invariant


@torch.inference_mode()
def _batch_invariant(probe: LinearProbe, counts: Sequence[int], function: LinearFunction) -> bool:
    """Whether a row has the same bits in any batch, as far as batches of so many rows show."""
    rows = _random_rows(max(-(-probe.most_rows // ROW_MULTIPLE) * ROW_MULTIPLE, 2 * counts[0]), probe.weights.weight)
    whole = function(rows, *probe.weights)
    for count in (count for count in counts if count < len(rows)):
        first = (count // 2 + 3) % (len(rows) - count)
        for part in (slice(count), slice(first, first + count)):
            if not torch.equal(function(rows[part], *probe.weights), whole[part]):
                return False
    return torch.equal(function(rows.roll(37, 0), *probe.weights), whole.roll(37, 0))


@torch.inference_mode()
def _place_invariant(linear: BatchInvariantLinear, weights: LinearWeights) -> bool:
    rows = _random_rows(linear.multiple * 2, weights.weight)
    return torch.equal(linear(rows.roll(37, 0), *weights), linear(rows, *weights).roll(37, 0))


def _random_rows(count: int, weight: Tensor) -> Tensor:
    drawn = count if weight.device.type == "cpu" else min(count, _DRAWN_ROWS_GPU)
    rows = torch.randn(drawn, weight.shape[1], generator=torch.Generator().manual_seed(1))
    return rows.to(weight.device, weight.dtype).repeat(-(-count // drawn), 1)[:count]


def elementwise(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """A batch-invariant element-wise function of (M, …), M even.

    On several CPU threads torch cuts the elements into parts; where a part does not end with a row, its last elements
    are rounded in another way, wherever they fall. With one or two threads every part ends with a row.
    """
    threads = torch.get_num_threads() if rows.device.type == "cpu" else 1
    size = rows[0].numel()
    if threads <= 2 or rows.numel() <= _GRAIN:
        return function(rows)
    whole = _STEP * threads * -(-_GRAIN // (_STEP * size))  # cut into a part a thread, each of whole rows
    many = len(rows) // whole * whole
    few = max(1, _GRAIN // size)  # not cut at all
    parts = [*torch.split(rows[:many], whole), *torch.split(rows[many:], few)]
    return torch.cat([function(part) for part in parts if len(part)])


def project(hidden: Tensor, weights: LinearWeights) -> Tensor:
    """A linear layer of one output: (Q, h) -> (Q,).

    A sum and no matrix product: with one column those round by a row's place among the others.
    """
    logits: Tensor = (hidden * weights.weight[0]).sum(dim=-1)
    return logits if weights.bias is None else logits + weights.bias[0]
