"""What a generative reranker's JSON files say of its scorer; torch is not imported, for a plan needs this."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import patch_shape, read_json, resolve_dtype
from lakerank.model.family import CheckpointInfo
from lakerank.model.generative.prompt import ChatPrompt
from lakerank.model.preprocess.images import PatchShape


def generative_facts(folder: Path, dtype: str, prompt: ChatPrompt, model_type: str) -> CheckpointInfo:
    """What names the scorer beyond what every fingerprint holds: the prompt, and how images are cut.

    Args:
        model_type: the language model that the prompt is for.

    Raises:
        CheckpointError: a file is not JSON, it is another language model, or it needs what is not supported.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != model_type:
        found = f"model_type {config.get('model_type')!r} in config.json"
        raise CheckpointError(
            f"{folder}: {found}, but this family computes {model_type!r}; choose another model.family"
        )
    text = config.get("text_config") or config
    if text.get("use_sliding_window"):
        raise CheckpointError(f"{folder}: use_sliding_window is not supported: the last token must see the whole pair")
    parts = {"prompt": asdict(prompt), "patches": asdict(generative_patches(folder, prompt))}
    return CheckpointInfo(resolve_dtype(folder, dtype), parts=parts)


def generative_patches(folder: Path, prompt: ChatPrompt) -> PatchShape:
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
