"""The prompts of generative rerankers, as data, and what a checkpoint's JSON files say of its scorer.

Names of special tokens in `before`, `after` and `preamble` are those tokens; in `prefix`, `suffix` and in what users
wrote they are text. Parts are cut where no token can reach across, so that their tokens are those of the whole prompt:
beside a special token, before a blank, and between letters and signs, which Qwen2's and Qwen3's tokenizers never join.

torch is not imported, for a plan needs this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.model.checkpoint import read_json, resolve_dtype
from lakerank.model.config import read_config
from lakerank.model.facts import CheckpointFacts, read_facts, reads_pairs
from lakerank.model.generative.template import PromptTexts, prompt_texts
from lakerank.model.inputs import Template
from lakerank.model.preprocess.images import PatchShape, patch_shape
from lakerank.model.registry import LANGUAGE_MODELS, CheckpointInfo

_JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A whole prompt is `preamble`, then document and query in their order; `model_type` is its language model's.

    `instruction` is what is around an instruction behind the preamble, `default_instruction` the published one, if any.
    logit = `scale` times that of the word `yes` at the last position, less that of the word `no`, if any; relevance is
    its sigmoid. `strips`: white space around texts is left out. `encoder`: it is not the decoder that reads documents;
    names of special tokens in texts are tokens.
    """

    model_type: str
    document: Template
    query: Template
    preamble: str = ""
    instruction: Template | None = None
    default_instruction: str = ""
    yes: str = "yes"
    no: str | None = "no"
    document_first: bool = False
    encoder: bool = False
    scale: float = 1.0
    strips: bool = False

    @property
    def head(self) -> str:
        """What is before query and document, with the published instruction."""
        around = self.instruction or Template()
        asked = f"{around.prefix}{self.default_instruction}{around.suffix}" if self.default_instruction else ""
        return self.preamble + asked

    def agrees(self, texts: PromptTexts) -> bool:
        """Whether a checkpoint's own chat template makes this prompt of texts."""
        first, second = (self.document, self.query) if self.document_first else (self.query, self.document)
        middle = first.suffix + first.after + second.before + second.prefix
        own = (self.head + first.before + first.prefix, middle, second.suffix + second.after, self.document_first)
        return own == (texts.start, texts.middle, texts.end, texts.document_first)

    def fingerprint_parts(self) -> dict[str, Any]:
        """What scores depend on, by the names that fingerprints of scorers have."""
        newer = {"scale": self.scale, "strips": self.strips}
        return {
            "head": self.head,
            "document": _fingerprint_parts(self.document),
            "query": _fingerprint_parts(self.query),
            "yes": self.yes,
            "no": self.no,
            "document_first": self.document_first,
            **(newer if newer != {"scale": 1.0, "strips": False} else {}),
        }


def _fingerprint_parts(template: Template) -> dict[str, Any]:
    around = {"before": template.before, "lead": template.prefix, "trail": template.suffix, "after": template.after}
    return {**around, "text": template.text, "image": template.image}


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

#: mixedbread-ai/mxbai-rerank-base-v2 and -large-v2: the query before the document, each on a line of its own, with an
#: instruction only where one is given. Source: mixedbread-ai/mxbai-rerank, mxbai_rerank_v2.py (`prepare_inputs`).
MXBAI_RERANK_V2 = ChatPrompt(
    model_type="qwen2",
    preamble=(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n"
    ),
    instruction=Template(prefix="instruction: ", suffix="\n"),
    document=Template(
        prefix="document: ",
        after=(
            "\nYou are a search relevance expert who evaluates how well documents match search queries. For each "
            "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
            f"relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:{_ANSWER}"
        ),
        image=False,
    ),
    query=Template(prefix="query: ", after="\n", image=False),
    yes="1",
    no="0",
)

#: zeroentropy/zerank-2: the query is the system's turn, the document the user's; "Yes" alone answers, and relevance is
#: the sigmoid of a fifth of its logit. Sources: its card; modeling_zeranker.py (`format_pointwise_datapoints`).
ZERANK_2 = ChatPrompt(
    model_type="qwen3",
    preamble="<|im_start|>system",
    document=Template(prefix="\n", after=_ANSWER, image=False),
    query=Template(prefix="\n", after="<|im_end|>\n<|im_start|>user", image=False),
    yes="Yes",
    no=None,
    scale=0.2,
    strips=True,
)

#: By the family's name in the registry.
PROMPTS: Mapping[str, ChatPrompt] = {
    "monoqwen2-vl": MONO_QWEN2_VL,
    "qwen3-vl-reranker": QWEN3_VL_RERANKER,
    "qwen3-reranker": QWEN3_RERANKER,
    "mxbai-rerank-v2": MXBAI_RERANK_V2,
    "zerank-2": ZERANK_2,
}

#: The family whose prompt and words are those that a checkpoint states.
STATED = "token-logit"

_LOGIT_SCORE = ("Transformer", "LogitScore")


def recognises(facts: CheckpointFacts, family: str) -> bool:
    """Whether a checkpoint's own prompt and the words that it answers with are a family's."""
    if family == STATED:
        return not any(recognises(facts, name) for name in PROMPTS) and _stated_prompt(facts) is not None
    prompt, adapter = PROMPTS[family], facts.adapter
    if facts.model_type != prompt.model_type:
        return False
    if family == "monoqwen2-vl" and "Qwen2-VL-2B-Instruct" in str(adapter.get("base_model_name_or_path")):
        return not adapter.get("task_type") and not adapter.get("modules_to_save")  # an adapter for chats has a task
    stated = facts.config.get("classifier_from_token")  # vLLM's, the word for irrelevant first
    if facts.modules not in ((), _LOGIT_SCORE) or facts.answer not in (None, (prompt.yes, prompt.no)):
        return False
    if stated:
        return bool(stated == [prompt.no, prompt.yes])
    texts = _texts(facts)
    return texts is not None and prompt.agrees(texts)


