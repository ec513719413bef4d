"""Products of rows and weights that give a row the same bits however many rows there are, wherever it stands.

Most libraries' products of matrices do so by themselves: each element is summed in one order, which the inner dimension
decides. Some divide that dimension among threads when rows are few. Whether this machine's do so is tried when weights
are loaded; then no product is made with few rows, or, where that does not help, every one with a constant number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

#: Rows are filled up to a multiple of this: products of a few rows are made, and round, in another way.
ROW_MULTIPLE = 32

#: The least rows of a product that are tried: on a CPU enough, where it matters, for every thread to have some.
LEAST_CPU = (ROW_MULTIPLE, 256, 512)
LEAST_GPU = (ROW_MULTIPLE,)

#: Rows of a product where the bits of a row depend on how many there are.
BLOCK_CPU = 64
BLOCK_GPU = 1024

#: Numbers of rows that are tried against the most that a pass has.
_TRIED = (32, 64, 96, 160, 224, 256, 288, 352, 416, 512, 544, 736, 1024, 1536)

#: Elements of which torch gives one to each thread at least, when it cuts an element-wise function into parts (its
#: GRAIN_SIZE), and how many its kernels take in one step: what is left at a part's end is rounded in another way.
_GRAIN = 32768
_STEP = 32


@dataclass(frozen=True, slots=True)
class RowProducts:
    """`block`: rows of every product, or None where multiples of ROW_MULTIPLE give the same bits from `least` on."""

    block: int | None = None
    least: int = ROW_MULTIPLE

    @property
    def multiple(self) -> int:
        """What numbers of rows are filled up to."""
        return self.block or ROW_MULTIPLE

    def filled(self, rows: int) -> int:
        """The number of rows to compute for so many."""
        return max(-(-rows // self.multiple) * self.multiple, self.block or self.least)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(M, K), (N, K) -> (M, N), M a number of rows that `filled` gives."""
        if self.block is None or len(rows) == self.block:
            return F.linear(rows, weight, bias)
        return torch.cat([F.linear(part, weight, bias) for part in torch.split(rows, self.block)])

    def parts(self, rows: Tensor, most: int) -> Sequence[Tensor]:
        """Views of (M, …) that products can be made with, of about equal length: at most `most` rows, a multiple of
        `multiple`, or somewhat more where these would be fewer than `least`.
        """
        units = len(rows) // self.multiple
        count = max(1, min(-(-len(rows) // most), len(rows) // (self.block or self.least)))
        ends = [units * number // count * self.multiple for number in range(1, count)]
        return torch.tensor_split(rows, ends)


@dataclass(frozen=True, slots=True)
class Product:
    """A product that is made: weight (N, K), bias (N,), and the most rows that several inputs fill together.

    An input that takes more alone has the same number of rows whenever it comes.
    """

    weight: Tensor
    bias: Tensor | None
    most_rows: int


def choose_products(wanted: Iterable[Product]) -> RowProducts:
    """Products whose bits hold on this machine, tried on random rows with its present number of threads."""
    ordered = sorted(wanted, key=lambda product: product.most_rows)  # of those alike, the one with the most rows stays
    distinct = {(p.weight.shape, p.weight.dtype, p.bias is None): p for p in ordered}.values()
    device = next(iter(distinct)).weight.device
    for least in LEAST_CPU if device.type == "cpu" else LEAST_GPU:
        if all(_free(product, least) for product in distinct):
            if least > ROW_MULTIPLE:
                logger.info("products of matrices depend on the number of rows below %d here: none has fewer", least)
            return RowProducts(least=least)
    products = RowProducts(BLOCK_CPU if device.type == "cpu" else BLOCK_GPU)
    logger.info("products of matrices depend on the number of rows here: all are made with %s", products.block)
    if not all(_unmoved(products, product.weight, product.bias) for product in distinct):
        logger.warning("products of matrices depend on a row's place here: scores can change in their last bits")
    return products


@torch.inference_mode()
def _free(product: Product, least: int) -> bool:
    """Whether bits hold for `least` rows or more."""
    weight, bias = product.weight, product.bias
    rows = _random_rows(max(-(-product.most_rows // ROW_MULTIPLE) * ROW_MULTIPLE, 2 * least), weight)
    whole = F.linear(rows, weight, bias)
    for count in (count for count in _TRIED if least <= count < len(rows)):
        moved = (count // 2 + 3) % (len(rows) - count)
        if not torch.equal(F.linear(rows[:count], weight, bias), whole[:count]):
            return False
        if not torch.equal(F.linear(rows[moved : moved + count], weight, bias), whole[moved : moved + count]):
            return False
    return torch.equal(F.linear(rows.roll(37, 0), weight, bias), whole.roll(37, 0))


@torch.inference_mode()
def _unmoved(products: RowProducts, weight: Tensor, bias: Tensor | None) -> bool:
    rows = _random_rows(products.multiple * 2, weight)
    return torch.equal(products.linear(rows.roll(37, 0), weight, bias), products.linear(rows, weight, bias).roll(37, 0))


def _random_rows(count: int, weight: Tensor) -> Tensor:
    rows = torch.randn(count, weight.shape[1], generator=torch.Generator().manual_seed(1))
    return rows.to(weight.device, weight.dtype)


def rowwise(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """An element-wise function of (M, …), M even, rounded alike in every row.

    On several CPU threads torch cuts the elements into parts; where a part does not end with a row, the last numbers of
    it are rounded in another way, wherever they fall. With one or two threads every part ends with a row.
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
