"""`lakerank init` and `lakerank search`: from a folder and some questions to a config, and to ranked lists."""

from __future__ import annotations

import hashlib
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import yaml

from lakerank.cli import resolve
from lakerank.cli.candidates import find_candidates_of
from lakerank.cli.ingest import ingest_both
from lakerank.cli.job import AT_HAND, SET, Job, config_at_hand
from lakerank.cli.rerank import rerank_lake
from lakerank.cli.show import Shown, as_lines
from lakerank.config import BOUNDS, Config, resolve_config
from lakerank.errors import ConfigError, IngestError
from lakerank.ingest.folder import is_readable
from lakerank.lake import formats
from lakerank.lake.ranked import find_queries, first_stage_lists, ranked_lists, shown_documents
from lakerank.lake.runs import RunPaths, read_manifest
from lakerank.lake.storage import Storage
from lakerank.model.checkpoint import MINILM_EN, fetch_command, is_fetched
from lakerank.records import RankedDocument
from lakerank.settings import read_yaml

EPILOG = "Exit status: 0 success, 1 failure, 2 invalid arguments or config, 3 an audit failed, 130 or 143 interrupted."

#: Files in the folder that init describes, at most.
LISTED_FILES = 100_000

#: Characters of a piece of text, and of its overlap with the one before. In a longer piece minilm-en, which has learnt
#: from passages, overlooks the sentence that answers.
CHUNK, CHUNK_OVERLAP = 600, 100

#: Candidates of each query. Of up to so many pairs, documents × queries, the reranker reads all: BM25 does not stem.
DEPTH, WHOLE_PAIRS = 30, 1000

#: Names in a message.
NAMED = 5

#: What lakerank.yaml says of a section or a setting.
_COMMENTS = {
    "source.queries": "one a line; or CSV, or JSON Lines",
    "source.pdf_content": "text, or image: pages as images, for a model that sees them",
    "source.chunk": "long texts in pieces of so many characters, each a document",
    "lake.output": "scores, runs and lists",
    "audit": "a first list is published whatever it lacks; remove this section for a lake that others read",
}


#: The end of a piece's id.
_PIECE = re.compile(r"[#&]chunk=\d+$")

#: A person who looks at a list judges it: no bound of the audit hides it.
UNBOUNDED = dict.fromkeys(BOUNDS)

#: The options of both commands.
_SOURCE = (
    click.Argument(["folder"], type=click.Path(path_type=Path), required=False),
    click.Option(
        ["--queries"], type=click.Path(path_type=Path), metavar="FILE", help="Queries: one a line, or CSV, JSONL."
    ),
    click.Option(
        ["--output"], type=click.Path(path_type=Path), metavar="FOLDER",
        help="Folder for the lake.  [default: lakerank-out]",
    ),
)  # fmt: skip


def _init_text(summary: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in summary["files"].items())
    notes = "".join(f"{note}\n" for note in summary["notes"])
    return f"{counts}\n{notes}Wrote {summary['config']}. Next: lakerank search"


@click.command(cls=Job, epilog=EPILOG, config=None, as_text=_init_text, params=[*_SOURCE])
@click.option("--model", default=MINILM_EN, help="A reranker: a folder, a hub id, or a name.")
def init(folder: Path | None, queries: Path | None, output: Path | None, model: str) -> dict[str, Any]:
    """Look at FOLDER and write ./lakerank.yaml, the config that every command takes where --config is absent.

    An earlier ./lakerank.yaml is not overwritten.
    """
    values = _new_values(folder, queries, output, model)
    if Path(AT_HAND).exists():
        raise ConfigError([f"{AT_HAND} is here already: remove it, or call this in another folder"])
    kinds = _kinds(Path(values["source"]["folder"]))
    text = _config_text(values, kinds)
    resolve_config(yaml.safe_load(text), source=AT_HAND)  # what is written can be read
    with Path(AT_HAND).open("x", encoding="utf-8") as file:
        file.write(f"{text}\n")
    return {"config": AT_HAND, "files": kinds, "notes": _notes(values, kinds)}


def _search_text(summary: Mapping[str, Any]) -> str:
    """The lists, and what was done in a line or two."""
    lists = [as_lines(shown, full=False) for shown in summary["queries"]]
    return "\n\n".join([*lists, _closing(summary)])


