"""The published loops of listwise rerankers, list by list; they share nothing with the engine.

Sources: modeling.py of jinaai/jina-reranker-v3 and -v3.5; castorini/rank_llm, `rank_zephyr_template.yaml`,
`sliding_windows`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SYSTEM = (
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are to "
    "the query. If the query is a question, how relevant a passage is depends on how well it answers the question. If "
    "not, try to analyze the intent of the query and assess how well each passage satisfies the intent. If an "
    "instruction is provided, you should follow the instruction when determining the ranking."
)


class PublishedJinaV3:
    """jina-reranker-v3's `rerank`: one prompt a block, padded by nothing, all of it through the network."""

    def __init__(self, folder: Path, *, block: int = 125, lengths: tuple[int, int] = (512, 2048)) -> None:
        tensors = load_file(folder / "model.safetensors")
        config = Qwen3Config.from_dict(json.loads((folder / "config.json").read_text()))
        self._first, self._second = (tensors.pop(f"projector.{number}.weight") for number in (0, 2))
        self._network = Qwen3ForCausalLM(config).eval()
        self._network.load_state_dict(tensors, strict=False)
        self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        self._max_length, self._block, self._lengths = config.max_position_embeddings, block, lengths
        self._query_token, self._document_token = (
            self._tokenizer.convert_tokens_to_ids(name) for name in ("<|rerank_token|>", "<|embed_token|>")
        )

    def _truncated(self, text: str, most: int) -> tuple[str, int]:
        ids = self._tokenizer(text, truncation=True, max_length=most)["input_ids"]
        return (self._tokenizer.decode(ids) if len(ids) >= most else text), len(ids)

    def scores(self, query: str, documents: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Cosines (N,) in the documents' order."""
        query, query_length = self._truncated(query, self._lengths[0])
        capacity = whole = self._max_length - 2 * query_length
        block: list[str] = []
        queries, vectors, weights = [], [], []

        def flush() -> None:
            found = self._block_vectors(query, block, instruction)
            scores = torch.nn.functional.cosine_similarity(found[:-1], found[-1:], dim=-1)
            queries.append(found[-1].numpy())
            vectors.extend(found[:-1].numpy())
            weights.append(float(((1 + scores) / 2).max()))
            block.clear()

        for text in documents:
            document, length = self._truncated(text, self._lengths[1])
            block.append(document)
            capacity -= length
            if len(block) >= self._block or capacity <= self._lengths[1]:
                flush()
                capacity = whole
        if block:
            flush()
        mean, rows = np.average(queries, axis=0, weights=weights), np.array(vectors)
        return np.asarray(rows @ mean / (np.linalg.norm(rows, axis=1) * np.linalg.norm(mean)))

    @torch.inference_mode()
    def _block_vectors(self, query: str, documents: Sequence[str], instruction: str | None) -> Tensor:
        ids = torch.tensor([self._tokenizer(self.prompt(query, documents, instruction))["input_ids"]])
        hidden = self._network.model(input_ids=ids).last_hidden_state[0]
        kept = torch.cat((hidden[ids[0] == self._document_token], hidden[ids[0] == self._query_token]))
        return torch.relu(kept @ self._first.T) @ self._second.T

    @staticmethod
    def prompt(query: str, documents: Sequence[str], instruction: str | None) -> str:
        for name in ("<|rerank_token|>", "<|embed_token|>"):
            query, documents = query.replace(name, ""), [document.replace(name, "") for document in documents]
        passages = [f'<passage id="{n}">\n{text}<|embed_token|>\n</passage>' for n, text in enumerate(documents)]
        asked = f"<instruct>\n{instruction}\n</instruct>\n" if instruction else ""
        return (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
            f"I will provide you with {len(documents)} passages, each indicated by a numerical identifier. "
            f"Rank the passages based on their relevance to query: {query}\n{asked}" + "\n".join(passages) + "\n"
            f"<query>\n{query}<|rerank_token|>\n</query>"
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )


class PublishedLister:
    """RankLLM's sliding windows; transformers' own `generate`, which may only continue a permutation."""

    def __init__(self, folder: Path, *, window: int = 20, stride: int = 10) -> None:
        self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        self._network = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._window, self._stride = window, stride

    def order(self, query: str, documents: Sequence[str]) -> list[int]:
        """Numbers of the documents, best first."""
        order, end, start = [*range(len(documents))], len(documents), len(documents) - self._window
        while end > 1 and start + self._stride != 0:
            start = max(start, 0)
            part = order[start:end]
            answer = self.answer(query, [documents[number] for number in part]) if len(part) > 1 else [0]
            order[start:end] = [part[place] for place in answer]
            end, start = end - self._stride, start - self._stride
        return order

    @torch.inference_mode()
    def answer(self, query: str, documents: Sequence[str]) -> list[int]:
        """The permutation of a window."""
        ids = self._tokenizer(self.prompt(query, documents), return_tensors="pt")["input_ids"]
        stop = self._tokenizer.convert_tokens_to_ids("<|im_end|>")

        def allowed(_batch: int, tokens: Tensor) -> list[int]:
            return self._following(tokens[ids.shape[1] :].tolist(), len(documents)) or [stop]

        mask = torch.ones_like(ids)
        made = self._network.generate(
            ids, attention_mask=mask, max_new_tokens=12 * len(documents), do_sample=False,
            prefix_allowed_tokens_fn=allowed, eos_token_id=stop, pad_token_id=stop,
        )  # fmt: skip
        text = self._tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        return [int(part.strip(" []")) - 1 for part in text.split(">")]

    def _following(self, tokens: list[int], count: int) -> list[int]:
        """Tokens that continue some permutation: all of them are written out, an identifier after the other."""
        left, first = set(range(1, count + 1)), True
        while left:
            written = {n: self._ids(f"[{n}]" if first else f" > [{n}]") for n in left}
            done = [n for n, ids in written.items() if tokens[: len(ids)] == ids]
            if not done:
                return sorted({ids[len(tokens)] for ids in written.values() if ids[: len(tokens)] == tokens})
            tokens, first = tokens[len(written[done[0]]) :], False
            left.remove(done[0])
        return []

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    @staticmethod
    def prompt(query: str, documents: Sequence[str]) -> str:
        passages = "".join(f"[{n}] {' '.join(text.split())}\n" for n, text in enumerate(documents, 1))
        return (
            "<|im_start|>system\nYou are RankLLM, an intelligent assistant that can rank passages based on their "
            f"relevancy to the query<|im_end|>\n<|im_start|>user\nI will provide you with {len(documents)} passages, "
            "each indicated by a numerical identifier []. Rank the passages based on their relevance to the search "
            f"query: {query}.\n{passages}Search Query: {query}.\nRank the {len(documents)} passages above based on "
            "their relevance to the search query. All the passages should be included and listed using identifiers, "
            "in descending order of relevance. The output format should be [] > [], e.g., [2] > [1], Answer concisely "
            "and directly and only respond with the ranking results, do not say any word or explain.<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
