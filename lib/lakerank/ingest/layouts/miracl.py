"""MIRACL: a corpus, topics and qrels for each language.

Source: the cards of the hub's `miracl/miracl` and `miracl/miracl-corpus`, and `FlagEmbedding/evaluation/miracl/` in
github.com/FlagOpen/FlagEmbedding. Topics are `miracl-v1.0-LANG/topics/topics.miracl-v1.0-LANG-SPLIT.tsv`, query id and
query apart by a tab; qrels are `miracl-v1.0-LANG/qrels/qrels.miracl-v1.0-LANG-SPLIT.tsv` as trec_eval reads them; the
corpus is `miracl-corpus-v1.0-LANG/docs-*.jsonl.gz` of `{"docid", "title", "text"}`, where the docid is unique within
its language. Figures are given for the split `dev`; the headline is the mean over languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial

from lakerank.ingest.layouts.beir import passage_part
from lakerank.ingest.layouts.benchmark import Benchmark, ContentRows, Part, Qrels, QueryColumns, call_all
from lakerank.ingest.layouts.benchmark_folder import BenchmarkFolder
from lakerank.ingest.lines import LineFault, read_each, trec_qrels
from lakerank.ingest.tables import ContentRow, SourceFault
from lakerank.lake.storage import join

EXPECTS = (
    "miracl-v1.0-LANG/topics/topics.miracl-v1.0-LANG-SPLIT.tsv, "
    "miracl-v1.0-LANG/qrels/qrels.miracl-v1.0-LANG-SPLIT.tsv and miracl-corpus-v1.0-LANG/docs-*.jsonl.gz, "
    "together or in miracl/ and miracl-corpus/"
)

_TOPICS = re.compile(r"miracl-v[\d.]+-(?P<language>\w+)")
_ROOTS = ("", "miracl", "miracl-corpus")


def is_miracl(folder: BenchmarkFolder) -> bool:
    """Whether a language's topics lie here."""
    return next(_languages(folder), None) is not None


def read_miracl(folder: BenchmarkFolder, split: str | None) -> Benchmark:
    """Every language whose topics are there; `split` is `dev` by default.

    Raises:
        StorageError: no language is there, or one lacks a file.
    """
    languages = list(_languages(folder))
    if not languages:
        raise folder.missing("miracl-v1.0-LANG")
    parts = call_all(partial(_part, folder, path, language, split or "dev") for path, language in languages)
    return Benchmark("miracl", tuple(parts))


def _languages(folder: BenchmarkFolder) -> Iterator[tuple[str, str]]:
    for root in _ROOTS:
        for name in folder.folders(root):
            if match := _TOPICS.fullmatch(name):
                yield join(root, name), match["language"]


def _part(folder: BenchmarkFolder, path: str, language: str, split: str) -> Part:
    name, release = f"miracl-{language}", path.rpartition("/")[2]
    topics = folder.require(join(path, "topics", f"topics.{release}-{split}.tsv"))
    qrels = folder.require(join(path, "qrels", f"qrels.{release}-{split}.tsv"))
    files = _corpus(folder, release.replace("miracl-", "miracl-corpus-", 1))
    columns = QueryColumns("miracl", name, language=language)

    def judgements() -> Qrels:
        return trec_qrels(qrels, folder.fields(qrels, None), f"{name}/", f"{name}/")

    return passage_part(folder, name, columns, files, lambda: _queries(folder, topics, columns, f"{name}/"), judgements)


def _corpus(folder: BenchmarkFolder, release: str) -> Sequence[str]:
    """The corpus of a language, its files in the order of their numbers."""
    for root in _ROOTS:
        path = join(root, release)
        names = [name for name in folder.files(path) if re.fullmatch(r"docs-\d+\.jsonl(\.gz)?", name)]
        if names:
            return [join(path, name) for name in sorted(names, key=lambda name: (len(name), name))]
    raise folder.missing(f"{release}/docs-0.jsonl.gz")


def _queries(folder: BenchmarkFolder, path: str, columns: QueryColumns, prefix: str) -> ContentRows:
    def query(_line: int, fields: list[str]) -> Iterator[ContentRow]:
        if len(fields) < 2 or not fields[0]:
            raise LineFault(SourceFault.FIELD_MISSING, "not a query id and a query apart by a tab")
        yield ContentRow(prefix + fields[0], fields[1].strip(), extra=tuple(columns))

    return read_each(path, folder.fields(path), query)
