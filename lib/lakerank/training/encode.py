"""Rows of a lake as sequences of the model: tokenised once, pictures as placeholders for their visual tokens."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from lakerank.model.jina_m0.prompt import DOCUMENT_PREFIX, DOCUMENT_SUFFIX, QUERY_PREFIX
from lakerank.training.sequences import Side, mrope_positions
from lakerank.training.tables import Items, TrainingLake

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """The ids that the prompt is made of."""

    vision_start: int
    vision_end: int
    image_pad: int
    padding: int
    score: int


def prompt_vocabulary(config: Any, score_token_id: int) -> Vocabulary:
    """The ids that a network's config names; whatever pads is never attended to."""
    padding = config.text_config.pad_token_id
    return Vocabulary(
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        image_pad=config.image_token_id,
        padding=0 if padding is None else padding,
        score=score_token_id,
    )


class Encoder:
    """Builds sides. `token_side` is the side in pixels of what one visual token covers."""

    def __init__(
        self, tokenizer: Any, vocabulary: Vocabulary, token_side: int, max_text_tokens: tuple[int, int]
    ) -> None:
        """`max_text_tokens` of a document and of a query bound the work of a step: the end of a longer text is cut."""
        self._tokenizer = tokenizer
        self.vocabulary = vocabulary
        self._token_side = token_side
        self._max_text_tokens = max_text_tokens

    def documents(self, lake: TrainingLake) -> list[Side]:
        """Prefixes, from the prompt's head to the newline after the document."""
        return self._sides(lake, lake.documents, DOCUMENT_PREFIX, DOCUMENT_SUFFIX, [], self._max_text_tokens[0])

    def queries(self, lake: TrainingLake) -> list[Side]:
        """Suffixes, from the query's head to the score token."""
        return self._sides(lake, lake.queries, QUERY_PREFIX, "", [self.vocabulary.score], self._max_text_tokens[1])

    def _sides(
        self, lake: TrainingLake, items: Items, head: str, tail: str, closing: list[int], most: int
    ) -> list[Side]:
        texts = [text or "" for text in items.texts]
        whole = self._tokenise([head + text + tail for text in texts])
        head_ids, tail_ids = self._tokenise([head])[0], self._tokenise([tail])[0] if tail else []
        words = self.vocabulary
        sides, shortened = [], 0
        for row, ids in enumerate(whole):
            picture = int(items.pictures[row])
            if len(ids) > len(head_ids) + most + len(tail_ids):
                ids = [*ids[: len(head_ids) + most], *tail_ids]
                shortened += 1
            grid = (0, 0)
            if picture >= 0:  # image first, then what text there is
                _, height, width = lake.pixels[picture].shape
                grid = (height // self._token_side, width // self._token_side)
                image = [words.vision_start, *[words.image_pad] * (grid[0] * grid[1]), words.vision_end]
                ids = [*head_ids, *image, *(ids[len(head_ids) :] if texts[row] else tail_ids)]
            array = np.array([*ids, *closing], dtype=np.int64)
            positions, following = mrope_positions(array, words.image_pad, grid)
            body = (len(head_ids), len(ids) - len(tail_ids))
            sides.append(Side(array, positions, following, picture, body))
        if shortened:
            log.warning("%d of %d texts are cut after %d tokens", shortened, len(texts), most)
        return sides

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        """A special token spelled out in a text stays text."""
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids
