"""What a benchmark is asked to time, and the names to choose from; nothing heavy is imported, for --help reads it."""

from __future__ import annotations

from dataclasses import dataclass

from lakerank.limits import Resize

REPRODUCIBLE, FAST, PUBLISHED, CROSS_ENCODER = CONTENDERS = (
    "lakerank", "lakerank fast", "published loop", "CrossEncoder",
)  # fmt: skip
WORKLOADS = ("pages", "texts-500", "skewed", "pictograms", "mixed", "pages-150", "pages-300")

#: Families that random weights are written for; of the generative ones, and of the cross-encoders.
GENERATIVE = ("monoqwen2-vl", "qwen3-vl-reranker", "qwen3-reranker")
ENCODERS = BGE, JINA, BERT, MODERN = ("bge-reranker", "jina-reranker-v2", "bert-reranker", "modernbert-reranker")
FAMILIES = ("jina-reranker-m0", *GENERATIVE, *ENCODERS)


@dataclass(frozen=True, slots=True)
class Request:
    """What to time. `budget_s` is for timed runs; loading, warming up, memory and drift come on top.

    `max_length`: tokens of a pair, instead of those that the checkpoint's family is published with. `resize`: as
    `scoring.resize`, of ours.
    """

    checkpoint: str
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    workloads: tuple[str, ...] = WORKLOADS[:2]
    ks: tuple[int, ...] = (1, 25)
    contenders: tuple[str, ...] = CONTENDERS
    repeats: int = 3
    budget_s: float = 60
    memory: bool = True
    max_length: int | None = None
    resize: Resize = "pillow"
