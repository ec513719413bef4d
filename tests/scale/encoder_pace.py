"""Processor time of a cross-encoder's pairs, here and in sentence-transformers' CrossEncoder, on one thread.

Skewed texts, k = 1, random weights; both score the same pairs in turn, in one process. Processor time hardly depends on
what else the machine does, as wall time would. Beside it the pace of square products by torch's own linear layers (MKL
on x86) and by oneDNN with packed weights.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import torch

from lakerank import load_reranker
from lakerank.model.engine.linear import LinearWeights, product
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank_benchmark.checkpoints import ENCODER_SHAPES, random_encoder
from lakerank_benchmark.workloads import build, pairs_of
from oracles.cross_encoders import sentence_transformers

_SIDE = 1536


def _seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


@torch.inference_mode()
def _pace(weights: LinearWeights) -> float:
    """Operations a second of the best of twenty square products."""
    rows = torch.randn(_SIDE, _SIDE)
    return 2.0 * _SIDE**3 / min(_seconds(lambda: product(rows, *weights)) for _ in range(20))


@click.command()
@click.option("--family", type=click.Choice(list(ENCODER_SHAPES)), required=True)
@click.option("--shape", type=click.Choice(["small", "published"]), default="small")
@click.option("--pairs", default=64)
@click.option("--rounds", default=3)
@click.option("--max-length", default=512)
def main(family: str, shape: str, pairs: int, rounds: int, max_length: int) -> None:
    """Print a line a round, and the medians."""
    torch.set_num_threads(1)
    square, lines = LinearWeights(torch.randn(_SIDE, _SIDE), None), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_encoder(Path(temporary), family, shape, "float32")
        ours = load_reranker(str(folder), device="cpu", dtype="float32", max_length=max_length).reranker
        assert isinstance(ours, BatchedReranker)
        _, theirs = sentence_transformers(str(folder), "float32", "cpu", max_length)
        workload = build("skewed", read_tokenizer(folder / "tokenizer.json"), lambda n: [], lambda n: [])
        list(ours.score_groups(workload.groups(4, 1, 0)))
        for turn in range(1, rounds + 1):
            groups = workload.groups(pairs, 1, turn)
            texts = [(query.text or "", document.text or "") for query, document in pairs_of(groups)]
            before = ours.counters.flops
            here = _seconds(lambda groups=groups: list(ours.score_groups(groups)))  # type: ignore[misc]
            there = _seconds(lambda texts=texts: theirs(texts))  # type: ignore[misc]
            pace = (ours.counters.flops - before) / here
            lines.append((pairs / here, there / here, pace / _pace(square), pace / _pace(square.packed())))
            click.echo(_line(lines[-1]))
    click.echo("medians: " + _line(tuple(map(median, zip(*lines, strict=True)))))


def _line(figures: tuple[float, ...]) -> str:
    pairs, ratio, own, packed = figures
    return f"{pairs:.3g} pairs/s, {ratio:.2f} × CrossEncoder, {own:.0%} of torch's products, {packed:.0%} of oneDNN's"


if __name__ == "__main__":
    main()
