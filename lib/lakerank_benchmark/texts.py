"""Texts of a given number of tokens, made of common words: reproducible, and of no language model's making."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from tokenizers import Tokenizer

WORDS = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which
one you were all her she there would their we him been has when who will no more if out so up said what its
about than into them can only other time new some could these two may first then do any like my now over such
our man even most made after also did many off before must well back through years much where your way down
should because long each just state those people too how little good world make very year still see own work men
day get here old between both life being under three never know same last another while us might great house
right part against place high during small water number system file install disk partition network kernel memory
screen keyboard letter report price market contract table figure value result method energy weather train bridge
river window paper colour music garden doctor school history science language travel ticket engine battery
machine software server address
""".split()  # noqa: SIM905 - 21 lines, not 250


#: Skewed lengths: the median and spread of log-normal token counts, and where they are cut.
MEDIAN, SIGMA, SHORTEST, LONGEST = 300, 1.1, 20, 4000


def text_of(tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """A text of `tokens` tokens, as nearly as a cut between two tokens leaves it."""
    drawn = np.random.default_rng(seed).zipf(1.3, size=tokens * 2)
    text = " ".join(WORDS[int(rank - 1) % len(WORDS)] for rank in drawn)
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    return text[: offsets[min(tokens, len(offsets)) - 1][1]]


def skewed_lengths(count: int, seed: int = 0) -> Sequence[int]:
    """`count` log-normal token counts: one of each quantile, in random order, so that few say what many would."""
    normal = NormalDist()
    lengths = [MEDIAN * np.exp(SIGMA * normal.inv_cdf((place + 0.5) / count)) for place in range(count)]
    clipped = np.clip(np.round(lengths), SHORTEST, LONGEST).astype(int)
    return [int(length) for length in np.random.default_rng(seed).permutation(clipped)]
