"""Texts of a lake in a terminal: in one line, of so many cells, without characters that a terminal would execute."""

from __future__ import annotations

import re

from rich.cells import cell_len, set_cell_size

#: Control and bidirectional characters, which a terminal would execute.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]+")


def one_line(text: str) -> str:
    """A text without line breaks and without characters that a terminal would execute."""
    return " ".join(_CONTROL.sub(" ", text).split())


def fit(text: str, cells: int, pad: bool = False) -> str:
    """Cut a text to so many terminal cells, with an ellipsis; `pad` adds spaces up to them."""
    if cell_len(text) > cells:
        text = set_cell_size(text, cells - 1).rstrip() + "…"
    return set_cell_size(text, cells) if pad else text
