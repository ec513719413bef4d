"""MKQA: questions in 26 languages over English Wikipedia passages, with qrels from answer strings.

Source: `C_MTEB/MKQA/` in github.com/FlagOpen/FlagEmbedding and its data, the hub's `Shitao/bge-m3-data`: lines of
`{"id", "question", "answers"}`, answers a list of strings. A passage is relevant if it contains an answer. Also read:
`mkqa.jsonl.gz` of github.com/apple/ml-mkqa, without the questions that are unanswerable, binary or want a long answer,
as in that data; its English answers (texts and aliases) are looked for, since the passages are English.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import regex

from lakerank.ingest.lines import record_id, record_text
from lakerank.ingest.rejects import SourceError, SourceFault
from lakerank.ingest.tables import ContentRow
from lakerank.lake.storage import join
from lakerank_datasets.layouts.benchmark import DocumentColumns, Layout, Part, Pool, QueryColumns, passages, table_rows
from lakerank_datasets.layouts.benchmark_folder import BenchmarkFolder

#: The languages of the benchmark.
LANGUAGES = (
    *("en", "ar", "fi", "ja", "ko", "ru", "es", "sv", "he", "th", "da", "de", "fr", "it", "nl", "pl", "pt", "hu"),
    *("vi", "ms", "km", "no", "tr", "zh_cn", "zh_hk", "zh_tw"),
)

#: Kinds of answers that no passage can be searched for.
_UNSEARCHABLE = frozenset({"unanswerable", "binary", "long_answer"})

_ROOTS = ("", "qa_data", "MKQA_test-data")
_ORIGINALS = ("mkqa.jsonl", "dataset/mkqa.jsonl")
_CORPORA = ("nq/corpus.jsonl", "corpus.jsonl")

#: Variants of a character are replaced by one of them before passages are searched.
_SPELLINGS = {
    "-": "‐‑⁃‒–—―−－⁻",
    '"': "“”„‟",
    "'": "‘’‚‛՚Ꞌꞌ＇`´′‵",
    "''": "″‶",
    "'''": "‴‷",
    "''''": "⁗",
    "...": "…",
    "/": "⁄∕",
    " ": "\x0b\x0c\x85",
    "": "\xad" + "".join(map(chr, (*range(0x01, 0x09), 0x0E, 0x0F, *range(0x11, 0x1C)))),
}
_TABLE = {ord(character): written for written, characters in _SPELLINGS.items() for character in characters}

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")

#: Between tokens: a control character is in none.
_SEPARATOR = "\x1f"


def _is_mkqa(folder: BenchmarkFolder) -> bool:
    return folder.find(*_CORPORA) is not None and bool(folder.find(*_ORIGINALS) or _by_language(folder))


def _datasets(folder: BenchmarkFolder, _split: str) -> list[tuple[Pool, str, str]]:
    """The pool, language and file of each language whose questions are there. There is only one split."""
    corpus = passages(folder.require(*_CORPORA))
    pool = Pool("mkqa", partial(table_rows, folder, corpus, DocumentColumns("mkqa", "en")), "mkqa/")
    files = _by_language(folder) or dict.fromkeys(LANGUAGES, folder.require(*_ORIGINALS))
    return [(pool, language, path) for language, path in files.items()]


def _by_language(folder: BenchmarkFolder) -> dict[str, str]:
    """The file of each language that is there."""
    paths = {name: folder.find(*(join(root, f"{name}.jsonl") for root in _ROOTS)) for name in LANGUAGES}
    return {language: path for language, path in paths.items() if path is not None}


def _parts(folder: BenchmarkFolder, _split: str, pool: Pool, language: str, path: str) -> list[Part]:
    name = f"mkqa-{language}"
    columns = QueryColumns("mkqa", name, language=language)
    questions = partial(_original_question, language) if path.startswith(_ORIGINALS) else _question

    def query(_line: int, fields: Mapping[str, Any]) -> Iterator[ContentRow]:
        for query_id, text, answers in questions(fields):
            encoded = json.dumps(answers, ensure_ascii=False)
            yield ContentRow(query_id, text, extra=columns._replace(answers=encoded))

    queries = partial(folder.read, [path], query)
    return [Part(name, pool, columns, queries, None, f"{name}/")]


def _question(fields: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Id, question and answers of a line of a language's file."""
    answers = fields.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise SourceError(SourceFault.FIELD_INVALID, "'answers' is not a list of strings")
    yield record_id(fields, "id"), record_text(fields, "question") or "", answers


def _original_question(language: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Id, question in one language and English answers of a line of the original file, if it is searchable."""
    answers = _object(fields, "answers").get("en")
    if not isinstance(answers, list) or not all(isinstance(answer, Mapping) for answer in answers):
        raise SourceError(SourceFault.FIELD_INVALID, "'answers' has no list of English answers")
    if not any(answer.get("type") in _UNSEARCHABLE for answer in answers):
        text = record_text(_object(fields, "queries"), language)
        names = [name for answer in answers for name in (answer.get("text"), *(answer.get("aliases") or ()))]
        yield record_id(fields, "example_id"), text or "", [name for name in names if name]


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    if not isinstance(value, Mapping):
        raise SourceError(SourceFault.FIELD_INVALID, f"'{name}' is not an object")
    return value


def searchable_passage(text: str) -> str:
    """A passage, normalised so that answers are found in it as sequences of tokens.

    The string heuristics of open-domain question answering, by which MKQA is evaluated. Source:
    `C_MTEB/MKQA/utils/evaluation.py` and `normalize_text.py` in github.com/FlagOpen/FlagEmbedding, which are
    Contriever's and DPR's.
    """
    return searchable_answer(text.lower().translate(_TABLE).replace(" . . . ", " ... "))


def searchable_answer(text: str) -> str:
    """An answer as it is looked for: its words of letters, digits and marks, and its single other characters."""
    tokens = _TOKEN.findall(unicodedata.normalize("NFD", text))
    return _SEPARATOR.join(["", *(token.lower() for token in tokens), ""]) if tokens else _SEPARATOR


def is_answered(passage: str, answers: Sequence[str]) -> bool:
    """Whether a passage contains one of the answers, both searchable. One without tokens is in every passage."""
    return any(answer == _SEPARATOR or answer in passage for answer in answers)


LAYOUT = Layout(
    expects=(
        "LANG.jsonl of id, question, answers (in the folder or in qa_data/) or mkqa.jsonl.gz, "
        "and BEIR's NQ passages as nq/corpus.jsonl"
    ),
    split="test",
    datasets=_datasets,
    parts=_parts,
    recognises=_is_mkqa,
)
