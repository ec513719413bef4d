"""Language models whose own files state prompt and answer, against sentence-transformers and published loops."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.decoders import slot, write_layout
from lakerank import load_reranker
from lakerank.errors import CheckpointError, ConfigError
from lakerank.model.engine.reranker import BatchedReranker
from lakerank.model.spec import CheckpointSpec, identify
from lakerank.records import Document, DocumentGroup, Query, ScoredPair
from lakerank_benchmark.checkpoints import random_checkpoint
from lakerank_pictograms.network import Shape
from oracles.mxbai import PublishedMxbai
from oracles.pairs import pair_logits

SHAPE = Shape(0, 64, 128, 3, 4, 2, 1, 64, 2)
MARKUP = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUERIES = ["red apple", '"(what) \n is: red?', "Красное яблоко", "りんごは?", "7", " blank around \n"]
DOCUMENTS = ["(A red apple) lies on the table.\n\n", "apple " * 30, "Der rote Apfel", "?", "\tтаблица: 5.\n"]
PAIRS = [
    (Query(f"q{n}", text=query), Document(f"d{m}", text=document))
    for n, query in enumerate(QUERIES)
    for m, document in enumerate(DOCUMENTS)
    if (n + m) % 2 == 0
]

#: Chat templates by name: the words that answer, the template, and the settings of its rendering.
TEMPLATES: dict[str, tuple[str, tuple[str, str | None], str, dict[str, Any]]] = {
    "document first, one word": (
        "qwen3-reranker", ("yes", None),
        "Check whether a given document contains information helpful to answer the query.\n"
        f"<Document> {slot('document')}\n<Query> {slot('query')} ??", {},
    ),
    "a turn each, stripped": (
        "qwen3-reranker", ("yes", "no"),
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n\n{% endif %}",
        {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}},
    ),
    "Qwen2, an instruction of its own": (
        "mxbai-rerank-v2", ("1", "0"),
        "{% set asked = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first "
        "| default('Judge relevance.') %}"
        + MARKUP.format(f"Task: {{{{ asked }}}}\nQuery: {slot('query')}\nDocument: {slot('document')}"), {},
    ),
    "parts of a content": (
        "qwen3-reranker", ("Yes", "no"),
        "{%- for role in ('query', 'document') %}<|im_start|>{{ role }}\n{%- for message in messages %}"
        "{%- if message.role == role %}{{- '\n' + message.content[0]['text'] }}{%- endif %}{%- endfor %}"
        "{{- '<|im_end|>\n' }}{%- endfor %}{{- '<|im_start|>assistant\n' }}",
        {"modality_config": {
            "text": {"method": "forward", "method_output_name": "logits"},
            "message": {"method": "forward", "method_output_name": "logits", "format": "structured"},
        }},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random checkpoint of a family, its biases random too; not to be written to."""

    @functools.cache
    def write(family: str) -> Path:
        folder = random_checkpoint(tmp_path_factory.mktemp("prompted"), family, SHAPE, "float32")
        generator = torch.Generator().manual_seed(1)
        tensors = load_file(folder / "model.safetensors")
        for name in sorted(name for name in tensors if name.endswith("bias")):
            tensors[name] = torch.randn(tensors[name].shape, generator=generator) * 0.3
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return write


