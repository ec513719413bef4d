"""The prompt of jina-reranker-m0, document first, and what its checkpoints' JSON files say. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import resolve_dtype
from lakerank.model.config import read_config
from lakerank.model.inputs import Template
from lakerank.model.preprocess.images import PatchShape, patch_shape
from lakerank.model.registry import CheckpointInfo

#: Everything before the query, and the query. Cut after the newline: their tokens then are those of the whole prompt.
DOCUMENT = Template(prefix="**Document**:\n", suffix="\n", cuts_text_alone=True, names_limit=True)
QUERY = Template(prefix="**Query**:\n", names_limit=True)

#: Token appended to every query; the score is read there. A checkpoint's config.json may name another.
SCORE_TOKEN_ID = 100

#: relevance = sigmoid(logit - bias), a property of the checkpoint family. A checkpoint's config.json may name another.
LOGIT_BIAS = 2.65


@dataclass(frozen=True, slots=True)
class Settings:
    """config.json, and what it and preprocessor_config.json say of scores and images."""

    config: Mapping[str, Any]
    dtype: str
    logit_bias: float
    score_token_id: int
    patches: PatchShape


def read_settings(folder: Path, dtype: str = "auto") -> Settings:
    """Read config.json and preprocessor_config.json; `dtype` auto is the checkpoint's own.

    Raises CheckpointError: a file is not JSON, the model is another, or it needs what is not supported.
    """
    config = read_config(folder)
    if config.get("model_type") != "qwen2_vl" or not isinstance(config.get("vision_config"), dict):
        raise CheckpointError(f"{folder}: model_type {config.get('model_type')!r} in config.json, not 'qwen2_vl'")
    text = config.get("text_config") or config
    if text.get("use_sliding_window"):
        raise CheckpointError(f"{folder}: use_sliding_window is not supported: a query must see its whole document")
    bias, score = float(config.get("logit_bias", LOGIT_BIAS)), int(config.get("score_token_id", SCORE_TOKEN_ID))
    patches = patch_shape(folder, config["vision_config"])
    return Settings(config, resolve_dtype(folder, dtype), bias, score, patches)


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """What names the scorer, beyond what every fingerprint has. Raises CheckpointError: as `read_settings`."""
    settings = read_settings(folder, dtype)
    parts = {"score_token_id": settings.score_token_id, "patches": asdict(settings.patches)}
    return CheckpointInfo(settings.dtype, settings.logit_bias, parts)
