"""The prompts of generative rerankers, as data, and what a checkpoint's JSON files say of its scorer.

Names of special tokens in `before`, `after` and `preamble` are those tokens; in `prefix`, `suffix` and in what users
wrote they are text. Parts are cut where no token can reach across, so that their tokens are those of the whole prompt:
beside a special token, before a blank, and between letters and signs, which Qwen2's and Qwen3's tokenizers never join.

torch is not imported, for a plan needs this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json, resolve_dtype
from lakerank.model.config import read_config
from lakerank.model.facts import CheckpointFacts, reads_pairs
from lakerank.model.generative.template import PromptTexts, prompt_texts
from lakerank.model.inputs import Template
from lakerank.model.preprocess.images import PatchShape, patch_shape
from lakerank.model.registry import CheckpointInfo

_JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A whole prompt is `preamble`, then document and query in their order; `model_type` is its language model's.

    `instruction` is what is around an instruction behind the preamble, `default_instruction` the published one.
    logit = that of the word `yes` less that of the word `no` at the last position; relevance is its sigmoid, which is
    the softmax over the two. `encoder`: it is not the decoder that reads documents; names of special tokens in texts
    are tokens.
    """

    model_type: str
    document: Template
    query: Template
    preamble: str = ""
    instruction: Template | None = None
    default_instruction: str = ""
    yes: str = "yes"
    no: str = "no"
    document_first: bool = False
    encoder: bool = False

    def agrees(self, texts: PromptTexts) -> bool:
        """Whether a checkpoint's own chat template makes this prompt of texts."""
        first, second = (self.document, self.query) if self.document_first else (self.query, self.document)
        around = self.instruction or Template()
        start = f"{self.preamble}{around.prefix}{self.default_instruction}{around.suffix}{first.before}{first.prefix}"
        middle = first.suffix + first.after + second.before + second.prefix
        own = PromptTexts(start, middle, second.suffix + second.after, self.document_first)
        return own == replace(texts, instruction=None)

    def fingerprint_parts(self) -> dict[str, Any]:
        """What scores depend on, by the names that fingerprints of scorers have."""
        around = self.instruction or Template()
        return {
            "head": f"{self.preamble}{around.prefix}{self.default_instruction}{around.suffix}",
            "document": _fingerprint_parts(self.document),
            "query": _fingerprint_parts(self.query),
            "yes": self.yes,
            "no": self.no,
            "document_first": self.document_first,
        }


def _fingerprint_parts(template: Template) -> dict[str, Any]:
    return {
        "before": template.before,
        "lead": template.prefix,
        "trail": template.suffix,
        "after": template.after,
        "text": template.text,
        "image": template.image,
    }


#: lightonai/MonoQwen2-VL-v0.1: Qwen2-VL's chat template with its default system prompt, the page image first, then the
#: question. It reads images of documents and texts of queries, nothing else. Sources: its model card; the class
#: MonoVLMRanker of the library rerankers 0.10 (models/monovlm_ranker.py), which refuses documents that are no images.
MONO_QWEN2_VL = ChatPrompt(
    model_type="qwen2_vl",
    document=Template(
        before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        after=(
            "Assert the relevance of the previous image document to the following query, answer True or False. "
            "The query is:"
        ),
        text=False,
    ),
    query=Template(prefix=" ", after=_ANSWER, image=False),
    yes="True",
    no="False",
    document_first=True,
)

#: Qwen/Qwen3-VL-Reranker-2B and -8B: the query comes before the document, each with its image before its text.
#: Sources: QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_reranker.py (`format_mm_instruction`, `get_binary_linear`);
#: vLLM, examples/pooling/score/template/qwen3_vl_reranker.jinja.
QWEN3_VL_RERANKER = ChatPrompt(
    model_type="qwen3_vl",
    preamble=f"{_JUDGE}<Instruct",
    instruction=Template(prefix=">: ", suffix="<Query"),
    default_instruction="Given a search query, retrieve relevant candidates that answer the query.",
    document=Template(prefix=">:", after=_ANSWER),
    query=Template(prefix=">:", suffix="\n<Document"),
)

#: Qwen/Qwen3-Reranker-0.6B, -4B and -8B, for texts alone: the query before the document, and an empty thought before
#: the answer. Sources: its model card (`format_instruction`, `process_inputs`, `compute_logits`); vLLM,
#: examples/pooling/score/template/qwen3_reranker.jinja.
QWEN3_RERANKER = ChatPrompt(
    model_type="qwen3",
    preamble=f"{_JUDGE}<Instruct",
    instruction=Template(prefix=">: ", suffix="\n<Query"),
    default_instruction="Given a web search query, retrieve relevant passages that answer the query",
    document=Template(prefix=">: ", after=f"{_ANSWER}<think>\n\n</think>\n\n", image=False),
    query=Template(prefix=">: ", suffix="\n<Document", image=False),
)

#: By the family's name in the registry.
PROMPTS: Mapping[str, ChatPrompt] = {
    "monoqwen2-vl": MONO_QWEN2_VL,
    "qwen3-vl-reranker": QWEN3_VL_RERANKER,
    "qwen3-reranker": QWEN3_RERANKER,
}


def recognises(facts: CheckpointFacts, family: str) -> bool:
    """Whether a checkpoint's own prompt and the words that it answers with are a family's."""
    prompt = PROMPTS[family]
    answer = (prompt.yes, prompt.no)
    stated = facts.config.get("classifier_from_token")  # vLLM's, the word for irrelevant first
    if facts.modules not in ((), ("Transformer", "LogitScore")) or facts.answer not in (None, answer):
        return False
    if stated is not None:
        return bool(stated == [prompt.no, prompt.yes])
    if facts.template is None or not reads_pairs(facts.template.source):
        return False
    try:
        return prompt.agrees(prompt_texts(facts.template))
    except CheckpointError:
        return False


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """What names the scorer beyond what every fingerprint has: the prompt, and how images are cut.

    Raises CheckpointError: a file is not JSON, it is another language model, or it needs what is not supported.
    """
    prompt = PROMPTS[family]
    config = read_config(folder)
    if config.get("model_type") != prompt.model_type:
        stated = f"model_type {config.get('model_type')!r} in config.json"
        raise CheckpointError(
            f"{folder}: {stated}, but this family computes {prompt.model_type!r}; choose another model.family"
        )
    text = config.get("text_config") or config
    if text.get("use_sliding_window"):
        raise CheckpointError(f"{folder}: use_sliding_window is not supported: the last token must see the whole pair")
    parts = {"prompt": prompt.fingerprint_parts(), "patches": asdict(read_patch_shape(folder, config, prompt))}
    return CheckpointInfo(resolve_dtype(folder, dtype), parts=parts)


def read_patch_shape(folder: Path, config: Mapping[str, Any], prompt: ChatPrompt) -> PatchShape:
    """How images are cut, where there are any.

    Raises CheckpointError: config.json or preprocessor_config.json does not say.
    """
    if not prompt.document.image:
        return PatchShape()
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        raise CheckpointError(f"{folder}: config.json has no vision_config, but this family's documents are images")
    file = folder / "preprocessor_config.json"
    if not file.is_file() or not {"image_mean", "image_std"} <= read_json(file).keys():
        raise CheckpointError(f"{folder}: no preprocessor_config.json with image_mean and image_std; copy it, too")
    return patch_shape(folder, vision)
