"""jina-reranker-m0's architecture from a checkpoint's files to a reranker in memory."""

from __future__ import annotations

import torch

from lakerank.model.engine.decoder import PackedDecoder, ScoreHead
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.engine.vision import PackedVision
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.tokenize import PromptTokenizer, check_tokenizer, read_special_tokens
from lakerank.model.jina_m0.weights import load_network
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.model.registry import LoadOptions


def load(options: LoadOptions) -> BatchedReranker:
    """The checkpoint on its device.

    Raises:
        CheckpointError: weights, adapter or tokenizer do not fit config.json.
    """
    folder, limits = options.folder, options.limits
    settings = read_settings(folder, options.dtype)
    special = read_special_tokens(folder, settings)
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    network = load_network(folder, settings, torch.device(options.device), options.adapter)
    check_tokenizer(tokenizer, special, network.config.text_config.vocab_size, str(folder))
    return BatchedReranker(
        DocumentMajorEngine(
            PackedDecoder(network, ScoreHead.of_mlp(network.score)),
            PackedVision(network, settings.patches),
            reproducible=options.reproducible,
        ),
        Preprocessor(
            PromptTokenizer(tokenizer, special, limits, settings.patches.merge),
            limits,
            settings.patches,
            threads=options.host_threads,
        ),
        fingerprint=options.fingerprint,
        logit_bias=options.logit_bias,
    )
