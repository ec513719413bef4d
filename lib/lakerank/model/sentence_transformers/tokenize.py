"""Queries and documents as the library is given them: texts and pixels, of which it makes one sequence a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lakerank.model.inputs import EncodedInput, Images, RejectedInput
from lakerank.records import RejectReason

#: Characters, or pixels of an image, that a token covers, roughly.
_CHARACTERS, _PIXELS = 4, 28 * 28


@dataclass(frozen=True, slots=True)
class RawInput(EncodedInput):
    """A query or document that is not tokenised: `token_ids` has as many zeros as it will have tokens, roughly.

    `instruction`: what the library calls a prompt; None: the checkpoint's default.
    """

    text: str | None = None
    instruction: str | None = None

    def content(self, structured: bool) -> Any:
        """The text; where `structured`, a dict of images and text: in a plain text the library looks for addresses."""
        images = [Image.fromarray(image.pixels.reshape(*image.grid, 3)) for _, image in self.images]
        parts: dict[str, Any] = {"image": images[0] if len(images) == 1 else images} if images else {}
        return (parts if self.text is None else parts | {"text": self.text}) if structured else self.text


class InputReader:
    """Documents and queries as they are. Both raise RejectedInput: it is empty."""

    def document(self, text: str | None, images: Images = ()) -> RawInput:
        """A document; images are "patches" of one pixel."""
        return self._read(text, images, RejectReason.EMPTY_DOCUMENT)

    def query(self, text: str | None, images: Images = (), instruction: str | None = None) -> RawInput:
        """A query, likewise."""
        return self._read(text, images, RejectReason.EMPTY_QUERY, instruction)

    def _read(self, text: str | None, images: Images, empty: RejectReason, instruction: str | None = None) -> RawInput:
        pixels, plain = tuple(images), text if text and text.strip() else None
        if plain is None and not pixels:
            raise RejectedInput(empty, "neither text nor image")
        tokens = 1 + len(plain or "") // _CHARACTERS + sum(len(image.pixels) // _PIXELS for _, image in pixels)
        zeros = np.zeros(tokens, dtype=np.int64)
        return RawInput(zeros, np.empty((3, 0), dtype=np.int64), 0, pixels, text=plain, instruction=instruction)
