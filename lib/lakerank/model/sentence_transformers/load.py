"""Loads a CrossEncoder of sentence-transformers: groups are flattened to pairs, which the library reads and scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import few
from lakerank.model.engine.budget import MicroBatcher, device_budget, layer_bytes
from lakerank.model.engine.reranker import BatchedReranker, PairLengths
from lakerank.model.inputs import DocumentQueries, RejectedInput
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.registry import LoadOptions
from lakerank.model.sentence_transformers.tokenize import PIXELS, InputReader, RawInput
from lakerank.records import RejectReason

#: Micro-batches whose pairs are sorted by length together.
_BATCHES_SORTED = 32

Pair = tuple[RawInput, RawInput]
Outcome = tuple[float, PairLengths] | RejectedInput


class CrossEncoderEngine:
    """Scores pairs through the library on one device; to be used by one thread.

    `reproducible`: each pair goes through the network alone, so that no shape, and no bit, depends on others. If not,
    pairs of like length are padded to one, as `CrossEncoder.predict` does.
    """

    def __init__(self, model: Any, *, reproducible: bool) -> None:
        self._model, self._reproducible = model, reproducible
        config = model.transformers_model.config.get_text_config()
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        token_bytes = layer_bytes(config.hidden_size, inner, model.dtype)
        self.batcher = MicroBatcher(model.device, device_budget(model.device, token_bytes))
        messages = "message" in model.modalities
        self._structured = messages and model[0].input_formatter.message_format == "structured"
        self.reads_images = self._structured and "image" in model.modalities
        far = RawInput(np.empty(0), np.empty(0), 0, text="a " * 2 * model.max_seq_length)
        self._longest = int(self._features([(far, far)])["attention_mask"].sum())  # some files state less than config
        # The logit of a sigmoid is before it; any other activation is a part of the score.
        self._activation = nn.Identity() if isinstance(model.activation_fn, nn.Sigmoid) else model.activation_fn

    @property
    def group_tokens(self) -> int:
        """Tokens of the document groups to score together, whose pairs are sorted by length."""
        return _BATCHES_SORTED * self.batcher.budget.tokens

    def score(self, documents: Sequence[Any]) -> list[list[Outcome]]:
        """The logit and lengths of the pairs of each document and its queries, or why there are none."""
        pairs: list[Pair] = [(query, group.document) for group in documents for query in group.queries]
        outcomes = iter(self.batcher.run(self._outcomes, pairs, smaller_batches_help=self._smaller_batches_help))
        self.batcher.counters.documents += len(documents)
        self.batcher.counters.pairs += len(pairs)
        alone = RejectedInput(RejectReason.OUT_OF_MEMORY, "a pair, alone")
        return [[next(outcomes) or alone for _ in group.queries] for group in documents]

    def _smaller_batches_help(self, pairs: Sequence[Pair]) -> bool:
        return len(pairs) > 1 and not self._reproducible

    def _outcomes(self, pairs: Sequence[Pair]) -> list[Outcome]:
        sizes = [1 + query.size + document.size for query, document in pairs]
        order = sorted(range(len(pairs)), key=lambda place: (pairs[place][0].instruction or "", -sizes[place]))
        outcomes: dict[int, Outcome] = {}
        for _, alike in groupby(order, key=lambda place: pairs[place][0].instruction):
            places = [*alike]
            while places:
                most = 1 if self._reproducible else max(1, self.batcher.budget.tokens // sizes[places[0]])
                batch, places = places[:most], places[most:]
                outcomes |= zip(batch, self._forward([pairs[place] for place in batch]), strict=True)
        return [outcomes[place] for place in range(len(pairs))]

    def _forward(self, pairs: Sequence[Pair]) -> list[Outcome]:
        """Pairs of one instruction, through the network together; alone, where the library does not take them so."""
        try:
            features = self._features(pairs)
            logits = self._logits(features)
        except ValueError as error:
            if len(pairs) > 1:
                return [outcome for pair in pairs for outcome in self._forward([pair])]
            return [self._rejected(pairs[0], error)]
        lengths = features["attention_mask"].sum(dim=1).tolist()
        self.batcher.counters.computed += features["attention_mask"].numel()
        self.batcher.counters.pairwise += sum(lengths)
        self.batcher.counters.padding += features["attention_mask"].numel() - sum(lengths)
        return [
            (logit, self._lengths(pair, length)) for logit, pair, length in zip(logits, pairs, lengths, strict=True)
        ]

    def _logits(self, features: Any) -> list[float]:
        with self.batcher.timer.stage("suffix_s"), torch.inference_mode():
            inputs = {
                name: value.to(self._model.device) if isinstance(value, torch.Tensor) else value
                for name, value in features.items()
            }
            scores = self._model(inputs)["scores"].float()  # (N, 1)
            logits: list[float] = self._activation(scores).squeeze(-1).tolist()
        return logits

    def _rejected(self, pair: Pair, error: ValueError) -> RejectedInput:
        """Why the library takes no such pair; what it says of it may hold its texts."""
        images = len(pair[0].images) + len(pair[1].images)
        if not images:
            return RejectedInput(RejectReason.TEXT_UNDECODABLE, f"the library refuses it ({type(error).__name__})")
        detail = f"{images} images and their texts, in {self._model.max_seq_length} tokens ({type(error).__name__})"
        return RejectedInput(RejectReason.INPUT_TOO_LONG, detail)

    def _features(self, pairs: Sequence[Pair], **options: Any) -> Any:
        """The library's input for pairs of one instruction."""
        contents = [tuple(side.content(self._structured) for side in pair) for pair in pairs]
        default = self._model.prompts.get(self._model.default_prompt_name)
        prompt = default if pairs[0][0].instruction is None else pairs[0][0].instruction
        return self._model.preprocess(contents, prompt=prompt, **options)

    def _lengths(self, pair: Pair, length: int) -> PairLengths:
        """Of a pair of `length` tokens. It is cut if it is longer without a limit; on which side is not said."""
        cut = pair[0].truncated or pair[1].truncated
        if length >= self._longest and not cut:
            whole = self._features([pair], processing_kwargs={"text": {"truncation": False}})
            cut = bool(whole["attention_mask"].sum() > length)
        query = min(len(pair[0].token_ids), length)
        return query, length - query, False, cut


