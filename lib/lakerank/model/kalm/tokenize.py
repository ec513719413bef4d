"""Documents to an encoder's token ids, queries to a decoder's.

A text that names a special token, such as `<end_of_turn>`, is read as the token, as the published loop does.
"""

from __future__ import annotations

from functools import partial
from itertools import takewhile

import numpy as np

from lakerank.errors import CheckpointError
from lakerank.limits import Limits
from lakerank.model.inputs import EncodedInput, Images, RejectedInput
from lakerank.model.kalm.config import KalmSettings
from lakerank.model.preprocess.tokenizer import TextTokenizer, text_positions
from lakerank.records import RejectReason


class KalmTokenizer:
    """Encodes documents and queries. Safe to call from several threads.

    `window`: tokens that a decoder's prompt may have, so that its last one sees them all; a longer query is cut.
    `preamble`: the token ids that every prompt begins with.

    Raises CheckpointError: the tokenizer is not the prompt's.
    """

    def __init__(self, text: TextTokenizer, settings: KalmSettings, limits: Limits, window: int, source: str) -> None:
        self._text, self._settings, self._window = text, settings, window
        self._query_tokens = limits.max_query_length
        self._document_tokens = limits.max_length - limits.max_query_length
        probes = [text.encode(settings.prompt("a", instruction)) for instruction in (None, "1", "\n", "é", '"')]
        shared = takewhile(lambda ids: len({*ids}) == 1, zip(*probes, strict=False))
        self.preamble = np.array([ids[0] for ids in shared], dtype=np.int64)
        names = ("<bos>", "<start_of_turn>", "<end_of_turn>", "yes", "no")
        tokens = {name: text.encode(name) for name in names}
        faults = [f"{name} is no token" for name, ids in tokens.items() if len(ids) != 1]
        if len(probes[0]) > window:
            faults.append(f"the prompt has {len(probes[0])} tokens, and its last one sees {window}")
        if faults:
            raise CheckpointError(f"{source}: tokenizer.json is not this reranker's: {', '.join(faults)}")
        self.yes, self.no = tokens["yes"][0], tokens["no"][0]

    def document(self, text: str | None, images: Images = ()) -> EncodedInput:
        """A document's tokens. Raises RejectedInput: empty, or not Unicode."""
        content = self._settings.document + _content(text, RejectReason.EMPTY_DOCUMENT)
        ids = self._text.first(content, self._document_tokens)[0]
        kept = np.array(ids[: self._document_tokens], dtype=np.int64)
        return EncodedInput(kept, text_positions(0, len(kept)), 0, truncated=len(kept) < len(ids))

    def query(self, text: str | None, images: Images = (), instruction: str | None = None) -> EncodedInput:
        """A query's tokens after the preamble. Raises RejectedInput: empty, or not Unicode."""
        ids = self._text.first(_content(text, RejectReason.EMPTY_QUERY), self._query_tokens)[0]
        kept = self._text.decode(ids[: self._query_tokens])
        prompt = partial(self._settings.prompt, instruction=instruction)
        if len(self._text.encode(prompt("a"))) > self._window:
            raise RejectedInput(RejectReason.INPUT_TOO_LONG, f"its instruction fills all {self._window} tokens")
        whole, cut = self._text.fit(kept, self._window, lambda body: self._text.encode(prompt(body)))
        shared, end = len(self.preamble), len(whole)
        if whole[:shared] != self.preamble.tolist():
            raise RejectedInput(RejectReason.TEXT_UNDECODABLE, "its instruction joins the prompt before it")
        truncated = cut or len(ids) > self._query_tokens
        own = np.array(whole[shared:], dtype=np.int64)
        return EncodedInput(own, text_positions(shared, len(own)), end, truncated=truncated)


def _content(text: str | None, empty: RejectReason) -> str:
    if text is None or not text.strip():
        raise RejectedInput(empty, "no text")
    return text
