"""jina-reranker-m0's architecture from a checkpoint's files to a reranker in memory."""

from __future__ import annotations

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
    """The checkpoint on its device. Raises CheckpointError: weights, adapter or tokenizer do not fit config.json."""
    folder, identity = options.folder, options.identity
    settings = read_settings(folder, options.dtype)
    special = read_special_tokens(folder, settings)
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    network = load_network(folder, settings, options.device, options.adapter)
    check_tokenizer(tokenizer, special, network.config.text_config.vocab_size, str(folder))
    decoder = PackedDecoder(network, ScoreHead.of_mlp(network.score))
    vision = PackedVision(network, settings.patches)
    engine = DocumentMajorEngine(decoder, vision, reproducible=options.reproducible)
    prompt = PromptTokenizer(tokenizer, special, identity.limits, settings.patches.merge)
    preprocessor = Preprocessor(prompt, identity, settings.patches, threads=options.host_threads)
    return BatchedReranker(engine, preprocessor, identity.fingerprint, identity.logit_bias, launch=engine.overlapped)
