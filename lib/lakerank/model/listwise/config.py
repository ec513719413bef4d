"""The prompts of listwise rerankers, as data, and what a checkpoint's JSON files say of its scorer.

Parts are cut where no token can reach across, as in `generative.config`. torch is not imported, for a plan needs this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lakerank.errors import CheckpointError
from lakerank.limits import Listwise
from lakerank.model.checkpoint import resolve_dtype, stored_tensors
from lakerank.model.config import read_config
from lakerank.model.facts import read_facts
from lakerank.model.generative.config import read_patch_shape
from lakerank.model.inputs import Template
from lakerank.model.registry import LANGUAGE_MODELS, CheckpointInfo

#: Names in the registry.
JINA_V3, GENERATION = "jina-reranker-v3", "list-generation"


@dataclass(frozen=True, slots=True)
class ListPrompt:
    """A prompt is `lead`, the query in `intro`, each document behind its `item`, the query in `outro`, `tail`.

    `{n}` is the number of documents in lead and tail, and a document's, from `first` on, in item. `instruction`: around
    one, behind the intro; None: there is no place. `stripped`: names that are left out of texts. `one_line`: white
    space in texts is single blanks, and `[1]` is `(1)`, which is no document's number.
    """

    lead: str
    intro: Template
    item: str
    document: Template
    outro: Template
    tail: str = ""
    first: int = 0
    instruction: Template | None = None
    stripped: tuple[str, ...] = ()
    one_line: bool = False


#: jinaai/jina-reranker-v3 and -v3.5, up to the last token that is read: what follows the query is seen by none.
#: Sources: its modeling.py (`format_docs_prompts_func`, `rerank`); arXiv 2509.25085.
_JINA_V3 = ListPrompt(
    lead=(
        "<|im_start|>system\nYou are a search relevance expert who can determine a ranking of the passages based on "
        "how relevant they are to the query. If the query is a question, how relevant a passage is depends on how well "
        "it answers the question. If not, try to analyze the intent of the query and assess how well each passage "
        "satisfies the intent. If an instruction is provided, you should follow the instruction when determining the "
        "ranking.<|im_end|>\n<|im_start|>user\nI will provide you with {n} passages, each indicated by a numerical "
        "identifier. Rank the passages based on their relevance to query:"
    ),
    intro=Template(prefix=" ", suffix="\n", image=False),
    instruction=Template(prefix="<instruct>\n", suffix="\n</instruct>\n"),
    item='<passage id="{n}',
    document=Template(prefix='">\n', after="<|embed_token|>\n</passage>\n", image=False),
    outro=Template(prefix="<query>\n", after="<|rerank_token|>", image=False),
    stripped=("<|embed_token|>", "<|rerank_token|>"),
)

#: As RankGPT and RankZephyr are asked. Source: castorini/rank_llm, `rank_zephyr_template.yaml` and the handler of it.
_RANK_LLM = ListPrompt(
    lead=(
        "<|im_start|>system\nYou are RankLLM, an intelligent assistant that can rank passages based on their relevancy "
        "to the query<|im_end|>\n<|im_start|>user\nI will provide you with {n} passages, each indicated by a numerical "
        "identifier []. Rank the passages based on their relevance to the search query:"
    ),
    intro=Template(prefix=" ", suffix=".\n", image=False),
    item="[{n}]",
    document=Template(prefix=" ", suffix="\n", image=False),
    outro=Template(prefix="Search Query: ", suffix=".\nRank the", image=False),
    tail=(
        " {n} passages above based on their relevance to the search query. All the passages should be included and "
        "listed using identifiers, in descending order of relevance. The output format should be [] > [], e.g., "
        "[2] > [1], Answer concisely and directly and only respond with the ranking results, do not say any word or "
        "explain.<|im_end|>\n<|im_start|>assistant\n"
    ),
    first=1,
    one_line=True,
)

#: Documents of a prompt at most, and how far a window moves. A page takes the room of several texts.
_BLOCKS, _TEXTS, _PAGES = Listwise(window=125), Listwise(window=20, stride=10), Listwise(window=4, stride=2)

#: Tokens of a query and of a document as published: those of v3, and those of v3.5, some of whose layers slide windows.
_LENGTHS = {False: (512, 2048), True: (1024, 8192)}

_SLIDES = "sliding_attention"


def read_prompt(folder: Path, config: Mapping[str, Any], family: str) -> ListPrompt:
    """A family's prompt for a checkpoint: with images where it reads any, and an empty thought where it thinks."""
    if family == JINA_V3:
        return _JINA_V3
    template, image = read_facts(folder, config).template, "vision_config" in config
    thought = "<think>\n\n</think>\n\n" if template is not None and "enable_thinking" in template.source else ""
    return replace(_RANK_LLM, document=replace(_RANK_LLM.document, image=image), tail=_RANK_LLM.tail + thought)


def read_windows(folder: Path, config: Mapping[str, Any]) -> list[int | None]:
    """How many tokens a token of each layer sees, itself included; None: all before it.

    Raises CheckpointError: config.json does not say.
    """
    size, slides = config.get("sliding_window"), config.get("use_sliding_window")
    layers = int(config.get("num_hidden_layers") or 0)
    after = int(config.get("max_window_layers") or layers) if slides else layers
    kinds = config.get("layer_types") or [_SLIDES if n >= after else "full_attention" for n in range(layers)]
    if len(kinds) != layers or (_SLIDES in kinds and not (slides and type(size) is int and size > 0)):
        stated = "layer_types, use_sliding_window and sliding_window"
        raise CheckpointError(f"{folder}: {stated} in config.json do not describe {layers} layers")
    return [size if kind == _SLIDES else None for kind in kinds]


def read_info(folder: Path, dtype: str, family: str) -> CheckpointInfo:
    """What names the scorer beyond what every fingerprint has: the prompt, and how images are cut.

    Raises CheckpointError: it is another network than the family's, or needs what is not supported.
    """
    config = read_config(folder)
    prompt, kind = read_prompt(folder, config, family), str(config.get("model_type"))
    if kind not in LANGUAGE_MODELS or (family == JINA_V3 and kind != "qwen3"):
        raise CheckpointError(f"{folder}: model_type {kind!r} in config.json, which {family} does not compute")
    parts = {"prompt": asdict(prompt)}
    if family == JINA_V3:
        shapes = {name: shape for name, (shape, _) in stored_tensors(folder).items() if name.startswith("projector.")}
        inner, outer = (shapes.get(f"projector.{number}.weight", []) for number in (0, 2))
        if len(shapes) != 2 or inner[1:] != [config.get("hidden_size")] or outer[1:] != inner[:1]:
            raise CheckpointError(
                f"{folder}: no weights of projector.0 and projector.2 without biases that fit hidden_size "
                f"{config.get('hidden_size')} and each other, but {shapes}; copy the checkpoint again"
            )
        lengths = _LENGTHS[any(read_windows(folder, config))]
        return CheckpointInfo(resolve_dtype(folder, dtype), parts=parts, listwise=_BLOCKS, lengths=lengths)
    parts["patches"] = asdict(read_patch_shape(folder, config, prompt.document))
    image, dtype = prompt.document.image, resolve_dtype(folder, dtype)
    of_family, listwise = {"accepts_images": image}, _PAGES if image else _TEXTS
    return CheckpointInfo(dtype, parts=parts, of_family=of_family, listwise=listwise)