@click.command(cls=Job, epilog=EPILOG, config=None, as_text=_search_text, params=[*_SOURCE, SET])
@click.option("--top", type=click.IntRange(min=1), default=10, help="Results of each query.")
@click.option(
    "--depth", type=click.IntRange(min=1),
    help=f"Candidates of each query.  [default: {DEPTH}, or all documents of a folder of up to {WHOLE_PAIRS:,} pairs]",
)  # fmt: skip
@click.option("--model", help="A reranker: a folder, a hub id, or a name.  [default: minilm-en, if it is fetched]")
def search(top: int, depth: int | None, overrides: Sequence[str], **options: Any) -> dict[str, Any]:
    """Rank the documents of FOLDER for each query: ingest, first stage, rerank and show, in one.

    The lake is in ./lakerank-out, never inside FOLDER. Called again, it scores only what has no score yet: new and
    changed files and queries. Without FOLDER it searches that of ./lakerank.yaml, or the one searched before.
    """
    config = _config(overrides=overrides, **options)
    lasting = [override for override in overrides if not override.lstrip().startswith("audit.")]
    return _search(config, _config(overrides=lasting, **options), top, depth)


def _new_values(folder: Path | None, queries: Path | None, output: Path | None, model: str) -> dict[str, Any]:
    """The values of a config for the source that arguments name, checked.

    Raises:
        ConfigError: a name is missing or not there, or the output is inside the folder; all faults at once.
    """
    faults = []
    if folder is None:
        faults.append("FOLDER: name the folder of your documents")
    elif not (folder := folder.expanduser()).is_dir():
        is_file = folder.is_file()
        advice = "it is a file: name the folder that it is in" if is_file else "there is no such folder"
        faults.append(f"{folder}: {advice}{'' if is_file else f' (looked for {folder.absolute()})'}")
    if queries is None:
        faults.append("--queries: name a file of queries, one a line")
    elif not _is_file(queries := queries.expanduser()):
        asked = "; write questions in a file, one a line" if set(str(queries)) & set(" ?") else ""
        faults.append(f"--queries {queries}: there is no such file (looked for {queries.absolute()}){asked}")
    if faults or folder is None or queries is None:
        raise ConfigError(faults)
    inside = output is None and Path.cwd().is_relative_to(folder.resolve())
    output = output.expanduser() if output else folder.resolve().parent / LAKE if inside else Path(LAKE)
    if output.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            [f"--output {output} is inside {folder}, and would be read as part of it: choose another folder"]
        )
    names, texts = ("documents", "queries", "candidates"), model == MINILM_EN
    cut = {"pdf_content": "text", "chunk": CHUNK, "chunk_overlap": CHUNK_OVERLAP} if texts else {}
    return {
        "source": {"folder": str(folder), "queries": str(queries), **cut},
        "lake": {**{name: str(output / "tables" / name) for name in names}, "output": str(output)},
        "model": {"path": model},
        "audit": UNBOUNDED,
    }


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a question is too long for a name
        return False


LAKE = "lakerank-out"


def _config(
    folder: Path | None, queries: Path | None, output: Path | None, model: str | None, overrides: Sequence[str]
) -> Config:
    """The config of a search: the one at hand, or a new one."""
    if folder is not None:
        return resolve_config(_new_values(folder, queries, output, model or MINILM_EN), overrides, source="search")
    path = config_at_hand()
    if path is None:
        raise ConfigError([f"FOLDER: name the folder of your documents, or call this where {AT_HAND} is"])
    values = read_yaml(path)
    values["source"] = {**values.get("source", {}), **({"queries": str(queries)} if queries else {})}
    values |= {"model": {"path": model}} if model else {}
    return resolve_config(values, overrides, source=str(path))


def _config_text(values: Mapping[str, Any], kinds: Mapping[str, int]) -> str:
    """The content of lakerank.yaml."""
    model, source = values["model"]["path"], values["source"]
    fetched = "" if is_fetched(model) else f"; `{fetch_command(model)}` gets it once"
    advice = f"English texts{fetched}; docs/models.md has others" if model == MINILM_EN else "see docs/models.md"
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    command = shlex.join(["lakerank", "init", source["folder"], "--queries", source["queries"]])
    return "\n".join([
        f"# Written by `{' '.join(command.split())}`: {' '.join(counts.split())}.",
        "# Next: lakerank ingest, lakerank candidates, lakerank rerank, lakerank show; or all in one: lakerank search.",
        "# conf/reference.yaml documents every setting.",
        *_config_lines(values, {**_COMMENTS, "model.path": advice}),
    ])  # fmt: skip


