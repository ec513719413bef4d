"""KaLM-Reranker's prompt, as data, and what a checkpoint's JSON files say of it; torch is not imported.

Sources: KaLM-Embedding/KaLM-Reranker-V1-Nano, -Small, -Large and their R2: `kalm_reranker.py`,
`kalm_reranker_utils.py`, sentence-transformers' module of the family, and the model cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_optional, resolve_dtype, stored_tensors
from lakerank.model.config import read_config
from lakerank.model.generative.config import ChatPrompt
from lakerank.model.inputs import Template
from lakerank.model.registry import CheckpointInfo

PROMPT = ChatPrompt(
    model_type="t5gemma2",
    preamble=(
        "<bos><start_of_turn>user\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".\n\n<Instruct'
    ),
    instruction=Template(prefix=">: ", suffix="\n<Query"),
    default_instruction="Given a query, retrieve documents that answer the query.",
    document=Template(prefix="<Document>: ", image=False),
    query=Template(prefix=">: ", after="<end_of_turn>\n<start_of_turn>model\n\n\n\n", image=False),
    encoder=True,
)

#: What sentence-transformers' module of the family keeps beside config.json.
_SETTINGS = "kalm_cross_encoder_config.json"

#: What is computed here: settings of each half, and the library's values where config.json leaves them out.
_COMPUTED = {"hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None, "final_logit_softcapping": None}

_LAYER = re.compile(r"model\.(decoder|encoder)\.(?:text_model\.)?layers\.(\d+)\.")


def read_pooling(folder: Path) -> int:
    """How many consecutive tokens of a document make a state. Raises CheckpointError: what is stated is impossible."""
    stated = read_optional(folder / _SETTINGS)
    pooling = stated.get("encoder_chunk_size", 4) or 1
    if type(pooling) is not int or pooling < 1 or stated.get("system_instruction", "") not in PROMPT.preamble:
        raise CheckpointError(f"{folder / _SETTINGS}: encoder_chunk_size or system_instruction is not computed here")
    return pooling


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """What names the scorer beyond what every fingerprint has, and of that what names its encoder.

    Raises CheckpointError: config.json describes what is not computed here.
    """
    faults = [*_faults(read_config(folder), stored_tensors(folder))]
    if faults:
        raise CheckpointError(f"{folder}: config.json is no KaLM-Reranker's: {'; '.join(faults)}")
    prompt, pooling = PROMPT.fingerprint_parts(), read_pooling(folder)
    documents = {"prompt": prompt["document"], "pooling": pooling}
    return CheckpointInfo(resolve_dtype(folder, dtype), parts={"prompt": prompt, "pooling": pooling}, encoder=documents)


def _faults(config: Mapping[str, Any], tensors: Iterable[str]) -> Iterator[str]:
    if config.get("model_type") != PROMPT.model_type or config.get("tie_word_embeddings") is False:
        yield f"model_type {config.get('model_type')!r}, not {PROMPT.model_type!r}, or embeddings that are not tied"
    halves = {"decoder": config.get("decoder"), "encoder": (config.get("encoder") or {}).get("text_config")}
    for name, half in halves.items():
        layers = {match[2] for tensor in tensors if (match := _LAYER.match(tensor)) and match[1] == name}
        stated = {**_COMPUTED, "head_dim": 256, "query_pre_attn_scalar": 256, "num_hidden_layers": 26, **(half or {})}
        needed = {**_COMPUTED, "query_pre_attn_scalar": stated["head_dim"], "num_hidden_layers": len(layers)}
        for key in (key for key, value in needed.items() if stated[key] != value):
            yield f"{name}.{key} is {stated[key]!r:.40}, not {needed[key]!r}"
        kinds = {rope["rope_type"] for rope in (stated.get("rope_parameters") or {}).values()}
        if kinds - {"default", "linear"}:
            yield f"{name}.rope_parameters of type {', '.join(sorted(kinds))}, not default or linear"
