"""Queries and documents as the library is given them: texts and pixels, which it makes one sequence of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from lakerank.model.inputs import EncodedInput, Images, Patches, RejectedInput
from lakerank.model.preprocess.images import PatchShape
from lakerank.model.preprocess.tokenizer import TextTokenizer
from lakerank.records import RejectReason

#: An image whole: "patches" of one pixel.
PIXELS = PatchShape(side=1, merge=1)

#: Pixels that a visual token covers in the models of today, roughly: micro-batches are sized by it.
_PIXELS_PER_TOKEN = 28 * 28

_NO_POSITIONS = np.empty((3, 0), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class RawInput(EncodedInput):
    """A query or document before the library tokenises it with the other of its pair.

    `token_ids` are the text's, for sizes alone. `instruction`: what the library calls a prompt; None: its default.
    """

    text: str | None = None
    instruction: str | None = None

    @property
    def size(self) -> int:
        """Tokens that it takes, roughly."""
        visual = sum(image.pixels.size // 3 // _PIXELS_PER_TOKEN + 2 for _, image in self.images)
        return len(self.token_ids) + visual

    def content(self, structured: bool) -> Any:
        """The library's form of it: a dict of an image and a text where `structured`, else the text.

        As a dict a text that looks like an address or a path stays a text: the library would read an image there.
        """
        if not structured:
            return self.text
        images = [as_image(image) for _, image in self.images]
        parts: dict[str, Any] = {"image": images[0] if len(images) == 1 else images} if images else {}
        return parts if self.text is None else parts | {"text": self.text}


def as_image(image: Patches) -> Image.Image:
    """The picture that patches of one pixel are."""
    return Image.fromarray(image.pixels.reshape(*image.grid, 3))


class InputReader:
    """Reads documents and queries; a text is kept as far as a pair can hold. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self._text, self._length = TextTokenizer(tokenizer), max_length

    def document(self, text: str | None, images: Images = ()) -> RawInput:
        """A document. Raises RejectedInput: it is empty, or not Unicode."""
        return self._read(text, images, None, RejectReason.EMPTY_DOCUMENT)

    def query(self, text: str | None, images: Images = (), instruction: str | None = None) -> RawInput:
        """A query. Raises RejectedInput: it is empty, or not Unicode."""
        return self._read(text, images, instruction, RejectReason.EMPTY_QUERY)

    def _read(self, text: str | None, images: Images, instruction: str | None, empty: RejectReason) -> RawInput:
        pixels = tuple(images)
        if not pixels and not (text and text.strip()):
            raise RejectedInput(empty, "neither text nor image")
        plain = text if text and text.strip() else None
        ids, start = ([], None) if plain is None else self._text.first(plain, self._length)
        kept = np.array(ids[: self._length], dtype=np.int64)
        cut = len(kept) < len(ids)
        return RawInput(kept, _NO_POSITIONS, len(kept), pixels, cut, text=start, instruction=instruction)
