"""MKQA: questions in 26 languages, asked of English Wikipedia passages and judged by answer strings.

Source: `C_MTEB/MKQA/` in github.com/FlagOpen/FlagEmbedding and its data, `MKQA_test-data.zip` of the hub's
`Shitao/bge-m3-data`: `LANG.jsonl` of `{"id", "question", "answers"}`, answers a list of strings, 6,619 questions a
language; the passages are BEIR's `nq/corpus.jsonl`. Nothing is judged: a passage is right when it holds an answer, and
the headline is the mean over languages (the authors leave English out). Also read: `mkqa.jsonl.gz` of
github.com/apple/ml-mkqa, from which questions that are unanswerable, binary or want a long answer are left out as in
that data, and whose English answers (texts and aliases) are looked for, since the passages are English.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from lakerank.ingest.items import Item, SourceFault, SourceReject
from lakerank.ingest.jsonl import LineFault, read_each, record_id, record_text
from lakerank.ingest.layouts.beir import passages
from lakerank.ingest.layouts.benchmark import Benchmark, DocumentColumns, Part, Pool, QueryColumns, Wanted, text_pool
from lakerank.ingest.layouts.published import Published
from lakerank.lake.storage import join

EXPECTS = (
    "LANG.jsonl of id, question, answers (in the folder or in qa_data/) or mkqa.jsonl.gz, "
    "and BEIR's NQ passages as nq/corpus.jsonl"
)

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


def is_mkqa(folder: Published) -> bool:
    """Whether questions of the benchmark lie here."""
    return folder.find(*_CORPORA) is not None and bool(folder.find(*_ORIGINALS) or _by_language(folder))


def read_mkqa(folder: Published, split: str | None) -> Benchmark:
    """Every language whose questions are there. There is only one split, whatever is asked for.

    Raises:
        StorageError: the questions or the passages are not there.
    """
    corpus = folder.require(*_CORPORA)

    def documents(wanted: Wanted) -> Iterator[Item | SourceReject]:
        return passages(folder, corpus, "mkqa/", DocumentColumns("mkqa", "en"), wanted)

    pool = text_pool("mkqa", "mkqa/", documents)
    files = _by_language(folder)
    if files:
        parts = [_part(pool, language, partial(_questions, folder, path)) for language, path in files.items()]
    else:
        original = folder.require(*_ORIGINALS)
        parts = [_part(pool, language, partial(_original, folder, original, language)) for language in LANGUAGES]
    return Benchmark("mkqa", tuple(parts))


def _by_language(folder: Published) -> dict[str, str]:
    """The file of each language that is there."""
    found = {name: folder.find(*(join(root, f"{name}.jsonl") for root in _ROOTS)) for name in LANGUAGES}
    return {language: path for language, path in found.items() if path is not None}


def _part(pool: Pool, language: str, questions: Any) -> Part:
    name = f"mkqa-{language}"
    columns = QueryColumns("mkqa", name, language=language)
    queries = partial(_queries, questions, columns, f"{name}/")
    return Part(name, pool, columns, queries, None, judged_by_answers=True, prefix=f"{name}/")


def _queries(questions: Any, columns: QueryColumns, prefix: str) -> Iterator[Item | SourceReject]:
    for question in questions():
        if isinstance(question, SourceReject):
            yield question
        else:
            query_id, text, answers = question
            encoded = json.dumps(answers, ensure_ascii=False)
            yield Item(prefix + query_id, text, kept=tuple(columns._replace(answers=encoded)))


Question = tuple[str, str, Sequence[str]]


def _questions(folder: Published, path: str) -> Iterator[Question | SourceReject]:
    """Id, question and answers of each line of a language's file."""

    def question(_line: int, fields: Mapping[str, Any]) -> Iterator[Question]:
        answers = _strings(fields, "answers")
        yield record_id(fields, ("id",)), record_text(fields, "question") or "", answers

    return read_each(path, folder.records(path), question)


def _original(folder: Published, path: str, language: str) -> Iterator[Question | SourceReject]:
    """Id, question in one language and English answers of each searchable question of the original file."""

    def question(_line: int, fields: Mapping[str, Any]) -> Iterator[Question]:
        answers = _answers(fields)
        if not any(answer.get("type") in _UNSEARCHABLE for answer in answers):
            text = record_text(_object(fields, "queries"), language)
            found = [name for answer in answers for name in (answer.get("text"), *(answer.get("aliases") or ()))]
            yield record_id(fields, ("example_id",)), text or "", [name for name in found if name]

    return read_each(path, folder.records(path), question)


def _answers(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = _object(fields, "answers").get("en")
    if not isinstance(found, list) or not all(isinstance(answer, Mapping) for answer in found):
        raise LineFault(SourceFault.FIELD_INVALID, "'answers' has no list of English answers")
    return found


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = fields.get(name)
    if not isinstance(found, Mapping):
        raise LineFault(SourceFault.FIELD_INVALID, f"'{name}' is not an object")
    return found


def _strings(fields: Mapping[str, Any], name: str) -> list[str]:
    found = fields.get(name)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise LineFault(SourceFault.FIELD_INVALID, f"'{name}' is not a list of strings")
    return found
