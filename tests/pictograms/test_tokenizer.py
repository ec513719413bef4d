"""Tokenizers that other programs read, and that split text for them into the same tokens."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lakerank.model.checkpoint import EMBEDDED, read_json
from lakerank_pictograms.curriculum.initialise import save_tokenizer, train_tokenizer

TEXTS = (
    "  A red square's 12.5% …\n\n\tI'LL",
    "हिन्दी वर्ग 中文 e\u0301 ﬁ",
    "<|vision_start|><|image_pad|><|vision_end|>",
)


@pytest.fixture(params=["bundled", "trained"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "bundled":
        return EMBEDDED
    save_tokenizer(train_tokenizer(TEXTS, 400), tmp_path)
    return tmp_path


def test_transformers_reads_the_folder_and_encodes_as_its_tokenizer_json_says(folder: Path) -> None:
    stored, loaded = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert loaded(text)["input_ids"] == stored.encode(text).ids
    assert len(loaded) == stored.get_vocab_size()
    assert loaded.pad_token == "<|endoftext|>"


def test_the_class_is_one_that_transformers_4_has_too(folder: Path) -> None:
    """vLLM may come with it: there TokenizersBackend is unknown, and a Qwen2-VL processor takes only Qwen2's."""
    assert read_json(folder / "tokenizer_config.json")["tokenizer_class"] == "Qwen2TokenizerFast"
