"""The prompts of generative rerankers, as data: what stands around a query and a document, and which words answer.

Names of special tokens in `before`, `after` and `head` are those tokens; in `lead`, `trail` and in what users wrote
they are text. Parts are cut where no token can reach across, so that their tokens are those of the whole prompt: beside
a special token, before a blank, and between letters and signs, which Qwen2's and Qwen3's tokenizers never join.
"""

from __future__ import annotations

from dataclasses import dataclass

_JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around one side: `before` and `after` by themselves, `lead` and `trail` in one text with it.

    An image comes between `lead` and the text. `text`, `image`: what the side may hold.
    """

    before: str = ""
    lead: str = ""
    trail: str = ""
    after: str = ""
    text: bool = True
    image: bool = True


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A whole prompt is `head`, then the two sides in their order.

    logit = that of the word `yes` less that of the word `no` at the last position; relevance is its sigmoid, which is
    the softmax over the two.
    """

    head: str
    document: Frame
    query: Frame
    yes: str
    no: str
    document_first: bool


#: lightonai/MonoQwen2-VL-v0.1: Qwen2-VL's chat template with its default system prompt, the page image first, then the
#: question. It reads images of documents and texts of queries, nothing else. Sources: its model card; the class
#: MonoVLMRanker of the library rerankers 0.10 (models/monovlm_ranker.py), which refuses documents that are no images.
MONO_QWEN2_VL = ChatPrompt(
    head="",
    document=Frame(
        before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        after=(
            "Assert the relevance of the previous image document to the following query, answer True or False. "
            "The query is:"
        ),
        text=False,
    ),
    query=Frame(lead=" ", after=_ANSWER, image=False),
    yes="True",
    no="False",
    document_first=True,
)

#: Qwen/Qwen3-VL-Reranker-2B and -8B with the default instruction: the query comes before the document, each with its
#: image before its text. Sources: QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_reranker.py
#: (`format_mm_instruction`, `get_binary_linear`); vLLM, examples/pooling/score/template/qwen3_vl_reranker.jinja.
QWEN3_VL_RERANKER = ChatPrompt(
    head=(f"{_JUDGE}<Instruct>: Given a search query, retrieve relevant candidates that answer the query.<Query"),
    document=Frame(lead=">:", after=_ANSWER),
    query=Frame(lead=">:", trail="\n<Document"),
    yes="yes",
    no="no",
    document_first=False,
)

#: Qwen/Qwen3-Reranker-0.6B, -4B and -8B with the default instruction, for texts alone: the query before the document,
#: and an empty thought before the answer. Sources: its model card (`format_instruction`, `process_inputs`,
#: `compute_logits`); vLLM, examples/pooling/score/template/qwen3_reranker.jinja.
QWEN3_RERANKER = ChatPrompt(
    head=(f"{_JUDGE}<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query"),
    document=Frame(lead=">: ", after=f"{_ANSWER}<think>\n\n</think>\n\n", image=False),
    query=Frame(lead=">: ", trail="\n<Document", image=False),
    yes="yes",
    no="no",
    document_first=False,
)
