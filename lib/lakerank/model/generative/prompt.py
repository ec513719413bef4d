"""The prompts of generative rerankers, as data: what is around a query and a document, and which words answer.

Names of special tokens in `before`, `after` and `preamble` are those tokens; in `prefix`, `suffix` and in what users
wrote they are text. Parts are cut where no token can reach across, so that their tokens are those of the whole prompt:
beside a special token, before a blank, and between letters and signs, which Qwen2's and Qwen3's tokenizers never join.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class Template:
    """What is around a document or query: `before` and `after` by themselves, `prefix` and `suffix` joined to its text.

    An image comes between `prefix` and the text. `text`, `image`: what the document or query may hold.
    """

    before: str = ""
    prefix: str = ""
    suffix: str = ""
    after: str = ""
    text: bool = True
    image: bool = True

    def fingerprint_parts(self) -> dict[str, Any]:
        """The fields by the names that fingerprints of scorers have."""
        return {
            "before": self.before,
            "lead": self.prefix,
            "trail": self.suffix,
            "after": self.after,
            "text": self.text,
            "image": self.image,
        }


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A whole prompt is `preamble`, then document and query in their order; `model_type` is its language model's.

    logit = that of the word `yes` less that of the word `no` at the last position; relevance is its sigmoid, which is
    the softmax over the two.
    """

    model_type: str
    preamble: str
    document: Template
    query: Template
    yes: str
    no: str
    document_first: bool

    def fingerprint_parts(self) -> dict[str, Any]:
        """What scores depend on, by the names that fingerprints of scorers have."""
        return {
            "head": self.preamble,
            "document": self.document.fingerprint_parts(),
            "query": self.query.fingerprint_parts(),
            "yes": self.yes,
            "no": self.no,
            "document_first": self.document_first,
        }


#: lightonai/MonoQwen2-VL-v0.1: Qwen2-VL's chat template with its default system prompt, the page image first, then the
#: question. It reads images of documents and texts of queries, nothing else. Sources: its model card; the class
#: MonoVLMRanker of the library rerankers 0.10 (models/monovlm_ranker.py), which refuses documents that are no images.
MONO_QWEN2_VL = ChatPrompt(
    model_type="qwen2_vl",
    preamble="",
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

#: Qwen/Qwen3-VL-Reranker-2B and -8B with the default instruction: the query comes before the document, each with its
#: image before its text. Sources: QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_reranker.py
#: (`format_mm_instruction`, `get_binary_linear`); vLLM, examples/pooling/score/template/qwen3_vl_reranker.jinja.
QWEN3_VL_RERANKER = ChatPrompt(
    model_type="qwen3_vl",
    preamble=(f"{_JUDGE}<Instruct>: Given a search query, retrieve relevant candidates that answer the query.<Query"),
    document=Template(prefix=">:", after=_ANSWER),
    query=Template(prefix=">:", suffix="\n<Document"),
    yes="yes",
    no="no",
    document_first=False,
)

#: Qwen/Qwen3-Reranker-0.6B, -4B and -8B with the default instruction, for texts alone: the query before the document,
#: and an empty thought before the answer. Sources: its model card (`format_instruction`, `process_inputs`,
#: `compute_logits`); vLLM, examples/pooling/score/template/qwen3_reranker.jinja.
QWEN3_RERANKER = ChatPrompt(
    model_type="qwen3",
    preamble=(
        f"{_JUDGE}<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query"
    ),
    document=Template(prefix=">: ", after=f"{_ANSWER}<think>\n\n</think>\n\n", image=False),
    query=Template(prefix=">: ", suffix="\n<Document", image=False),
    yes="yes",
    no="no",
    document_first=False,
)

#: By the family's name in the registry.
PROMPTS: Mapping[str, ChatPrompt] = {
    "monoqwen2-vl": MONO_QWEN2_VL,
    "qwen3-vl-reranker": QWEN3_VL_RERANKER,
    "qwen3-reranker": QWEN3_RERANKER,
}
