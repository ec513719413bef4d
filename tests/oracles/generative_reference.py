"""The published loops of generative rerankers, pair by pair: the oracle of the tests, and the baseline of benchmarks.

They share nothing with the engine: transformers loads the weights (and peft the adapter), renders the conversation by a
chat template, tokenises the whole prompt at once, prepares images and computes positions and the forward.
Sources: as in `chat_prompts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLForConditionalGeneration,
    Qwen3ForCausalLM,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lakerank.limits import Limits
from lakerank.model.checkpoint import locate, read_json
from lakerank.model.preprocess.images import patch_shape
from lakerank.records import Document, Query
from oracles.reference import open_upright

Message = dict[str, Any]

#: What the published tokenizers' templates make of a system and a user turn of texts and images, for checkpoints whose
#: tokenizer_config.json holds none.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n"
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
_NETWORKS: dict[str, Any] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
    "qwen3": Qwen3ForCausalLM,
}


class PublishedGenerativeLoop:
    """Scores pairs as the published code of config.json's model_type does, which reads one pair a forward."""

    def __init__(
        self,
        path: str | Path,
        *,
        adapter: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        limits: Limits | None = None,
    ) -> None:
        folder = locate(str(path))
        config = read_json(folder / "config.json")
        self.kind = str(config["model_type"])
        network = _NETWORKS[self.kind].from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
        if adapter is not None:
            from peft import PeftModel

            network = PeftModel.from_pretrained(network, adapter).get_base_model()
        self.network: Any = network.to(device).eval()
        self._device = device
        self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        stated = folder / "tokenizer_config.json"
        self._template = (read_json(stated).get("chat_template") if stated.is_file() else None) or CHAT_TEMPLATE
        self._image_token = config.get("image_token_id")
        if "vision_config" in config:
            self._images = _image_processor(folder, config["vision_config"], limits or Limits())
        words = ("True", "False") if self.kind == "qwen2_vl" else ("yes", "no")
        self._words = [self._tokenizer.convert_tokens_to_ids(word) for word in words]

    @torch.inference_mode()
    def logits(self, pairs: Sequence[tuple[Query, Document]]) -> np.ndarray:
        """Logit of the one word less that of the other, float32 (P,), in order."""
        return np.array([self._logit(*pair) for pair in pairs], dtype=np.float32)

    def prompt(self, query: Query, document: Document) -> str:
        """The whole prompt of a pair as text, an image as its placeholder; an instruction without blanks around it."""
        told = (query.instruction or "").strip()
        if self.kind == "qwen3":
            instruct = told or "Given a web search query, retrieve relevant passages that answer the query"
            body = f"<Instruct>: {instruct}\n<Query>: {query.text}\n<Document>: {document.text}"
            return f"{self._render(_conversation([_text(body)], _SYSTEM))}<think>\n\n</think>\n\n"
        if self.kind == "qwen2_vl":
            question = "Assert the relevance of the previous image document to the following query, "
            question += f"answer True or False. The query is: {query.text}"
            return self._render(_conversation([*({"type": "image"} for _ in document.images), _text(question)], None))
        instruct = told or "Given a search query, retrieve relevant candidates that answer the query."
        parts = [_text(f"<Instruct>: {instruct}"), *_mixed("<Query>:", query), *_mixed("\n<Document>:", document)]
        return self._render(_conversation(parts, _SYSTEM))

    def _logit(self, query: Query, document: Document) -> float:
        images = [image for item in (query, document) for image in item.images]
        text, inputs = self.prompt(query, document), {}
        if images:
            seen = self._images([open_upright(image) for image in images], return_tensors="pt")
            for grid in seen["image_grid_thw"]:
                count = int(grid.prod()) // self._images.merge_size**2
                text = text.replace("<|image_pad|>", "\0" * count, 1)
            inputs = {name: seen[name].to(self._device) for name in ("pixel_values", "image_grid_thw")}
        text = text.replace("\0", "<|image_pad|>")
        inputs["input_ids"] = self._tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        inputs["input_ids"] = inputs["input_ids"].to(self._device)
        if images:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self._image_token).int()
        return self._difference(inputs)

    def _difference(self, inputs: dict[str, Any]) -> float:
        """Qwen3-VL-Reranker multiplies by two rows of the language head; the others make all logits of all tokens."""
        mask = torch.ones_like(inputs["input_ids"])
        yes, no = self._words
        if self.kind != "qwen3_vl":
            logits: Tensor = self.network(**inputs, attention_mask=mask).logits[0, -1]
            return float(logits[yes].float() - logits[no].float())
        hidden = self.network.model(**inputs, attention_mask=mask).last_hidden_state[0, -1]
        rows = self.network.lm_head.weight
        return float((rows[yes] - rows[no]) @ hidden)

    def _render(self, messages: list[Message]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        )


def _image_processor(folder: Path, vision: dict[str, Any], limits: Limits) -> Any:
    shape = patch_shape(folder, vision)
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels},
        patch_size=shape.side,
        merge_size=shape.merge,
        temporal_patch_size=shape.frames,
        image_mean=list(shape.mean),
        image_std=list(shape.std),
    )


def _conversation(parts: list[Message], system: str | None) -> list[Message]:
    turns = [] if system is None else [{"role": "system", "content": [_text(system)]}]
    return [*turns, {"role": "user", "content": parts}]


def _mixed(prefix: str, item: Query | Document) -> list[Message]:
    images = [{"type": "image"} for _ in item.images]
    return [_text(prefix), *images, *([] if item.text is None else [_text(item.text)])]


def _text(text: str) -> Message:
    return {"type": "text", "text": text}
