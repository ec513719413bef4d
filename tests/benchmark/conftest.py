"""Page images, pictograms and a next-to-nothing network for the benchmark's tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lakerank.model.registry import M0
from lakerank_benchmark.checkpoints import SHAPES, random_checkpoint
from lakerank_benchmark.workloads import Images


def _small_jpegs(width: int, height: int) -> Images:
    def make(count: int) -> Sequence[bytes]:
        files = []
        for seed in range(min(count, 8)):
            stream = io.BytesIO()
            noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(noise).save(stream, "JPEG")
            files.append(stream.getvalue())
        return files

    return make


@pytest.fixture(scope="session")
def small_pages() -> Images:
    """Pages of 12 visual tokens."""
    return _small_jpegs(84, 112)


@pytest.fixture(scope="session")
def small_pictograms() -> Images:
    """Pictures of 4 visual tokens."""
    return _small_jpegs(56, 56)


@pytest.fixture(scope="session")
def tiny_shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with the bundled tokenizer."""
    return random_checkpoint(tmp_path_factory.mktemp("shapes"), M0, SHAPES["tiny"], "float32")
