"""Loads listwise rerankers, for lists or, where they have that use, for pairs."""

from __future__ import annotations

import torch

from lakerank.limits import Listwise
from lakerank.model.checkpoint import stored_tensors
from lakerank.model.config import read_config
from lakerank.model.engine.decoder import PackedDecoder, ScoreHead
from lakerank.model.engine.engine import DocumentMajorEngine
from lakerank.model.engine.linear import LinearWeights
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.engine.vision import PackedVision
from lakerank.model.generative.config import read_patch_shape
from lakerank.model.generative.load import load_language_model
from lakerank.model.generative.tokenize import check_vocabulary, vision_tokens
from lakerank.model.listwise.config import JINA_V3, read_prompt, read_windows
from lakerank.model.listwise.cosine import CosineEngine
from lakerank.model.listwise.generation import Identifiers, ListGenerator
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
    folder, identity, config = options.folder, options.identity, read_config(options.folder)
    prompt = read_prompt(folder, config, identity.family)
    shape = read_patch_shape(folder, config, prompt.document)
    vision = vision_tokens(config, prompt.document, shape.merge)
    tokenizer = ListTokenizer(folder / "tokenizer.json", prompt, vision, identity)
    patches = shape if prompt.document.image else None
    scorer = Preprocessor(tokenizer, identity, patches, threads=options.host_threads), identity.fingerprint
    if identity.listwise is None:
        return BatchedReranker(_load_cosine(options, tokenizer), *scorer)
    jina = identity.family == JINA_V3
    engine = _load_cosine(options, tokenizer) if jina else _load_generator(options, tokenizer, shape)
    return ListwiseReranker(engine, *scorer, identity.listwise.passes)


def _load_cosine(options: LoadOptions, tokenizer: ListTokenizer) -> CosineEngine:
    folder, config, stored = options.folder, read_config(options.folder), frozenset(stored_tensors(options.folder))
    names = sorted(name for name in stored if name.startswith("projector."))
    values = {key: value for key, value in config.items() if key not in _WINDOWS}
    network, embeddings = load_language_model(options, values, frozenset(names))
    check_vocabulary(tokenizer.template, tokenizer.vision, len(embeddings), str(folder))
    projector = read_tensors(folder, torch.float32, str, stored - {*names})
    inner, outer = (LinearWeights(projector[name].to(options.device), None) for name in names)
    decoder = PackedDecoder(network, ScoreHead(outer, inner))
    engine = DocumentMajorEngine(decoder, None, reproducible=options.reproducible)
    return CosineEngine(engine, decoder, tokenizer, read_windows(folder, config), options.identity)


def _load_generator(options: LoadOptions, tokenizer: ListTokenizer, shape: PatchShape) -> ListGenerator:
    listwise = options.identity.listwise or Listwise()
    network, head = load_language_model(options, read_config(options.folder))
    check_vocabulary(tokenizer.template, tokenizer.vision, len(head), str(options.folder))
    identifiers = Identifiers(tokenizer, listwise.window or 1)
    decoder = PackedDecoder(network, ScoreHead(LinearWeights(head[identifiers.tokens], None)))
    vision = PackedVision(network, shape) if hasattr(network.model, "visual") else None
    engine = DocumentMajorEngine(decoder, vision, reproducible=options.reproducible)
    return ListGenerator(engine, tokenizer, identifiers, listwise)
