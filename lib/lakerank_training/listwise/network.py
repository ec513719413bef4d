"""jina-reranker-v3's architecture in a small size, and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3Config, Qwen3Model

from lakerank.model.checkpoint import EMBEDDED
from lakerank_training.model import PrefixCache, causal_mask

#: Tokens behind each document and behind the query, whose states are read; the bundled tokenizer lacks them.
DOCUMENT_TOKEN, QUERY_TOKEN = "<|embed_token|>", "<|rerank_token|>"


class ListNetwork(nn.Module):
    """A decoder, and the projector of its states behind documents and the query."""

    def __init__(self, config: Qwen3Config, projected: int) -> None:
        super().__init__()
        self.config = config
        self.model = Qwen3Model(config)
        hidden = config.hidden_size
        self.projector = nn.Sequential(
            nn.Linear(hidden, 2 * projected, bias=False), nn.ReLU(), nn.Linear(2 * projected, projected, bias=False)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of all weights."""
        dtype: torch.dtype = self.model.embed_tokens.weight.dtype
        return dtype

    def forward(self, prompts: Sequence[Tensor], documents: int, ends: tuple[int, int]) -> Tensor:
        """Cosines (B, D) of prompts that hold D documents each. `ends`: ids of DOCUMENT_TOKEN and QUERY_TOKEN.

        What all prompts begin with is computed once.
        """
        lead = _common(prompts, ends[0])
        ids = pad_sequence([prompt[lead:] for prompt in prompts], batch_first=True)  # (B, L)
        embed = self.model.embed_tokens
        first, rest = embed(prompts[0][None, :lead]), embed(ids)
        length, device = lead + ids.shape[1], ids.device
        cosine, sine = self.model.rotary_emb(first, torch.arange(length, device=device)[None])
        rotary = [(cosine[:, part], sine[:, part]) for part in (slice(lead), slice(lead, None))]
        mask = causal_mask(length, first)
        masks = mask[..., :lead, :lead], mask[..., lead:, :]
        rows = torch.zeros(len(ids), dtype=torch.long, device=device)
        for layer in self.model.layers:
            cache = PrefixCache(rows)
            first = layer(first, attention_mask=masks[0], position_embeddings=rotary[0], past_key_values=cache)
            rest = layer(rest, attention_mask=masks[1], position_embeddings=rotary[1], past_key_values=cache)
        of_documents = rest[ids == ends[0]].view(len(ids), documents, -1)  # (B, D, H)
        of_queries = rest[ids == ends[1]].unsqueeze(1)  # (B, 1, H)
        states = self.model.norm(torch.cat([of_documents, of_queries], dim=1))
        vectors = F.normalize(self.projector(states).float(), dim=-1)
        return (vectors[:, :-1] * vectors[:, -1:]).sum(-1)


def _common(prompts: Sequence[Tensor], end: int) -> int:
    """How many tokens all prompts begin with, at most those before the end of a first document."""
    most = min(int((prompt == end).nonzero()[0]) for prompt in prompts)
    same = torch.stack([prompt[:most] == prompts[0][:most] for prompt in prompts]).all(0)
    return int(same.long().cumprod(0).sum())


def write_tokenizer(folder: Path) -> None:
    """The bundled tokenizer with the prompt's tokens."""
    stored = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
    added = stored["added_tokens"]
    size = len(stored["model"]["vocab"]) + len(added)
    for number, name in enumerate((DOCUMENT_TOKEN, QUERY_TOKEN), size):
        added.append(added[0] | {"content": name, "special": True, "id": number})
    (folder / "tokenizer.json").write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
