"""What the engine would ask of a GPU: kernels, bytes, memory, counted on torch's `meta` device, which computes nothing.

    python tests/scale/gpu_trace.py            # a Markdown table; PYTHONPATH chooses the engine
    python tests/scale/gpu_trace.py --plain    # where there is no Triton

A prediction from the operators that are called, at the published shapes, in bfloat16. An operator is a kernel where it
writes; what it reads and writes is its tensors, once. Triton's are counted where they would be launched: what they
change in place they read and write. Memory is of storages that live at the same time, weights apart: an allocator takes
more.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_iter, tree_map
from transformers import Qwen2VLConfig, Qwen3Config, Qwen3ForCausalLM

from lakerank.model.engine.budget import BUSY_TOKENS_GPU, Budget
from lakerank.model.engine.decoder import PackedDecoder, ScoreHead
from lakerank.model.engine.elementwise.fused import Fused
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.linear import BatchInvariantLinear
from lakerank.model.engine.vision import PackedVision
from lakerank.model.inputs import DocumentQueries, EncodedInput, Patches
from lakerank.model.jina_m0.weights import JinaVLForRanking
from lakerank.model.preprocess.images import PatchShape

META, HOST = torch.device("meta"), torch.device("cpu")

#: Operators that are kernels of their own on CUDA, though torch composes them elsewhere.
_WHOLE = frozenset({"rms_norm", "scaled_dot_product_attention", "linear"})

#: Operators that only reserve memory.
_RESERVE = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})

#: Operators that read of their first tensor only the rows that they are told to.
_LOOK_UP = frozenset({"embedding", "index", "index_select", "gather"})

#: A page of 3,072 patches at the published limit; tokens of what is around it, and of a query.
PAGE, AROUND, QUERY = (64, 48), 12, 26

#: The published 2B shape; only what traces depend on.
TEXT = {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 1536, "mlp_ratio": 4}


@dataclass
class Trace(TorchDispatchMode):
    """Counts what the operators called within would do on a GPU."""

    kernels: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    peak: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._weights: set[int] = set()

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Leave tensors, as weights, out of the memory."""
        self._weights |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def launched(self, name: str, arguments: Sequence[Any], in_place: bool) -> None:
        """Count a kernel of Triton's; `in_place`: it reads and writes the first of its arguments."""
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        self._follow(tensors)
        self.kernels[name] += 1
        self.moved[name] += sum(map(_bytes, tensors + tensors[:in_place]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.split("::")[1]
        target = torch.device(kwargs.get("device") or META)
        devices = {value.device for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)} or {target}
        if devices == {HOST} and not (name in ("_to_copy", "to") and kwargs.get("device") == META):
            return func(*args, **kwargs)  # the host's own work
        if name in ("_to_copy", "to") and target.type == "cpu":
            return torch.zeros(args[0].shape, dtype=args[0].dtype)  # results, as the host reads them
        args = tree_map(lambda value: value.to(META) if isinstance(value, Tensor) and value.dim() else value, args)
        if name not in _WHOLE:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self._count(name, func, [*tree_iter((args, kwargs))], [*tree_iter(result)])
        return result

    def _count(self, name: str, func: Any, inputs: list[Any], outputs: list[Any]) -> None:
        given, made = ([value for value in values if isinstance(value, Tensor)] for values in (inputs, outputs))
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        new = [tensor for tensor in made if tensor.untyped_storage()._cdata not in storages]
        self._follow(made + given)
        if name in _RESERVE or not (new or func._schema.is_mutable):
            return
        self.kernels[name] += 1
        read = given[1:] + made if name in _LOOK_UP else given
        self.moved[name] += sum(map(_bytes, (*read, *new)))

    def _follow(self, tensors: list[Tensor]) -> None:
        storages = {tensor.untyped_storage() for tensor in tensors if tensor.device == META}
        new = {storage._cdata: storage for storage in storages if storage._cdata not in self._weights}
        self._live = {key: value for key, value in self._live.items() if not value[0].expired()}
        if new.keys() <= self._live.keys():
            return
        self._live |= {key: (StorageWeakRef(storage), storage.nbytes()) for key, storage in new.items()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))


def _bytes(tensor: Tensor) -> int:
    """Those of a tensor's elements, one that is repeated without a copy counted once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return int(np.prod([*sizes], dtype=np.int64)) * tensor.element_size()


@dataclass(frozen=True, slots=True)
class Kernel:
    """One of Triton's by its name, which only counts."""

    name: str

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            counting = _get_current_dispatch_mode()
            if isinstance(counting, Trace):
                counting.launched(self.name, arguments, self.name == "rotate" or constants.get("ADDS", False))

        return launch


class Kernels:
    """As `lakerank.model.engine.elementwise.kernels`."""

    norm, rotate, activate = map(Kernel, ("norm", "rotate", "activate"))


