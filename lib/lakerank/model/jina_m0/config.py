"""What the JSON files of a jina-reranker-m0 checkpoint say beside the network's sizes; torch is not imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json, resolve_dtype
from lakerank.model.jina_m0.prompt import LOGIT_BIAS, SCORE_TOKEN_ID
from lakerank.model.preprocess.images import PatchShape, patch_shape
from lakerank.model.registry import CheckpointInfo


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

    Raises:
        CheckpointError: a file is not JSON, the model is another, or it needs what is not supported.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != "qwen2_vl" or not isinstance(config.get("vision_config"), dict):
        raise CheckpointError(f"{folder}: model_type {config.get('model_type')!r} in config.json, not 'qwen2_vl'")
    text = config.get("text_config") or config
    if text.get("use_sliding_window"):
        raise CheckpointError(f"{folder}: use_sliding_window is not supported: a query must see its whole document")
    return Settings(
        config=config,
        dtype=resolve_dtype(folder, dtype),
        logit_bias=float(config.get("logit_bias", LOGIT_BIAS)),
        score_token_id=int(config.get("score_token_id", SCORE_TOKEN_ID)),
        patches=patch_shape(folder, config["vision_config"]),
    )


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """What names the scorer, beyond what every fingerprint has.

    Raises:
        CheckpointError: as `read_settings`.
    """
    settings = read_settings(folder, dtype)
    parts = {"score_token_id": settings.score_token_id, "patches": asdict(settings.patches)}
    return CheckpointInfo(settings.dtype, settings.logit_bias, parts)
