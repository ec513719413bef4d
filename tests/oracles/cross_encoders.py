"""The published loops of XLM-RoBERTa cross-encoders on texts, as baselines: each loads a network and a score function.

They share the cut of a document into windows and the table of tensors' names with the engine, and nothing else.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lakerank.model.checkpoint import WEIGHTS_NAME, read_json, weight_files
from lakerank.model.cross_encoder.tokenize import JINA_PAIR, PairLimits
from lakerank.model.cross_encoder.weights import JINA, QKV, QKV_PARTS

#: Pairs of a query's text and a document's to logits, or to anything that rises with them.
ScoreTexts = Callable[[list[tuple[str, str]]], Sequence[float]]

#: Pairs or windows in one batch of jina's `rerank`.
JINA_BATCH = 32


def sentence_transformers(
    folder: str, dtype: str, device: str, max_length: int | None = None
) -> tuple[Any, ScoreTexts]:
    """sentence-transformers' CrossEncoder as its documentation says: sorted by characters, batches of 32, padded.

    It runs no code of the checkpoint.
    """
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(
        folder, device=device, max_length=max_length, model_kwargs={"dtype": dtype}, local_files_only=True
    )

    def score(pairs: list[tuple[str, str]]) -> Sequence[float]:
        logits: Sequence[float] = model.predict(pairs, show_progress_bar=False, activation_fn=torch.nn.Identity())
        return logits

    return model.model, score


def flag_embedding(folder: str, dtype: str, device: str, max_length: int) -> tuple[Any, ScoreTexts]:
    """FlagEmbedding's FlagReranker as its documentation says: sorted by tokens, batches of 128, padded."""
    from FlagEmbedding import FlagReranker  # type: ignore[import-not-found]

    model = FlagReranker(folder, use_fp16=dtype == "float16", devices=[device], max_length=max_length)
    model.model.to(getattr(torch, dtype))

    def score(pairs: list[tuple[str, str]]) -> Sequence[float]:
        logits: Sequence[float] = model.compute_score(pairs)
        return [logits] if isinstance(logits, float) else logits

    return model.model, score


def jina_rerank(folder: str, dtype: str, device: str, max_length: int) -> tuple[Any, ScoreTexts]:
    """jina's `rerank`, a query at a time, written anew on transformers' network, for its own would run code that
    comes with the weights.

    Source: jinaai/jina-reranker-v2-base-multilingual, `modeling_xlm_roberta.py`: windows of a query's documents in
    their order, batches of 32, padded; the largest sigmoid.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    limits = PairLimits(JINA_PAIR, max_length, min(512, max_length // 2))

    @torch.inference_mode()
    def logits(sequences: list[list[int]]) -> list[float]:
        values: list[float] = []
        for first in range(0, len(sequences), JINA_BATCH):
            rows = {"input_ids": sequences[first : first + JINA_BATCH]}
            batch = tokenizer.pad(rows, return_tensors="pt").to(device)
            values += network(**batch).logits[:, 0].float().cpu().tolist()
        return values

    def score(pairs: list[tuple[str, str]]) -> Sequence[float]:
        by_query: dict[str, list[int]] = defaultdict(list)
        for place, (query, _) in enumerate(pairs):
            by_query[query].append(place)
        best = [float("-inf")] * len(pairs)
        for query, places in by_query.items():
            query_ids = tokenizer(query, add_special_tokens=False)["input_ids"][: limits.query]
            sequences, owners = [], []
            for place in places:
                ids = tokenizer(pairs[place][1], add_special_tokens=False)["input_ids"]
                for start, stop in limits.spans(len(query_ids), len(ids)):
                    sequences.append([0, *query_ids, 2, 2, *ids[start:stop], 2])
                    owners.append(place)
            for place, logit in zip(owners, logits(sequences), strict=True):
                best[place] = max(best[place], logit)
        return best

    return network, score


def for_transformers(checkpoint: Path, target: Path) -> Path:
    """A folder that transformers loads as it is: the checkpoint itself, or a copy of jina's under transformers' names,
    query, key and value apart.
    """
    tensors = {name: tensor for file in weight_files(checkpoint) for name, tensor in load_file(file).items()}
    if "roberta.emb_ln.weight" not in tensors:
        return checkpoint
    renamed: dict[str, torch.Tensor] = {}
    for stored, tensor in tensors.items():
        name = JINA.transformers_name(stored)
        names = [name.replace(QKV, part) for part in QKV_PARTS] if QKV in name else [name]
        renamed |= {name: part.contiguous() for name, part in zip(names, tensor.chunk(len(names)), strict=True)}
    save_file(renamed, target / WEIGHTS_NAME, metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, target / name)
    config = read_json(checkpoint / "config.json") | {"model_type": "xlm-roberta"}
    plain = {key: value for key, value in config.items() if key not in ("auto_map", "use_flash_attn")}
    (target / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    return target
