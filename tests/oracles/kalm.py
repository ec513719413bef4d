"""KaLM-Reranker's published loop on texts, written anew: whole pairs in padded batches through transformers' network.

It shares nothing with the engine. Sources: KaLM-Embedding/KaLM-Reranker-V1-Nano, `kalm_reranker.py` and
`kalm_reranker_utils.py`; mteb, `models/model_implementations/kalm_reranker.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, T5Gemma2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

_QUESTION = (
    "<bos><start_of_turn>user\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".\n\n<Instruct>: {}\n<Query>: {}<end_of_turn>\n'
    "<start_of_turn>model\n\n\n\n"
)
DEFAULT = "Given a query, retrieve documents that answer the query."


class PublishedKalmLoop:
    """Scores batches of (query, document): the logit of "yes" less that of "no"; relevance is its sigmoid."""

    def __init__(
        self, folder: str | Path, network: T5Gemma2ForConditionalGeneration, lengths: tuple[int, int] = (512, 1024)
    ) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.padding_side = "right"
        self.network, self.lengths = network, lengths

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[str, str]], every: int | None = 4, instruction: str = DEFAULT) -> Tensor:
        """Logits (P,) float32; `every`: tokens whose states are averaged, None: they are not."""
        query_length, document_length = self.lengths
        read = self._padded([f"<Document>: {text}" for _, text in pairs], None, document_length)
        states = self.network.get_encoder()(**read).last_hidden_state
        mask = read["attention_mask"]
        if every is not None:
            states, mask = _means(states, mask, every)
        asked = self._padded([self._question(query, instruction, query_length) for query, _ in pairs], 8, None)
        logits = self.network(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=asked["input_ids"],
            decoder_attention_mask=asked["attention_mask"],
        ).logits
        last = logits[torch.arange(len(pairs)), asked["attention_mask"].sum(dim=1) - 1].float()
        yes, no = (self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("yes", "no"))
        return last[:, yes[0]] - last[:, no[0]]

    def _question(self, query: str, instruction: str, length: int) -> str:
        ids = self.tokenizer(query, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
        return _QUESTION.format(instruction, self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _padded(self, texts: Sequence[str], multiple: int | None, length: int | None) -> dict[str, Tensor]:
        cut = {} if length is None else {"truncation": True, "max_length": length}
        batch = self.tokenizer(
            list(texts), padding=True, pad_to_multiple_of=multiple, add_special_tokens=False, return_tensors="pt", **cut
        )
        return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _means(states: Tensor, mask: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """Means of each `every` consecutive states (B, L, h) -> (B, S, h), over real tokens alone, and which S are real."""
    missing = -states.shape[1] % every
    states, mask = F.pad(states, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    real = mask.unflatten(1, (-1, every)).sum(dim=2)
    total = (states * mask.unsqueeze(-1)).unflatten(1, (-1, every)).sum(dim=2)
    return total / real.clamp(min=1).unsqueeze(-1), (real > 0).to(mask.dtype)
