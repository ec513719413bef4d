"""Whether a passage holds an answer: the string heuristics of open-domain question answering, as MKQA is judged.

Source: `C_MTEB/MKQA/utils/evaluation.py` and `normalize_text.py` in github.com/FlagOpen/FlagEmbedding, which are
Contriever's and DPR's.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from lakerank.errors import DependencyError

#: Characters of one kind are written as one of them before passages are searched.
_SPELLINGS = {
    "-": "‐‑⁃‒–—―−－⁻",
    '"': "“”„‟",
    "'": "‘’‚‛՚Ꞌꞌ＇`´′‵",
    "''": "″‶",
    "'''": "‴‷",
    "''''": "⁗",
    "...": "…",
    "/": "⁄∕",
    " ": "\x0b\x0c\x85",
    "": "\xad" + "".join(map(chr, (*range(0x01, 0x09), 0x0E, 0x0F, *range(0x11, 0x1C)))),
}
_TABLE = {ord(character): written for written, characters in _SPELLINGS.items() for character in characters}

#: Stands between tokens; a control character is in none.
_BETWEEN = "\x1f"


class AnswerMatcher:
    """Finds answers in passages as runs of tokens: words of letters, digits and marks, and single other characters."""

    def __init__(self) -> None:
        """Raises DependencyError when `regex` is not installed."""
        try:
            import regex
        except ImportError as error:
            raise DependencyError("judging by answers needs regex: pip install 'lakerank[ingest]'") from error
        self._tokens = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")

    def passage(self, text: str) -> str:
        """A passage, ready to be searched."""
        written = text.lower().translate(_TABLE).replace(" . . . ", " ... ")
        return self._joined(written)

    def answer(self, text: str) -> str:
        """An answer, ready to be looked for."""
        return self._joined(text)

    def holds(self, passage: str, answers: Sequence[str]) -> bool:
        """Whether a passage holds one of the answers, both made ready. An answer without tokens is in every passage."""
        return any(answer == _BETWEEN or answer in passage for answer in answers)

    def _joined(self, text: str) -> str:
        tokens = self._tokens.findall(unicodedata.normalize("NFD", text))
        return _BETWEEN.join(["", *(token.lower() for token in tokens), ""]) if tokens else _BETWEEN
