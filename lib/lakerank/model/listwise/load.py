"""Loads listwise rerankers, for lists or, where they have that use, for pairs."""

from __future__ import annotations

from functools import partial

import torch

from lakerank.limits import Listwise
from lakerank.model.checkpoint import stored_tensors
from lakerank.model.config import read_config
from lakerank.model.engine.budget import layer_bytes
from lakerank.model.engine.decoder import PackedDecoder
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.linear import LinearWeights
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.generative.config import read_patch_shape
from lakerank.model.generative.load import load_language_model, vision_encoder
from lakerank.model.generative.tokenize import vision_tokens
from lakerank.model.listwise.config import JINA_V3, read_prompt, read_windows
from lakerank.model.listwise.cosine import Blocks, CosineEngine, Projector
from lakerank.model.listwise.generation import IdentifierHead, Identifiers, ListGenerator
from lakerank.model.listwise.reranker import ListwiseReranker
from lakerank.model.listwise.tokenize import ListTokenizer
from lakerank.model.preprocess.images import PatchShape
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.registry import LoadOptions
from lakerank.model.weights import read_tensors

#: What the windows of layers are stated by; the network is built without, for the engine computes them.
_WINDOWS = ("layer_types", "use_sliding_window", "sliding_window", "max_window_layers")


def load(options: LoadOptions) -> ListwiseReranker | BatchedReranker:
    """The checkpoint on its device. Raises CheckpointError: weights, adapter or tokenizer do not fit config.json."""
    folder, identity = options.folder, options.identity
    config = read_config(folder)
    prompt = read_prompt(folder, config, identity.family)
    shape = read_patch_shape(folder, config, prompt.document)
    vision = vision_tokens(config, prompt.document, shape.merge)
    tokenizer = ListTokenizer(folder / "tokenizer.json", prompt, vision, identity)
    patches = shape if prompt.document.image else None
    preprocessor = Preprocessor(tokenizer, identity, patches, threads=options.host_threads)
    of_scorer = preprocessor, identity.fingerprint
    if identity.listwise is None:
        return BatchedReranker(_load_cosine(options, tokenizer), *of_scorer)
    load_engine = _load_cosine if identity.family == JINA_V3 else partial(_load_generator, shape=shape)
    return ListwiseReranker(load_engine(options, tokenizer), *of_scorer, identity.listwise.passes)


def _load_generator(options: LoadOptions, tokenizer: ListTokenizer, shape: PatchShape) -> ListGenerator:
    listwise = options.identity.listwise or Listwise()
    network, head = load_language_model(options, read_config(options.folder))
    tokenizer.check_vocabulary(len(head), str(options.folder))
    identifiers = Identifiers(tokenizer, listwise.window or 1)
    rows = LinearWeights(head[[*identifiers.tokens]].float(), None)
    decoder = PackedDecoder(network, IdentifierHead(rows, identifiers.tokens))
    engine = DocumentMajorEngine(decoder, vision_encoder(network, shape), reproducible=options.reproducible)
    return ListGenerator(engine, tokenizer, identifiers, listwise)


def _load_cosine(options: LoadOptions, tokenizer: ListTokenizer) -> CosineEngine:
    folder, config, limits = options.folder, read_config(options.folder), options.identity.limits
    values = {key: value for key, value in config.items() if key not in _WINDOWS}
    stored = frozenset(stored_tensors(folder))
    names = sorted(name for name in stored if name.startswith("projector."))
    network, embeddings = load_language_model(options, values, frozenset(names))
    tokenizer.check_vocabulary(len(embeddings), str(folder))
    projector = read_tensors(folder, torch.float32, str, stored - {*names})
    layers = [LinearWeights(projector[name].to(options.device), None) for name in names]
    decoder = PackedDecoder(network, Projector(*layers))
    text, listwise = network.config, options.identity.listwise
    token_bytes = layer_bytes(text.hidden_size, text.intermediate_size, decoder.dtype)
    blocks = Blocks((listwise and listwise.window) or 1, limits.max_length, token_bytes)
    engine = DocumentMajorEngine(decoder, None, reproducible=options.reproducible)
    return CosineEngine(engine, decoder, tokenizer, read_windows(folder, config), blocks)
