"""Images and pairs for tests of the model package."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lakerank.records import Document, Query


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, far slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_image() -> Callable[..., bytes]:
    """`make_image(width, height, seed=0, mode="RGB", image_format="PNG")`: noise, encoded."""

    def make(
        width: int, height: int, seed: int = 0, mode: str = "RGB", image_format: str = "PNG", **options: Any
    ) -> bytes:
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(stream, image_format, **options)
        return stream.getvalue()

    return make


@pytest.fixture(scope="session")
def mixed_pairs(make_image: Callable[..., bytes]) -> list[tuple[Query, Document]]:
    """Every combination of text, image and both, of different sizes, in several scripts."""
    queries = [
        Query("q-text", text="red apple"),
        Query("q-long", text="Красное яблоко " * 12),
        Query("q-image", image=make_image(90, 60, seed=1)),
        Query("q-both", text="赤いりんご", image=make_image(56, 140, seed=2)),
    ]
    documents = [
        Document("d-text", text="A red apple lies on the table.\n\n"),
        Document("d-arabic", text="تفاحة حمراء على الطاولة. " * 20),
        Document("d-image", image=make_image(200, 120, seed=3)),
        Document("d-both", text="Der rote Apfel", image=make_image(64, 64, seed=4, mode="L")),
        Document("d-pages", text="Äpfel", images=(make_image(64, 90, seed=5), make_image(120, 60, seed=6))),
    ]
    return [(query, document) for query in queries for document in documents]
