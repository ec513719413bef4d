"""What a generative reranker's JSON files say of its scorer; torch is not imported, for a plan needs this."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json, resolve_dtype
from lakerank.model.generative.prompt import PROMPTS, ChatPrompt
from lakerank.model.preprocess.images import PatchShape, patch_shape
from lakerank.model.registry import CheckpointInfo


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """What names the scorer beyond what every fingerprint has: the prompt, and how images are cut.

    Raises:
        CheckpointError: a file is not JSON, it is another language model, or it needs what is not supported.
    """
    prompt = PROMPTS[family]
    config = read_json(folder / "config.json")
    if config.get("model_type") != prompt.model_type:
        stated = f"model_type {config.get('model_type')!r} in config.json"
        raise CheckpointError(
            f"{folder}: {stated}, but this family computes {prompt.model_type!r}; choose another model.family"
        )
    text = config.get("text_config") or config
    if text.get("use_sliding_window"):
        raise CheckpointError(f"{folder}: use_sliding_window is not supported: the last token must see the whole pair")
    parts = {"prompt": prompt.fingerprint_parts(), "patches": asdict(read_patch_shape(folder, prompt))}
    return CheckpointInfo(resolve_dtype(folder, dtype), parts=parts)


def read_patch_shape(folder: Path, prompt: ChatPrompt) -> PatchShape:
    """How images are cut, where there are any.

    Raises:
        CheckpointError: config.json or preprocessor_config.json does not say.
    """
    if not prompt.document.image:
        return PatchShape()
    vision = read_json(folder / "config.json").get("vision_config")
    if not isinstance(vision, dict):
        raise CheckpointError(f"{folder}: config.json has no vision_config, but this family's documents are images")
    file = folder / "preprocessor_config.json"
    if not file.is_file() or not {"image_mean", "image_std"} <= read_json(file).keys():
        raise CheckpointError(f"{folder}: no preprocessor_config.json with image_mean and image_std; copy it, too")
    return patch_shape(folder, vision)