def _config_lines(values: Mapping[str, Mapping[str, Any]], comments: Mapping[str, str]) -> Iterator[str]:
    """Sections and their settings as YAML, with comments."""
    for section, settings in values.items():
        yield f"{section}:{f'    # {comments[section]}' if section in comments else ''}"
        for name, value in settings.items():
            dumped = yaml.safe_dump(value, width=1e9, allow_unicode=True).removesuffix("...\n").strip()
            comment = comments.get(f"{section}.{name}")
            yield f"  {name}: {dumped}{f'    # {comment}' if comment else ''}"


def _kinds(folder: Path) -> dict[str, int]:
    """How many files there are by suffix, most first; hidden ones are not read."""
    kinds: Counter[str] = Counter()
    for path in islice(folder.rglob("*"), LISTED_FILES):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            kinds[path.suffix.lower() if is_readable(path.name) else "not readable"] += 1
    return dict(kinds.most_common())


def _notes(values: Mapping[str, Any], kinds: Mapping[str, int]) -> list[str]:
    """What a person should know before the first list."""
    notes, model = [], values["model"]["path"]
    images = sum(kinds.get(suffix, 0) for suffix in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"))
    if model == MINILM_EN and images:
        notes.append(f"image files: {images}; {model} reads texts alone, docs/models.md names models that see images")
    if model == MINILM_EN and _is_foreign(Path(values["source"]["queries"])):
        notes.append(f"the queries are not in Latin letters: {model} reads English; docs/models.md has other languages")
    return notes


def _is_foreign(file: Path) -> bool:
    with file.open("rb") as stream:
        letters = [letter for letter in stream.read(2**16).decode(errors="ignore") if letter.isalpha()]
    return sum("LATIN" not in unicodedata.name(letter, "") for letter in letters) > len(letters) / 4


def _search(config: Config, kept: Config, top: int, depth: int | None) -> dict[str, Any]:
    """Search, and leave a config for the next one: a bound of the audit on the command line is for this one alone."""
    storage, model = resolve.storage(config.lake), resolve.model_name(config.rerankers[0])
    is_there = model != MINILM_EN or is_fetched(model)
    if is_there:  # a model that cannot be used is not kept in the config
        for reranker in config.rerankers:
            resolve.model_spec(reranker).identify(resolve.limits(config.scoring))
    _say(f"reading {config.source.folder}")
    tables = ingest_both(storage, config)
    _say(f"searching {tables['documents']['rows']:,} documents for {tables['queries']['rows']:,} queries")
    candidates = _first_stage(storage, config, depth, WHOLE_PAIRS if is_there and depth is None else 0)
    storage.replace(f"{config.lake.output}/{AT_HAND}", kept.to_yaml().encode())
    run: dict[str, Any] = {}
    if is_there:
        _say(f"scoring up to {candidates:,} pairs with {model}")
        run_id = _run_id(storage, config)
        unchanged = read_manifest(storage, config.lake.output, run_id) is not None
        run = rerank_lake(config, run_id)
        if unchanged:  # the summary has the figures of the first time
            run |= {"scored": 0, "reused": run["scored"] + run["reused"]}
    else:
        _say(f"no reranker of texts is here: `{fetch_command(model)}` gets one; this is the first stage's order (BM25)")
    return _result(storage, config, run, tables, top)


def _first_stage(storage: Storage, config: Config, depth: int | None, fill_pairs: int) -> int:
    """Find candidates, and say for what there are none; returns how many there are."""
    try:
        found = find_candidates_of(config, depth=depth or DEPTH, fill_pairs=fill_pairs, advice="")
    except IngestError as error:
        names = ", ".join(_textless(storage, config.lake.documents))
        without = f"; without text, and so not searched: {names}" if names else ""
        raise IngestError(f"no document has a word of a query{without}") from error
    if count := found["documents_without_text"]:
        model = resolve.model_name(config.rerankers[0])
        sees = f"{model} reads texts alone" if model == MINILM_EN else "a search by words cannot find them"
        _say(f"{count:,} documents have no text ({', '.join(_textless(storage, config.lake.documents))}): {sees}")
    if count := found["queries_without_candidates"]:
        _say(f"nothing in the folder has a word of {count:,} queries: {', '.join(found['such_queries'])}")
    return int(found["candidates"])


def _say(line: str) -> None:
    click.echo(f"lakerank: {line}", err=True)


def _textless(storage: Storage, documents: str) -> list[str]:
    """The first files without text, images and scans, and then `…` where there are more."""
    names: dict[str, None] = {}
    for file in formats.resolve(storage, documents).files:
        for batch in storage.batches(file, columns=["path", "text", "search_text"]):
            for path, *texts in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if not any(text and text.strip() for text in texts):
                    names[path] = None
                if len(names) > NAMED:
                    return [*list(names)[:NAMED], "…"]
    return list(names)


def _run_id(storage: Storage, config: Config) -> str:
    """Named by what is ranked and how, so that the same search is the same run."""
    digest = hashlib.sha256(config.to_yaml().encode())
    for table in (config.lake.documents, config.lake.queries, config.lake.candidates):
        for file in formats.resolve(storage, table).files:
            digest.update(hashlib.sha256(storage.read_bytes(file.uri)).digest())
    return f"search-{digest.hexdigest()[:10]}"


def _result(
    storage: Storage, config: Config, run: Mapping[str, Any], tables: Mapping[str, Any], top: int
) -> dict[str, Any]:
    """The summary, with the lists of all queries unless an audit failed."""
    lake, ingested = config.lake, tables["documents"]
    names = (
        "run_id", "scored", "reused", "ranked", "rejected_by_reason", "published", "failed_audits", "superseded_by",
    )  # fmt: skip
    summary = {name: run.get(name) for name in names} | {
        "output": lake.output, "not_read": ingested["rejected"], "not_read_by_fault": ingested["rejected_by_fault"],
        "rejects": ingested["rejects"], "queries": [],
    }  # fmt: skip
    if run and not run["published"] and run["failed_audits"]:
        return {**summary, "audit": [check for check in run["audit"] if check["passed"] is False]}
    queries = find_queries(storage, lake.queries, None, tables["queries"]["rows"])
    ids = [query.query_id for query in queries]
    if run:
        lists = ranked_lists(storage, RunPaths(lake.output, run["run_id"]), ids)
    else:
        lists = first_stage_lists(storage, lake.candidates, ids)
    best = {query_id: _of_texts(ranked, top) for query_id, ranked in lists.items()}
    doc_ids = {document.doc_id for ranked in best.values() for document in ranked}
    shown = Shown(shown_documents(storage, lake.documents, doc_ids), top, {})
    return {**summary, "queries": [shown.list_of(query, best.get(query.query_id, [])) for query in queries]}


def _of_texts(ranked: Sequence[RankedDocument], top: int) -> list[RankedDocument]:
    """The first results, ranked anew with one of each text that is in pieces: the best piece."""
    best: dict[str, RankedDocument] = {}
    for document in ranked[: 5 * top]:
        best.setdefault(_PIECE.sub("", document.doc_id), document)
    return [replace(document, rank=rank) for rank, document in enumerate(list(best.values())[:top], start=1)]


def _closing(summary: Mapping[str, Any]) -> str:
    """What was done, in a line or two."""
    lines = []
    if summary["run_id"]:
        done = f"{summary['scored'] or 0:,} pairs scored, {summary['reused'] or 0:,} reused"
        more = f"; `lakerank show` has more of each list (run {summary['run_id']} in {summary['output']})"
        lines.append(f"{done}{'' if 'audit' in summary else more}")
    if rejected := summary["rejected_by_reason"]:
        lines.append(f"not scored: {', '.join(f'{count:,} pairs {reason}' for reason, count in rejected.items())}")
    if "audit" in summary:
        checks = "; ".join(f"{check['name']}, {check['detail']}" for check in summary["audit"])
        lines.append(f"nothing is shown: an audit failed ({checks})")
    if summary["not_read"]:
        faults = ", ".join(f"{count} {fault}" for fault, count in summary["not_read_by_fault"].items())
        lines.append(f"not read: {faults}; {summary['rejects']} says which")
    return "\n".join(lines)