@pytest.fixture
def written(originals: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family's checkpoint."""
    return lambda family: Path(shutil.copytree(originals(family), tmp_path / family))


def load(folder: Path, **options: Any) -> BatchedReranker:
    reranker = load_reranker(str(folder), device="cpu", dtype="float32", **options).reranker
    assert isinstance(reranker, BatchedReranker)
    return reranker


def by_library(folder: Path, instruction: str | None = None) -> np.ndarray:
    """Raw logits of sentence-transformers' own CrossEncoder, one pair at a time."""
    from sentence_transformers import CrossEncoder

    library = CrossEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"})
    pairs = [(query.text, document.text) for query, document in PAIRS]
    return library.predict(pairs, batch_size=1, activation_fn=torch.nn.Identity(), prompt=instruction)


@pytest.mark.parametrize(
    "name",
    [
        name if number % 2 == 0 else pytest.param(name, marks=pytest.mark.nightly)
        for number, name in enumerate(TEMPLATES)
    ],
)
def test_a_template_of_its_own_gives_the_librarys_scores(written: Callable[[str], Path], name: str) -> None:
    base, answer, template, settings = TEMPLATES[name]
    folder = written(base)
    write_layout(folder, answer, template, **settings)
    identity = identify(CheckpointSpec(str(folder)))
    assert identity.family == "token-logit"
    reranker = load(folder)
    logits = pair_logits(reranker, PAIRS)
    np.testing.assert_allclose(logits, by_library(folder), atol=1e-4, rtol=0)
    assert np.std(logits) > 0.05
    first = name.startswith("document first")
    assert identity.cost_profile(1).document_major is first


@pytest.mark.parametrize(
    ("family", "scale"),
    [
        ("zerank-2", 0.2),
        pytest.param("qwen3-reranker", 1.0, marks=pytest.mark.nightly),
        pytest.param("mxbai-rerank-v2", 1.0, marks=pytest.mark.nightly),
    ],
)
def test_families_of_the_layout_give_the_librarys_scores(
    written: Callable[[str], Path], family: str, scale: float
) -> None:
    folder = written(family)
    assert identify(CheckpointSpec(str(folder))).family == family
    kept = [number for number, (query, document) in enumerate(PAIRS) if alike(family, query.text, document.text)]
    logits = pair_logits(load(folder), PAIRS)
    np.testing.assert_allclose(logits[kept], scale * by_library(folder)[kept], atol=1e-4, rtol=0)
    assert len(kept) > 2


def alike(family: str, *texts: str | None) -> bool:
    """Whether a family's own code makes the library's tokens of these texts.

    That of zerank-2 strips them, and that of mxbai-rerank-v2 makes tokens of each text by itself.
    """
    if family == "mxbai-rerank-v2":
        return all(text and text[-1].isalnum() for text in texts)
    return family != "zerank-2" or all(text == (text or "").strip() for text in texts)


@pytest.mark.parametrize("instruction", [None, "Prefer fruit."])
def test_mxbai_is_read_as_published(written: Callable[[str], Path], instruction: str | None) -> None:
    folder = written("mxbai-rerank-v2")
    expected = PublishedMxbai(folder).logits([(q.text or "", d.text or "") for q, d in PAIRS], instruction)
    logits = pair_logits(load(folder, instruction=instruction), PAIRS)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_an_instruction_is_placed_where_the_template_has_it(written: Callable[[str], Path]) -> None:
    base, answer, template, settings = TEMPLATES["Qwen2, an instruction of its own"]
    folder = written(base)
    write_layout(folder, answer, template, **settings)
    expected = by_library(folder, "Prefer (red) fruit!")
    assert np.abs(expected - by_library(folder)).max() > 1e-3
    np.testing.assert_allclose(
        pair_logits(load(folder, instruction="Prefer (red) fruit!"), PAIRS), expected, atol=1e-4, rtol=0
    )


def test_a_default_prompt_is_the_instruction(written: Callable[[str], Path]) -> None:
    base, answer, template, settings = TEMPLATES["a turn each, stripped"]
    folder = written(base)
    write_layout(folder, answer, template, **settings)
    with pytest.raises(ConfigError, match="takes none"):  # a turn more is more than an instruction
        identify(CheckpointSpec(str(folder), instruction="Prefer fruit."))
    stated = {"default_prompt_name": "web", "prompts": {"web": "Judge it."}, "model_type": "CrossEncoder"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stated))
    for instruction in (None, "Prefer fruit."):
        logits = pair_logits(load(folder, instruction=instruction), PAIRS)
        np.testing.assert_allclose(logits, by_library(folder, instruction), atol=1e-4, rtol=0)


def test_a_prompt_without_a_place_takes_no_instruction(written: Callable[[str], Path]) -> None:
    base, answer, template, settings = TEMPLATES["document first, one word"]
    folder = written(base)
    write_layout(folder, answer, template, **settings)
    with pytest.raises(ConfigError, match="token-logit, which takes none"):
        identify(CheckpointSpec(str(folder), instruction="Prefer fruit."))


def test_a_document_that_comes_first_is_read_once(written: Callable[[str], Path]) -> None:
    base, answer, template, settings = TEMPLATES["document first, one word"]
    folder = written(base)
    write_layout(folder, answer, template, **settings)
    reranker = load(folder)
    group = DocumentGroup(
        Document("d", text="apple " * 200), tuple(Query(f"q{n}", text=f"{n} apples") for n in range(9))
    )
    results = list(reranker.score_groups([group]))
    assert all(isinstance(result, ScoredPair) for result in results)
    assert reranker.counters.pairwise > 5 * reranker.counters.computed


def test_no_batch_changes_a_score(written: Callable[[str], Path]) -> None:
    folder = written("zerank-2")
    reranker = load(folder)
    together = pair_logits(reranker, PAIRS)
    alone = np.concatenate([pair_logits(reranker, [pair]) for pair in PAIRS[::4]])
    np.testing.assert_array_equal(together[::4], alone)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (MARKUP.format(f"{slot('query')}\n{slot('query')}\n{slot('document')}"), "reads query and document"),
        (MARKUP.format(slot("document")), "no chat template knows"),
        (MARKUP.format(f"{slot('query')}\n{slot('document')}"), "reads query and document"),
        (MARKUP.format(f"{slot('query')} and {slot('document')} | upper"), None),
        ("{{ raise_exception('query, document') }}", "reads query and document"),
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be_cut_is_not_taken(
    written: Callable[[str], Path], template: str, message: str | None
) -> None:
    folder = written("qwen3-reranker")
    write_layout(folder, ("yes", "no"), template)
    (folder / "config_sentence_transformers.json").unlink()  # or the library's own family takes it
    if message is None:
        assert identify(CheckpointSpec(str(folder))).family == "token-logit"
        return
    with pytest.raises(CheckpointError, match=f"no known reranker.*{message}"):
        identify(CheckpointSpec(str(folder)))
    with pytest.raises(CheckpointError, match="do not state a prompt"):
        identify(CheckpointSpec(str(folder), family="token-logit"))
