"""Similarity of documents and queries by where layer `tap` looks, and its contrastive loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lakerank.model.engine.elementwise.plain import rotate
from lakerank_training.losses import symmetric_listnet
from lakerank_training.model import PairForward

#: Heads' log odds are summed and divided by the root of so many times the heads: what is alike is then as similar with
#: many narrow heads as with few wide ones.
SIMILARITY_SPREAD = 1.5


@dataclass(frozen=True)
class TapStates:
    """What enters layer `tap`."""

    documents: Tensor  # (D, H) at each document's last token
    document_positions: Tensor  # (3, D)
    pairs: Tensor  # (P, S, H) at the tokens of each pair's query
    pair_positions: Tensor  # (3, P, S)
    ends: Tensor  # (P,) which of them is the score token: the last that is no padding
    scores: Tensor  # (P, H) at that one

    @classmethod
    def of(cls, forward: PairForward) -> TapStates:
        """Of a forward pass that has come to the layer."""
        lasts = forward.documents.lengths - 1
        ends = (torch.arange(len(lasts), device=lasts.device), lasts)
        documents, positions = forward.prefix[ends], forward.documents.positions[:, *ends]
        return cls(documents, positions, forward.hidden, forward.positions, forward.score_places, forward.score_states)


def similarities(text: Any, tap: int, states: TapStates, pairs: Tensor) -> Tensor:
    """Similarity of documents and some pairs' queries (D, Q): whether the score token looks at the document's end.

    It is the log odds of layer `tap`'s attention, head by head, that token against all of the query's own. So the
    contrastive loss teaches where that layer looks: away from the query where, and only where, a document matches.
    """
    layer = text.layers[tap]
    attention = layer.self_attn
    every = torch.arange(len(pairs), device=pairs.device)
    hidden, positions, ends = states.pairs[pairs], states.pair_positions[:, pairs], states.ends[pairs]
    read = layer.input_layernorm(hidden)  # (Q, S, H)
    queries = _heads(attention.q_proj(read[every, ends]), attention.head_dim)
    queries = _rotated(text, queries, positions[:, every, ends]).float()
    documents = _heads(attention.k_proj(layer.input_layernorm(states.documents)), attention.head_dim)
    documents = _rotated(text, documents, states.document_positions).float()
    keys = _heads(attention.k_proj(read).flatten(0, 1), attention.head_dim)
    keys = _rotated(text, keys, positions.flatten(1)).float()
    keys = keys.view(*hidden.shape[:2], *keys.shape[1:])  # (Q, S, key heads, d)
    group = queries.shape[1] // documents.shape[1]
    document = torch.einsum("dhe,qhe->dqh", documents.repeat_interleave(group, dim=1), queries) * attention.scaling
    itself = torch.einsum("qshe,qhe->qsh", keys.repeat_interleave(group, dim=2), queries) * attention.scaling
    padding = torch.arange(hidden.shape[1], device=ends.device) > ends.unsqueeze(1)  # (Q, S)
    itself = itself.masked_fill(padding.unsqueeze(-1), float("-inf")).logsumexp(1)  # (Q, heads)
    similarity: Tensor = (document - itself).sum(-1) / (SIMILARITY_SPREAD * queries.shape[1]) ** 0.5
    return similarity


def _heads(states: Tensor, width: int) -> Tensor:
    return states.view(len(states), -1, width)  # (B, heads, d)


def _rotated(text: Any, states: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of (B, heads, d) at positions (3, B)."""
    tables = text.rotary_emb(states, positions.unsqueeze(1))  # cosines and sines (1, B, d), both halves of d alike
    return rotate(states, torch.stack([table[0, :, None].chunk(2, dim=-1)[0] for table in tables]))


def contrastive_softmax(log_odds: Tensor, grades: Tensor, known: Tensor) -> Tensor:
    """ListNet in both directions where looking at no document, whose log odds are 0, competes too.

    So what matches is found, and not only found sooner than what does not.
    """
    nowhere = (0, 0, 0, 1)  # a document more: (D, Q) -> (D + 1, Q)
    return symmetric_listnet(F.pad(log_odds, nowhere), F.pad(grades, nowhere), F.pad(known, nowhere, value=True))
