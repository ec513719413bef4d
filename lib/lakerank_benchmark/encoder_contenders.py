"""Those who score texts with an XLM-RoBERTa cross-encoder as published, on the same weights as ours."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lakerank.model.checkpoint import read_json
from lakerank.model.cross_encoder.config import EncoderShape, read_shape
from lakerank.model.cross_encoder.tokenize import jina_limits
from lakerank.records import DocumentGroup
from lakerank_benchmark.encoder_shapes import for_transformers
from lakerank_benchmark.runs import CannotRun, Contender, Run
from lakerank_benchmark.workloads import pairs_of

#: Pairs of a query's text and a document's to logits, or to anything that rises with them.
Score = Callable[[list[tuple[str, str]]], Sequence[float]]

#: Pairs or windows in one batch of jina's `rerank`.
JINA_BATCH = 32


class PaddedEncoder:
    """A published loop, counted from outside by a hook on its network."""

    def __init__(self, name: str, network: Any, shape: EncoderShape, score: Score) -> None:
        self.name = name
        self._shape, self._score = shape, score
        self._masks: list[Tensor] = []
        network.roberta.register_forward_pre_hook(self._before, with_kwargs=True)  # some call forward itself

    def run(self, groups: Sequence[DocumentGroup]) -> Run:
        """Score every pair once.

        Raises:
            CannotRun: a document or a query is an image.
        """
        pairs = pairs_of(groups)
        if any(document.image is not None or query.image is not None for query, document in pairs):
            raise CannotRun("texts alone")
        self._masks.clear()
        texts = [(query.text or "", document.text or "") for query, document in pairs]
        started = time.perf_counter()
        scores = self._score(texts)
        seconds = time.perf_counter() - started
        lengths = [length for mask in self._masks for length in mask.sum(dim=1).tolist()]
        tokens = sum(mask.numel() for mask in self._masks)
        found = {(q.query_id, d.doc_id): float(x) for (q, d), x in zip(pairs, scores, strict=True)}
        flops = sum(map(self._shape.flops, lengths))
        return Run(seconds, len(pairs), tokens, tokens - sum(lengths), flops, {}, found)

    def _before(self, _: Any, __: Any, kwargs: dict[str, Any]) -> None:
        self._masks.append(kwargs["attention_mask"])


def load_padded(name: str, checkpoint: Path, family: str, dtype: str, device: str, max_length: int) -> Contender:
    """`CrossEncoder`, or for anything else the family's published loop.

    Args:
        max_length: tokens of a pair, or of a window.

    Raises:
        CannotRun: says why.
    """
    shape = read_shape(read_json(checkpoint / "config.json"), str(checkpoint))
    with tempfile.TemporaryDirectory() as copy:
        folder = str(for_transformers(checkpoint, Path(copy)))
        try:
            if name == "CrossEncoder":
                network, score = _sentence_transformers(folder, dtype, device, max_length)
            elif family == "jina-reranker-v2":
                network, score = _jina_rerank(folder, dtype, device, max_length)
            else:
                network, score = _flag_embedding(folder, dtype, device, max_length)
        except ImportError as error:
            raise CannotRun(f"not installed ({error})") from error
    return PaddedEncoder(name, network, shape, score)


def _sentence_transformers(folder: str, dtype: str, device: str, max_length: int) -> tuple[Any, Score]:
    """sentence-transformers' CrossEncoder as its documentation says: sorted by characters, batches of 32, padded."""
    from sentence_transformers import CrossEncoder  # type: ignore[import-not-found]

    model = CrossEncoder(
        folder, device=device, max_length=max_length, model_kwargs={"dtype": dtype}, local_files_only=True
    )

    def score(pairs: list[tuple[str, str]]) -> Sequence[float]:
        found: Sequence[float] = model.predict(pairs, show_progress_bar=False, activation_fn=torch.nn.Identity())
        return found

    return model.model, score


def _flag_embedding(folder: str, dtype: str, device: str, max_length: int) -> tuple[Any, Score]:
    """FlagEmbedding's FlagReranker as its documentation says: sorted by tokens, batches of 128, padded."""
    from FlagEmbedding import FlagReranker  # type: ignore[import-not-found]

    model = FlagReranker(folder, use_fp16=dtype == "float16", devices=[device], max_length=max_length)
    model.model.to(getattr(torch, dtype))

    def score(pairs: list[tuple[str, str]]) -> Sequence[float]:
        found: Sequence[float] = model.compute_score(pairs)
        return [found] if isinstance(found, float) else found

    return model.model, score


def _jina_rerank(folder: str, dtype: str, device: str, max_length: int) -> tuple[Any, Score]:
    """jina's `rerank`, a query at a time, written anew on transformers' network, for its own would run code that
    comes with the weights.

    Source: jinaai/jina-reranker-v2-base-multilingual, `modeling_xlm_roberta.py`: windows of a query's documents in
    their order, batches of 32, padded; the largest sigmoid.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    limits = jina_limits(max_length, min(512, max_length // 2))

    @torch.inference_mode()
    def logits(sequences: list[list[int]]) -> list[float]:
        found: list[float] = []
        for first in range(0, len(sequences), JINA_BATCH):
            given = {"input_ids": sequences[first : first + JINA_BATCH]}
            batch = tokenizer.pad(given, return_tensors="pt").to(device)
            found += network(**batch).logits[:, 0].float().cpu().tolist()
        return found

    def score(pairs: list[tuple[str, str]]) -> Sequence[float]:
        by_query: dict[str, list[int]] = defaultdict(list)
        for place, (query, _) in enumerate(pairs):
            by_query[query].append(place)
        best = [float("-inf")] * len(pairs)
        for query, places in by_query.items():
            asked = tokenizer(query, add_special_tokens=False)["input_ids"][: limits.query]
            sequences, owners = [], []
            for place in places:
                told = tokenizer(pairs[place][1], add_special_tokens=False)["input_ids"]
                for start, stop in limits.spans(len(asked), len(told)):
                    sequences.append([0, *asked, 2, 2, *told[start:stop], 2])
                    owners.append(place)
            for place, logit in zip(owners, logits(sequences), strict=True):
                best[place] = max(best[place], logit)
        return best

    return network, score
