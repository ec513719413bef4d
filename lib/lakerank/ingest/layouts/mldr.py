"""MLDR: long documents in thirteen languages, judgements inside the queries.

Source: the card of the hub's `Shitao/MLDR`, and `FlagEmbedding/evaluation/mldr/` in
github.com/FlagOpen/FlagEmbedding. Each language has `mldr-v1.0-LANG/corpus.jsonl.gz` of `{"docid", "text"}` and
`mldr-v1.0-LANG/SPLIT.jsonl.gz` of `{"query_id", "query", "positive_passages", "negative_passages"}`, lists of
`{"docid", "text"}`: relevance 1 and 0. Figures are given for the split `test`; the headline is the mean over languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from lakerank.ingest.layouts.beir import passage_part
from lakerank.ingest.layouts.benchmark import Benchmark, ContentRows, Part, Qrels, QueryColumns, call_all
from lakerank.ingest.layouts.benchmark_folder import BenchmarkFolder, without_rejects
from lakerank.ingest.lines import LineFault, read_each, record_id, record_text
from lakerank.ingest.tables import ContentRow, SourceFault
from lakerank.lake.storage import join
from lakerank.records import Qrel

EXPECTS = "mldr-v1.0-LANG/corpus.jsonl.gz and mldr-v1.0-LANG/SPLIT.jsonl.gz"

_FOLDER = re.compile(r"mldr-v[\d.]+-(?P<language>\w+)")


def is_mldr(folder: BenchmarkFolder) -> bool:
    """Whether a language lies here."""
    return any(_FOLDER.fullmatch(name) for name in folder.folders())


def read_mldr(folder: BenchmarkFolder, split: str | None) -> Benchmark:
    """Every language of the folder; `split` is `test` by default.

    Raises:
        StorageError: no language is there, or one lacks a file.
    """
    languages = [(name, match["language"]) for name in folder.folders() if (match := _FOLDER.fullmatch(name))]
    if not languages:
        raise folder.missing("mldr-v1.0-LANG")
    parts = call_all(partial(_part, folder, path, language, split or "test") for path, language in languages)
    return Benchmark("mldr", tuple(parts))


def _part(folder: BenchmarkFolder, path: str, language: str, split: str) -> Part:
    name = f"mldr-{language}"
    corpus = folder.require(join(path, "corpus.jsonl"))
    questions = folder.require(join(path, f"{split}.jsonl"))
    columns = QueryColumns("mldr", name, language=language)

    def query(_line: int, fields: Mapping[str, Any]) -> Iterator[ContentRow]:
        query_id = f"{name}/{record_id(fields, ('query_id',))}"
        yield ContentRow(query_id, record_text(fields, "query") or "", extra=tuple(columns))

    def queries() -> ContentRows:
        return read_each(questions, without_rejects(folder.records(questions)), query)

    judgements = partial(_judgements, folder, questions, f"{name}/")
    return passage_part(folder, name, columns, [corpus], queries, judgements)


def _judgements(folder: BenchmarkFolder, path: str, prefix: str) -> Qrels:
    def qrels(_line: int, fields: Mapping[str, Any]) -> Iterator[Qrel]:
        query_id = prefix + record_id(fields, ("query_id",))
        for name, relevance in (("positive_passages", 1), ("negative_passages", 0)):
            for passage in _passages(fields, name):
                yield Qrel(query_id, prefix + record_id(passage, ("docid",)), relevance)

    return read_each(path, folder.records(path), qrels)


def _passages(fields: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    passages = fields.get(name) or []
    if not isinstance(passages, list) or not all(isinstance(passage, Mapping) for passage in passages):
        raise LineFault(SourceFault.FIELD_INVALID, f"'{name}' is not a list of passages")
    return passages
