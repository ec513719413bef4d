"""Training reads a side exactly as scoring does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lakerank.limits import Limits
from lakerank.model.inputs import Patches
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.tokenize import PromptTokenizer, read_special_tokens
from lakerank.model.preprocess.tokenizer import read_tokenizer
from lakerank.training.config import load_train_config
from lakerank.training.run import read_material
from lakerank.training.start import begin


def test_sides_are_those_of_scoring(training_config: Callable[..., Path], tiny_checkpoint: Path) -> None:
    config = load_train_config(training_config(start={"path": str(tiny_checkpoint)}))
    material = read_material(config, begin(config, [], 2.65, 100))
    settings = read_settings(tiny_checkpoint)
    special = read_special_tokens(tiny_checkpoint, settings)
    scoring = PromptTokenizer(read_tokenizer(tiny_checkpoint / "tokenizer.json"), special, Limits(), 2)
    image = Patches(np.zeros((16, 1176), np.float32), (4, 4))
    for row in (0, 1, 2, 3, 4, 27):
        text = material.lake.documents.texts[row]
        picture = image if material.lake.documents.pictures[row] >= 0 else None
        for side, expected in (
            (material.documents[row], scoring.document(text, picture)),
            (material.queries[row], scoring.query(text, picture)),
        ):
            np.testing.assert_array_equal(side.ids, expected.token_ids)
            np.testing.assert_array_equal(side.positions, expected.positions)
            assert side.next_position == expected.end


def test_a_long_text_is_cut_and_keeps_its_end(training_config: Callable[..., Path], tiny_checkpoint: Path) -> None:
    changes = {"start": {"path": str(tiny_checkpoint)}, "max_document_tokens": 2, "max_query_tokens": 2}
    config = load_train_config(training_config(**changes))
    whole = load_train_config(training_config(start={"path": str(tiny_checkpoint)}))
    begun = begin(config, [], 2.65, 100)
    cut, full = read_material(config, begun), read_material(whole, begun)
    assert len(cut.documents[2].ids) < len(full.documents[2].ids)
    assert cut.documents[2].ids[-1] == full.documents[2].ids[-1]
    assert cut.queries[2].ids[-1] == 100
