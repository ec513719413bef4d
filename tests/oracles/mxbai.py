"""The published loop of mxbai-rerank-v2, pair by pair; it shares nothing with the engine.

Source: mixedbread-ai/mxbai-rerank, mxbai_rerank/mxbai_rerank_v2.py, for pairs that are not cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:"
)
SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"


class PublishedMxbai:
    """Each part of the prompt becomes tokens by itself: the turn, the query, a line's end, the document, the task."""

    def __init__(self, folder: Path) -> None:
        self._network = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def logits(self, pairs: Sequence[tuple[str, str]], instruction: str | None = None) -> list[float]:
        """Logit of "1" less that of "0"."""
        return [self._logit(query, document, instruction) for query, document in pairs]

    def _logit(self, query: str, document: str, instruction: str | None) -> float:
        asked = f"query: {query}"
        if instruction:
            asked = f"instruction: {instruction}\n{asked}"
        end, turn = self._ids("\n"), self._ids(f"{SYSTEM}<|im_start|>user\n")
        ids = turn + self._ids(asked) + end + self._ids(f"document: {document}") + end + self._ids(TASK)
        ids += self._ids("<|im_end|>\n<|im_start|>assistant\n")
        last = self._network(input_ids=torch.tensor([ids])).logits[0, -1]
        one, zero = self._ids("1")[0], self._ids("0")[0]
        return float(last[one] - last[zero])
