"""sentence-transformers' CrossEncoder on the same weights, where it can load them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lakerank.model.checkpoint import locate
from lakerank.records import DocumentGroup
from lakerank_benchmark.runs import CannotRun, Run
from lakerank_benchmark.workloads import pairs_of


class SentenceTransformersCrossEncoder:
    """Texts alone, sorted by length and padded a batch, as that library does."""

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self._model = model

    def run(self, groups: Sequence[DocumentGroup]) -> Run:
        """Score every pair once.

        Raises:
            CannotRun: a document is an image.
        """
        pairs = pairs_of(groups)
        if any(document.image is not None or query.image is not None for query, document in pairs):
            raise CannotRun("texts alone")
        started = time.perf_counter()
        self._model.predict([(document.text, query.text) for query, document in pairs], show_progress_bar=False)
        return Run(time.perf_counter() - started, len(pairs), 0, 0, 0.0)


def load_cross_encoder(name: str, checkpoint: str, dtype: str, device: str) -> SentenceTransformersCrossEncoder:
    """Load as its documentation says, running no code of the checkpoint.

    Raises:
        CannotRun: says why.
    """
    try:
        from sentence_transformers import CrossEncoder  # type: ignore[import-not-found]
    except ImportError as error:
        raise CannotRun(f"not installed ({error})") from error
    try:
        model = CrossEncoder(
            str(locate(checkpoint)), device=device, model_kwargs={"dtype": dtype}, local_files_only=True
        )
    except Exception as error:  # a library's own errors, and those of everything it calls
        said = str(error).splitlines()[0] if str(error) else ""
        raise CannotRun(f"cannot load these weights: {type(error).__name__}: {said}"[:240]) from error
    return SentenceTransformersCrossEncoder(name, model)
