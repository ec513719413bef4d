"""Overlapping windows over a document that is longer than a sequence has room for."""

from __future__ import annotations

#: Tokens that a window shares with the one before it.
OVERLAP = 80


def windows(tokens: int, room: int, overlap: int = OVERLAP) -> list[tuple[int, int]]:
    """(start, stop) of each window of at most `room` tokens on a document of `tokens`, from its start to its end.

    Neighbours share `overlap` tokens, or a quarter of the room where that is less; the last window is moved back until
    it is as long as the others, and so may share more. A document that fits is one window.

    Source: jinaai/jina-reranker-v2-base-multilingual, `modeling_xlm_roberta.py`, `reranker_tokenize_preproc`.
    """
    if tokens <= room:
        return [(0, tokens)]
    step = room - min(overlap, room // 4)
    starts = range(0, tokens - room, step)
    return [*((start, start + room) for start in starts), (tokens - room, tokens)]
