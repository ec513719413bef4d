"""Benchmarks whose documents are passages of text, a corpus for each dataset: BEIR, CoIR, MIRACL and MLDR.

Files are named by each layout's `expects` below; docs/benchmarks.md says how figures are counted.

BEIR: `beir/datasets/data_loader.py` in github.com/beir-cellar/beir. A corpus line is `{"_id", "title", "text"}`, a
query line `{"_id", "text"}`. CQADupStack is a folder of folders: twelve forums whose mean is one figure. On the hub
qrels are in a repository of their own, `NAME-qrels`.

CoIR: `coir/data_loader.py` in github.com/CoIR-team/coir. The splits `corpus` and `queries` have `_id`, `title` and
`text`. CodeSearchNet and CodeSearchNet-CCR are one figure each, the mean over six programming languages.

MIRACL: the cards of the hub's `miracl/miracl` and `miracl/miracl-corpus`, `FlagEmbedding/evaluation/miracl/` in
github.com/FlagOpen/FlagEmbedding. Corpus lines are `{"docid", "title", "text"}`; a docid is unique in its language.

MLDR: the card of the hub's `Shitao/MLDR`, `FlagEmbedding/evaluation/mldr/` there. Corpus lines are `{"docid", "text"}`;
queries hold their judgements, `{"query_id", "query", "positive_passages", "negative_passages"}`, lists of `{"docid"}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lakerank.ingest.lines import record_id
from lakerank.ingest.rejects import SourceError, SourceFault
from lakerank.lake.storage import join
from lakerank.records import Qrel
from lakerank_datasets.layouts.benchmark import Layout, Part, QueryColumns, Table, passage_part, passages
from lakerank_datasets.layouts.benchmark_folder import CORPUS_ID, QUERY_ID, BenchmarkFolder

#: MS MARCO has no judgements for its test queries in BEIR: its figures are of the development queries.
_SPLITS = {"msmarco": "dev"}


def _beir_datasets(folder: BenchmarkFolder, _split: str) -> list[tuple[str, str, str | None]]:
    """Path, name and subset of each dataset, in the folder or below it."""

    def is_dataset(path: str) -> bool:
        return folder.find(join(path, "corpus.jsonl")) is not None

    if is_dataset(""):
        return [("", folder.name, None)]
    datasets: list[tuple[str, str, str | None]] = []
    for name in folder.folders():
        if is_dataset(name):
            datasets.append((name, name, None))
        elif not name.endswith("-qrels"):
            subsets = [subset for subset in folder.folders(name) if is_dataset(join(name, subset))]
            datasets += [(join(name, subset), name, subset) for subset in subsets]
    return datasets


def _beir(folder: BenchmarkFolder, split: str, path: str, dataset: str, subset: str | None) -> list[Part]:
    split = split or _SPLITS.get(dataset, "test")
    corpus = folder.require(join(path, "corpus.jsonl"))
    queries = folder.require(join(path, "queries.jsonl"))
    tables = (join(path, "qrels", f"{split}.tsv"), join(f"{path}-qrels", f"{split}.tsv"))
    qrels = folder.require(*(tables if path else tables[:1]))
    columns, questions = QueryColumns("beir", dataset, subset), Table([queries], ("_id",), ("text",), "language")
    name, judgements = join(dataset, subset or ""), partial(folder.qrels, qrels)
    return [replace(passage_part(folder, name, columns, passages(corpus), questions, judgements), excludes_itself=True)]


BEIR = Layout(
    expects="a dataset's corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, or a folder of such datasets",
    split="",  # each dataset's own
    datasets=_beir_datasets,
    parts=_beir,
)


#: The four main tasks of the benchmark's own table.
_COIR_TASKS = {
    "apps": "text-to-code",
    "cosqa": "text-to-code",
    "synthetic-text2sql": "text-to-code",
    "codesearchnet": "code-to-text",
    "codesearchnet-ccr": "code-to-code",
    "codetrans-dl": "code-to-code",
    "codetrans-contest": "code-to-code",
    "stackoverflow-qa": "hybrid",
    "codefeedback-st": "hybrid",
    "codefeedback-mt": "hybrid",
}

_COIR_SUFFIX = "-queries-corpus"
_CODE_SEARCH = re.compile(r"(codesearchnet(?:-ccr)?)-(\w+)", re.IGNORECASE)


def _coir_datasets(folder: BenchmarkFolder, _split: str) -> list[tuple[str]]:
    return [(name.removesuffix(_COIR_SUFFIX),) for name in folder.folders() if name.endswith(_COIR_SUFFIX)]


def _coir(folder: BenchmarkFolder, split: str, path: str) -> list[Part]:
    corpus = folder.require_parquet(f"{path}{_COIR_SUFFIX}", "corpus", "data")
    queries = folder.require_parquet(f"{path}{_COIR_SUFFIX}", "queries", "data")
    qrels = folder.require_parquet(f"{path}-qrels", split, "data")
    folder.require_columns(corpus, ("_id",), ("text",))
    folder.require_columns(queries, ("_id",), ("text",))
    folder.require_columns(qrels, QUERY_ID, CORPUS_ID, ("score",))
    name, match = path.lower(), _CODE_SEARCH.fullmatch(path)
    dataset, subset = (match[1].lower(), match[2].lower()) if match else (name, None)
    columns = QueryColumns("coir", dataset, subset, task=_COIR_TASKS.get(dataset))
    documents, questions = (Table(paths, ("_id",), ("title", "text")) for paths in (corpus, queries))
    part = passage_part(folder, name, columns, documents, questions, partial(folder.table_qrels, qrels))
    return [replace(part, excludes_itself=True)]


COIR = Layout(
    expects=(
        "NAME-queries-corpus/ with Parquet files corpus-* and queries-*, and NAME-qrels/ with SPLIT-*, of each dataset"
    ),
    split="test",
    datasets=_coir_datasets,
    parts=_coir,
)


_MIRACL = re.compile(r"miracl-v[\d.]+-(?P<language>\w+)")
_MIRACL_ROOTS = ("", "miracl", "miracl-corpus")
_MLDR = re.compile(r"mldr-v[\d.]+-(?P<language>\w+)")


def _languages(
    pattern: re.Pattern[str], roots: tuple[str, ...], folder: BenchmarkFolder, _split: str
) -> list[tuple[str, str]]:
    """Path and language of each folder that a pattern matches."""
    names = ((root, name) for root in roots for name in folder.folders(root))
    return [(join(root, name), match["language"]) for root, name in names if (match := pattern.fullmatch(name))]


def _miracl(folder: BenchmarkFolder, split: str, path: str, language: str) -> list[Part]:
    name, release = f"miracl-{language}", path.rpartition("/")[2]
    topics = folder.require(join(path, "topics", f"topics.{release}-{split}.tsv"))
    qrels = folder.require(join(path, "qrels", f"qrels.{release}-{split}.tsv"))
    corpus = _miracl_corpus(folder, release.replace("miracl-", "miracl-corpus-", 1))
    columns, queries = QueryColumns("miracl", name, language=language), Table([topics], ("query_id",), ("query",))
    return [passage_part(folder, name, columns, passages(*corpus), queries, partial(folder.qrels, qrels, None))]


def _miracl_corpus(folder: BenchmarkFolder, release: str) -> list[str]:
    """The corpus of a language, its files in the order of their numbers."""
    for path in (join(root, release) for root in _MIRACL_ROOTS):
        names = [name for name in folder.files(path) if re.fullmatch(r"docs-\d+\.jsonl(\.gz)?", name)]
        if names:
            return [join(path, name) for name in sorted(names, key=lambda name: (len(name), name))]
    raise folder.missing(f"{release}/docs-0.jsonl.gz")


def _mldr(folder: BenchmarkFolder, split: str, path: str, language: str) -> list[Part]:
    name = f"mldr-{language}"
    corpus = folder.require(join(path, "corpus.jsonl"))
    questions = folder.require(join(path, f"{split}.jsonl"))
    columns, queries = QueryColumns("mldr", name, language=language), Table([questions], ("query_id",), ("query",))
    judgements = partial(folder.read, [questions], _mldr_qrels)
    return [passage_part(folder, name, columns, passages(corpus), queries, judgements)]


def _mldr_qrels(_line: int, fields: Mapping[str, Any]) -> Iterator[Qrel]:
    for key, relevance in (("positive_passages", 1), ("negative_passages", 0)):
        documents = fields.get(key) or []
        if not isinstance(documents, list) or not all(isinstance(document, Mapping) for document in documents):
            raise SourceError(SourceFault.FIELD_INVALID, f"'{key}' is not a list of passages")
        for document in documents:
            yield Qrel(record_id(fields, "query_id"), record_id(document, "docid"), relevance)


MIRACL = Layout(
    expects=(
        "miracl-v1.0-LANG/topics/topics.miracl-v1.0-LANG-SPLIT.tsv, "
        "miracl-v1.0-LANG/qrels/qrels.miracl-v1.0-LANG-SPLIT.tsv and miracl-corpus-v1.0-LANG/docs-*.jsonl.gz, "
        "together or in miracl/ and miracl-corpus/"
    ),
    split="dev",
    datasets=partial(_languages, _MIRACL, _MIRACL_ROOTS),
    parts=_miracl,
)

MLDR = Layout(
    expects="mldr-v1.0-LANG/corpus.jsonl.gz and mldr-v1.0-LANG/SPLIT.jsonl.gz",
    split="test",
    datasets=partial(_languages, _MLDR, ("",)),
    parts=_mldr,
)
