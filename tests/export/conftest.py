"""Ranked lists whose ids try every format, and the servers that exports are fed to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lakerank.export.format import ExportList, Target
from lakerank.export.job import FORMATS
from lakerank.records import RankedDocument

#: Ids as lakes have them: quotes, line ends, tabs, separators, other scripts, escapes, and as long as an index takes.
IDS = (
    "plain-1",
    'say "no", it\'s',
    "two\nlines",
    "carriage\r\nreturn",
    "tab\there",
    "a b  c",
    "100%25 %",
    "# not a comment",
    "back\\slash \\n",
    "<tag>&amp;{json: [1]}",
    "日本語の文書",
    "وثيقة عربية",
    "कख्ग",
    "e\u0301 \u00a0\u2028\u3000 wide",
    "😀👩‍👩‍👧",
    "é" * 256,
)


def make_list(query: str, documents: Sequence[str], seed: int, number: int = 0) -> ExportList:
    """A list in the order of random logits, with a tie, as ranked/ would hold it."""
    logits = np.sort(np.random.default_rng(seed).normal(0, 2, len(documents)).astype(np.float32))[::-1].copy()
    logits[1:2] = logits[:1]
    rows = tuple(
        RankedDocument(
            query_id=query,
            doc_id=document,
            rank=rank,
            logit=float(logit),
            relevance=float(np.float32(1 / (1 + np.exp(-logit)))),
            label=int(logit > 0) + int(logit > 1),
            first_stage_rank=None if rank % 3 == 0 else 100 - rank,
            truncated=rank % 2 == 0,
        )
        for rank, (document, logit) in enumerate(zip(documents, logits, strict=True), start=1)
    )
    return ExportList(query, rows, number)


@pytest.fixture(scope="session")
def lists() -> list[ExportList]:
    """A list a hostile id, of all hostile ids, numbered as the queries of a run are."""
    return [make_list(query, [*IDS[seed:], *IDS[:seed]], seed, seed + 1) for seed, query in enumerate(sorted(IDS))]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(format, lists, name=None)`: the file that a format makes of lists."""

    def written(form: str, lists: Sequence[ExportList], **target: str) -> Path:
        created = FORMATS[form](Target(**target))
        path = tmp_path / f"part-0{created.suffix}"
        path.write_bytes(created.finish([created.encode(ranking) for ranking in lists]))
        return path

    return written
