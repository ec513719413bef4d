"""An image whose decoding kills its process twice is a reject, and the job goes on."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lakerank.lake.storage import Storage
from lakerank.model.inputs import EncodedInput, RejectedInput
from lakerank.model.preprocess.images import PatchShape
from lakerank.model.preprocess.pipeline import Preprocessor
from lakerank.model.registry import CheckpointIdentity
from lakerank.records import Document, DocumentGroup, Reject, ScoredPair
from lakerank.rerank.attempts import attempt
from lakerank.rerank.run import run
from lakerank.runner import LocalRunner

COLOURS = ("black", "red", "lime", "blue", "white")


def picture(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(stream, "PNG")
    return stream.getvalue()


DEADLY = picture("lime")


class Deadly(bytes):
    """An image that takes more memory than there is."""

    def startswith(self, *args: Any) -> bool:
        os.kill(os.getpid(), signal.SIGKILL)
        return False


class FewTokens:
    def document(self, text: str | None, images: Any = (), instruction: None = None) -> EncodedInput:
        return EncodedInput(np.zeros(3, np.int64), np.zeros((3, 3), np.int64), 3, tuple(images))

    query = document


@dataclass
class DecodingReranker:
    """Decodes images as models do, and dies of one; the logit is the place of its colour."""

    dies: bool
    counters: Any = field(default_factory=lambda: SimpleNamespace(computed=0, pairwise=0))

    def score_groups(self, groups: Iterable[DocumentGroup]) -> Iterator[ScoredPair | Reject]:
        preprocessor = Preprocessor(FewTokens(), CheckpointIdentity("", "", 0, 0), PatchShape(), threads=3)
        for prepared in preprocessor.prefetch(map(self._armed, groups), 1000):
            document = prepared.group.document
            for query in prepared.group.queries:
                if isinstance(prepared.document, RejectedInput):
                    yield Reject(query.query_id, document.doc_id, prepared.document.reason, prepared.document.detail)
                else:
                    yield ScoredPair(query.query_id, document.doc_id, 1.0, 3, 3, False, False)

    def _armed(self, group: DocumentGroup) -> DocumentGroup:
        document = group.document
        if self.dies and document.image == DEADLY:
            return DocumentGroup(Document(document.doc_id, document.text, Deadly(DEADLY)), group.queries)
        return group


@dataclass(frozen=True)
class DecodingFactory:
    dies: bool = True

    def __call__(self, device: str) -> DecodingReranker:
        return DecodingReranker(self.dies)


def reranked(folder: str, tests: str) -> None:
    sys.path.insert(0, tests)
    from conftest import Lake

    run(LocalRunner(), Storage(), Lake(Path(folder)).job("r", factory=DecodingFactory()))


@pytest.mark.nightly
def test_an_image_that_kills_its_process_twice_is_rejected(lake: Any, storage: Storage) -> None:
    lake.write("documents", [{"doc_id": colour, "text": None, "image": picture(colour)} for colour in COLOURS])
    lake.write("queries", [{"query_id": "q", "text": "a colour", "image": None}])
    lake.write("candidates", [{"query_id": "q", "doc_id": colour} for colour in COLOURS])
    place = (str(lake.folder), str(Path(__file__).parent))
    for _ in range(2):
        process = multiprocessing.get_context("spawn").Process(target=reranked, args=place)
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    summary = run(LocalRunner(), storage, lake.job("r", factory=DecodingFactory()))
    assert (summary["scored"], summary["rejected"]) == (len(COLOURS) - 1, 1)
    (reject,) = lake.rejected("r")
    assert (reject["doc_id"], reject["reason"]) == ("lime", "out_of_memory")
    assert "two processes were killed" in reject["detail"]
    assert not [*(lake.folder / "out" / "runs").rglob("attempts/*")], "nothing is left of attempts"
    again = run(LocalRunner(), storage, lake.job("r2", factory=DecodingFactory(dies=False)))
    assert (again["reused"], again["scored"], again["rejected"]) == (len(COLOURS) - 1, 1, 0)


def test_attempts_that_end_by_themselves_are_not_held_against_the_next(tmp_path: Path, storage: Storage) -> None:
    folder = str(tmp_path)
    for error in (KeyboardInterrupt, ValueError):
        try:
            with attempt(storage, folder, "u"):
                raise error
        except (KeyboardInterrupt, ValueError):
            pass
    assert not [*(tmp_path / "attempts").iterdir()]
