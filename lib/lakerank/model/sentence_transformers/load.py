"""Loads a CrossEncoder of sentence-transformers: groups are flattened to pairs, which the library reads and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.util import batch_to_device
from torch import nn
from transformers.utils import logging

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import few, is_panic
from lakerank.model.engine.budget import MicroBatcher, busy_budget
from lakerank.model.engine.reranker import BatchedReranker, Outcome
from lakerank.model.inputs import RejectedInput
from lakerank.model.preprocess.images import PatchShape
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.registry import LoadOptions
from lakerank.model.sentence_transformers.tokenize import InputReader, RawInput
from lakerank.records import RejectReason

#: Micro-batches whose pairs are sorted by length together.
_BATCHES_SORTED = 32

Pair = tuple[RawInput, RawInput]


class CrossEncoderEngine:
    """Scores pairs through the library on one device; to be used by one thread.

    `reproducible`: each pair goes through the network alone, so that no shape, and no bit, depends on others. If not,
    pairs of like length are padded to one, as by `CrossEncoder.predict`.
    """

    def __init__(self, model: Any, *, reproducible: bool) -> None:
        self._model, self._reproducible = model, reproducible
        self.batcher = MicroBatcher(model.device, busy_budget(model.device))  # less, once memory has run out
        formatted = "message" in model.modalities
        self._structured = formatted and model[0].input_formatter.message_format == "structured"
        self.reads_images = self._structured and "image" in model.modalities
        # A sigmoid's logit is before it; any other activation is a part of the score.
        self._activation = nn.Identity() if isinstance(model.activation_fn, nn.Sigmoid) else model.activation_fn

    @property
    def group_tokens(self) -> int:
        """Tokens of the document groups to score together, whose pairs are sorted by length."""
        return _BATCHES_SORTED * self.batcher.budget.tokens

    def score(self, documents: Sequence[Any]) -> list[list[Outcome]]:
        """The logit and lengths of the pairs of each document and its queries, or why there are none."""
        pairs: list[Pair] = [(query, group.document) for group in documents for query in group.queries]
        smaller = not self._reproducible  # alone they are as small as they can be
        results = self.batcher.run(self._outcomes, pairs, smaller_batches_help=lambda some: smaller and len(some) > 1)
        outcomes = (result or RejectedInput(RejectReason.OUT_OF_MEMORY, "a pair, alone") for result in results)
        self.batcher.counters.documents += len(documents)
        self.batcher.counters.pairs += len(pairs)
        return [[next(outcomes) for _ in group.queries] for group in documents]

    def _outcomes(self, pairs: Sequence[Pair]) -> list[Outcome]:
        sizes = [len(query.token_ids) + len(document.token_ids) for query, document in pairs]
        instructions = [query.instruction or "" for query, _ in pairs]
        places = sorted(range(len(pairs)), key=lambda place: (instructions[place], -sizes[place]))
        outcomes: dict[int, Outcome] = {}
        while places:
            most = 1 if self._reproducible else max(1, self.batcher.budget.tokens // sizes[places[0]])
            batch = [place for place in places[:most] if instructions[place] == instructions[places[0]]]
            outcomes |= zip(batch, self._forward([pairs[place] for place in batch]), strict=True)
            places = places[len(batch) :]
        return [outcomes[place] for place in range(len(pairs))]

    def _forward(self, pairs: Sequence[Pair]) -> list[Outcome]:
        """Pairs of one instruction, through the network together; alone, where the library does not take them so."""
        try:
            features = self._features(pairs)
            with self.batcher.timer.stage("suffix_s"), torch.inference_mode():
                lengths = features["attention_mask"].sum(dim=1).tolist()
                scores = self._model(batch_to_device(features, self._model.device))["scores"].float()  # (N, 1)
                logits = self._activation(scores).squeeze(-1).tolist()
        except BaseException as error:
            if not isinstance(error, ValueError | TypeError) and not is_panic(error):
                raise
            if len(pairs) > 1:
                return [outcome for pair in pairs for outcome in self._forward([pair])]
            images = sum(len(side.images) for side in pairs[0])
            reason = RejectReason.INPUT_TOO_LONG if images else RejectReason.TEXT_UNDECODABLE
            detail = f"{images} images and their texts, in {self._model.max_seq_length} tokens" if images else "a text"
            return [RejectedInput(reason, f"{detail}: the library raises {type(error).__name__}")]
        self.batcher.counters.computed += features["attention_mask"].numel()
        self.batcher.counters.pairwise += sum(lengths)
        return [self._outcome(*values) for values in zip(pairs, logits, lengths, strict=True)]

    def _features(self, pairs: Sequence[Pair], **options: Any) -> Any:
        """The library's input for pairs of one instruction."""
        contents = [tuple(side.content(self._structured) for side in pair) for pair in pairs]
        default, own = self._model.prompts.get(self._model.default_prompt_name), pairs[0][0].instruction
        return self._model.preprocess(contents, prompt=default if own is None else own, **options)

    def _outcome(self, pair: Pair, logit: float, length: int) -> Outcome:
        """A pair's logit and lengths, of the two sides by their sizes; a cut pair is longer without a limit."""
        query, document = (len(side.token_ids) for side in pair)
        tokens, cut = length * query // (query + document), False
        if length >= self._model.max_seq_length:
            whole = self._features([pair], processing_kwargs={"text": {"truncation": False}})
            cut = bool(whole["attention_mask"].sum() > length)
        return logit, (tokens, length - tokens, False, cut)


def load(options: LoadOptions) -> BatchedReranker:
    """The checkpoint on its device. Raises CheckpointError: the library does not load it, or not as it is stored."""
    folder, identity = str(options.folder), options.identity
    logging.disable_progress_bar()  # a job's log has no place for transformers' own
    kwargs: Any = {"model_kwargs": {"use_safetensors": True, "dtype": getattr(torch, options.dtype)}}
    kwargs |= {"trust_remote_code": False, "local_files_only": True, "max_length": identity.limits.max_length}
    model = CrossEncoder(folder, device="cpu", **kwargs)
    # transformers marks what it has read, and makes up the rest with no more than a warning.
    weights = model.transformers_model.named_parameters()
    if missing := [name for name, weight in weights if not getattr(weight, "_is_hf_initialized", False)]:
        raise CheckpointError(f"{folder}: the weights do not fit config.json ({len(missing)} missing: {few(missing)})")
    if model.num_labels != 1:
        raise CheckpointError(f"{folder}: {model.num_labels} labels, not the one of a relevance score")
    reader = InputReader()
    engine = CrossEncoderEngine(model.to(options.device).eval(), reproducible=options.reproducible)
    engine._features([(reader.query("a"), reader.document("a"))])  # a template without a place for pairs is an error
    pixels = PatchShape(side=1, merge=1) if engine.reads_images else None
    preprocessor = Preprocessor(reader, identity, pixels, threads=options.host_threads)
    return BatchedReranker(engine, preprocessor, identity.fingerprint, identity.logit_bias)