def encoded(tokens: int, key: str = "", seed: int = 0) -> EncodedInput:
    """An input of so many tokens; with a key, they are an image's and what is around it."""
    ids = np.full(tokens, 7 + seed, dtype=np.int64)
    ids[:2] = seed + 100, seed % 90 + 3
    images: tuple[tuple[str, Patches], ...] = ()
    if key:
        ids[5 : 5 + tokens - AROUND] = Qwen2VLConfig().image_token_id
        images = ((key, Patches(np.zeros((PAGE[0] * PAGE[1], 3, 14, 14), dtype=np.uint8), PAGE)),)
    return EncodedInput(ids, np.broadcast_to(np.arange(tokens), (3, tokens)), tokens, images)


def groups(documents: int, queries: int, tokens: int = 0, query: int = QUERY) -> list[DocumentQueries]:
    """Documents of so many tokens, pages where none are said, each with queries of its own."""
    page = PAGE[0] * PAGE[1] // 4 + AROUND
    return [
        DocumentQueries(encoded(tokens or page, "" if tokens else f"page {n}", n), (encoded(query),) * queries)
        for n in range(documents)
    ]


def ranker(block: int | None = None, layers: int = 28, plain: bool = False) -> tuple[DocumentMajorEngine, list[Tensor]]:
    """jina-reranker-m0's shape, and its weights; `block`: rows of every product, where they are so."""
    text = TEXT | {"num_hidden_layers": layers}
    config = Qwen2VLConfig(text_config=text, vision_config=VISION | {"depth": max(1, layers * 32 // 28)})
    with META:
        network = JinaVLForRanking(config).to(torch.bfloat16)
    decoder, vision = PackedDecoder(network, ScoreHead.of_mlp(network.score)), PackedVision(network, PatchShape())
    if not plain:
        decoder.ops = vision.ops = Fused(Kernels)
    engine = DocumentMajorEngine(decoder, vision, choose_linear=lambda _: BatchInvariantLinear(block))
    return engine, [*network.parameters(), *network.buffers()]


def generative(
    block: int | None = None, layers: int = 28, plain: bool = False
) -> tuple[DocumentMajorEngine, list[Tensor]]:
    """Qwen3-Reranker-0.6B's shape, whose pairs are computed whole."""
    config = Qwen3Config(
        vocab_size=151669, hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128,
    )  # fmt: skip
    with META:
        network = Qwen3ForCausalLM(config).to(torch.bfloat16)
    head = ScoreHead.of_tokens(network.lm_head.weight[:2])
    decoder = PackedDecoder(network, head)
    if not plain:
        decoder.ops = Fused(Kernels)
    engine = DocumentMajorEngine(decoder, None, choose_linear=lambda _: BatchInvariantLinear(block), query_block=1024)
    return engine, [*network.parameters(), *network.buffers()]


def trace(engine: DocumentMajorEngine, weights: list[Tensor], inputs: list[DocumentQueries]) -> Trace:
    """One call of the engine, with the budget of a GPU that has memory for it."""
    engine.batcher.budget = Budget(BUSY_TOKENS_GPU)
    counting = Trace()
    counting.ignore(weights)
    with counting:
        engine.score(inputs)
    return counting


CASES: dict[str, tuple[Any, list[int]]] = {
    **{f"pages, k = {k}": (ranker, [n, k]) for n, k in ((40, 1), (22, 25), (9, 100))},
    **{f"texts of 500 tokens, k = {k}": (ranker, [n, k, 512]) for n, k in ((60, 1), (28, 25), (10, 100))},
    "one text of 9,728 tokens, k = 512": (ranker, [1, 512, 9728]),
    "one text of 32,256 tokens, k = 100": (ranker, [1, 100, 32256]),
    **{f"pairs computed whole, {n} tokens": (generative, [1, 16384 // n, 40, n]) for n in (600, 3000, 8000)},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block", type=int, default=None, help="rows of every product, where bits depend on them")
    parser.add_argument("--ops", action="store_true", help="also what each operator moves")
    parser.add_argument("--plain", action="store_true", help="element-wise functions by torch alone")
    options = parser.parse_args()
    print("| case | documents | kernels | GB moved | a document | GiB beside the weights |\n|---|---|---|---|---|---|")
    for name, (make, arguments) in CASES.items():
        counted = trace(*make(options.block, plain=options.plain), groups(*arguments))
        moved, documents = counted.moved.total() / 1e9, arguments[0]
        figures = f"{counted.kernels.total():,} | {moved:,.0f} | {moved / documents:,.1f} | {counted.peak / 2**30:.1f}"
        print(f"| {name} | {documents} | {figures} |", flush=True)
        if options.ops:
            print({op: f"{size / 1e9:.1f} GB, {counted.kernels[op]}" for op, size in counted.moved.most_common(14)})


if __name__ == "__main__":
    main()