def load(options: LoadOptions) -> BatchedReranker:
    """The checkpoint on its device. Raises CheckpointError: the library does not load it, or not as it is stored."""
    identity = options.identity
    tokenizer = read_tokenizer(options.folder / "tokenizer.json", names_are_text=False)
    model = _cross_encoder(options)
    engine = CrossEncoderEngine(model, reproducible=options.reproducible)
    reader = InputReader(tokenizer, identity.limits.max_length)
    trial = engine.score([DocumentQueries(reader.document("a"), (reader.query("a"),))])[0][0]
    if isinstance(trial, RejectedInput):
        raise CheckpointError(f"{options.folder}: no pair of texts can be scored: {trial}")
    pixels, threads = PIXELS if engine.reads_images else None, options.host_threads
    preprocessor = Preprocessor(reader, identity, pixels, threads=threads)
    return BatchedReranker(engine, preprocessor, identity.fingerprint, identity.logit_bias)


def _cross_encoder(options: LoadOptions) -> Any:
    """The library's model, from files of its folder alone. Raises CheckpointError: a weight is not stored."""
    from sentence_transformers import CrossEncoder

    folder = str(options.folder)
    with _without_bars():
        model = CrossEncoder(
            folder,
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            max_length=options.identity.limits.max_length,
            model_kwargs={"use_safetensors": True, "dtype": getattr(torch, options.dtype)},
        )
    # transformers marks what it has read, and makes up the rest with no more than a warning
    weights = model.transformers_model.named_parameters()
    if missing := [name for name, weight in weights if not getattr(weight, "_is_hf_initialized", False)]:
        raise CheckpointError(f"{folder}: the weights do not fit config.json ({len(missing)} missing: {few(missing)})")
    if model.num_labels != 1:
        raise CheckpointError(f"{folder}: {model.num_labels} labels, not the one of a relevance score")
    return model.to(options.device).eval()


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws no progress bar into a job's log."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