def _texts(facts: CheckpointFacts) -> PromptTexts | None:
    template = facts.template
    if template is None or (facts.modules != _LOGIT_SCORE and not reads_pairs(template.source)):
        return None
    try:
        return prompt_texts(template)
    except CheckpointError:
        return None


def _stated_prompt(facts: CheckpointFacts) -> ChatPrompt | None:
    """The prompt and the words that a checkpoint states in sentence-transformers' layout; None: not wholly."""
    texts, settings, answer = _texts(facts), facts.settings, facts.answer or (None, None)
    activation = str(settings.get("activation_fn", "Identity")).rpartition(".")[2]
    words = facts.config.get("classifier_from_token") or [*answer[::-1]]
    if facts.modules != _LOGIT_SCORE or texts is None or activation not in ("Identity", "Sigmoid"):
        return None
    if default := (settings.get("prompts") or {}).get(settings.get("default_prompt_name")):
        texts = replace(texts, start=default.join(texts.instruction or ("", "")))
    return prompt_of(str(facts.model_type), texts, answer) if words == [*answer[::-1]] else None


def prompt_of(model_type: str, texts: PromptTexts, answer: tuple[str | None, str | None]) -> ChatPrompt | None:
    """A prompt of constant texts, cut where no token reaches across; None: it cannot be between both sides."""
    lead, rest = texts.instruction or (texts.start, "")
    cuts, places, ends = _cuts(texts.middle), _cuts(rest), _cuts(texts.end)
    if not cuts or not answer[0]:
        return None
    inside = texts.start.startswith(lead) and texts.start[len(lead) :].endswith(rest)
    if texts.document_first or not inside:  # an instruction would be in what all queries share, or add more than itself
        lead, places = texts.start, []
    cut = max(_cuts(lead), default=0)
    default = texts.start[len(lead) : len(texts.start) - len(rest)] if places else ""
    before = rest[places[0] : places[-1]] if places else lead[:cut] if texts.document_first else ""
    prefix = rest[places[-1] :] if places else lead[cut:]
    first = Template(before, prefix, texts.middle[: cuts[0]], texts.middle[cuts[0] : cuts[-1]], image=False)
    end = min(ends, default=len(texts.end))
    second = Template("", texts.middle[cuts[-1] :], texts.end[:end], texts.end[end:], image=False)
    return ChatPrompt(
        model_type,
        *((first, second) if texts.document_first else (second, first)),
        preamble="" if texts.document_first else lead[:cut],
        instruction=Template(prefix=lead[cut:], suffix=rest[: places[0]]) if places else None,
        default_instruction=default,
        yes=answer[0],
        no=answer[1],
        document_first=texts.document_first,
        strips=texts.strips,
    )


def _cuts(text: str) -> list[int]:
    """Where no token of Qwen's tokenizers reaches across: beside a special token, and between a letter and a sign."""
    return [match.start() for match in re.finditer(r"(?=<\|\w+\|>)|(?<=\|>)|(?<=[^\W\d_])(?=[\W\d_])", text)]


def read_prompt(folder: Path, config: Mapping[str, Any], family: str) -> ChatPrompt:
    """A family's prompt, or the one that the checkpoint states. Raises CheckpointError: it states none."""
    if family in PROMPTS:
        return PROMPTS[family]
    facts = read_facts(folder, config)
    if prompt := _stated_prompt(facts):
        return prompt
    raise CheckpointError(f"{folder}: its files do not state a prompt and what answers it: {facts.described()}")


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """What names the scorer beyond what every fingerprint has: the prompt, and how images are cut.

    Raises CheckpointError: a file is not JSON, it is another language model, or it needs what is not supported.
    """
    config = read_config(folder)
    prompt = read_prompt(folder, config, family)
    if config.get("model_type") != prompt.model_type or prompt.model_type not in LANGUAGE_MODELS:
        stated = f"model_type {config.get('model_type')!r} in config.json"
        raise CheckpointError(
            f"{folder}: {stated}, but this family computes {prompt.model_type!r}; choose another model.family"
        )
    text = config.get("text_config") or config
    if text.get("use_sliding_window"):
        raise CheckpointError(f"{folder}: use_sliding_window is not supported: the last token must see the whole pair")
    parts = {"prompt": prompt.fingerprint_parts(), "patches": asdict(read_patch_shape(folder, config, prompt.document))}
    own = {"document_major": prompt.document_first, "accepts_instruction": prompt.instruction is not None}
    return CheckpointInfo(resolve_dtype(folder, dtype), parts=parts, of_family=own)


def read_patch_shape(folder: Path, config: Mapping[str, Any], document: Template) -> PatchShape:
    """How images are cut, where there are any.

    Raises CheckpointError: config.json or preprocessor_config.json does not say.
    """
    if not document.image:
        return PatchShape()
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        raise CheckpointError(f"{folder}: config.json has no vision_config, but this family's documents are images")
    file = folder / "preprocessor_config.json"
    if not file.is_file() or not {"image_mean", "image_std"} <= read_json(file).keys():
        raise CheckpointError(f"{folder}: no preprocessor_config.json with image_mean and image_std; copy it, too")
    return patch_shape(folder, vision)
