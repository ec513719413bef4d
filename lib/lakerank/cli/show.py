"""`lakerank show` and `lakerank runs`: a run's lists, and a lake's runs, for people to look at."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakerank.cli.job import AT_HAND, Job, config_option, json_option, run_job, set_option, verbose_option
from lakerank.config import Config, load_config
from lakerank.errors import ConfigError

if TYPE_CHECKING:
    from lakerank.cli.resolve import CommandLine
    from lakerank.lake.ranked import ShownDocument, ShownQuery
    from lakerank.lake.runs import RunPaths
    from lakerank.lake.storage import Storage
    from lakerank.records import RankedDocument, Reject

EPILOG = "Prints texts of the lake. Exit status: 0 success, 1 failure, 2 invalid arguments or config."

#: The longer side of a thumbnail, in pixels.
THUMBNAIL_SIDE = 480


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a query: its list, of which all or only the first, the rejected documents, and another list."""

    query: ShownQuery
    ranked: list[RankedDocument] = field(default_factory=list)
    rejected: list[Reject] = field(default_factory=list)
    other: list[RankedDocument] | None = None


def _its_config(context: click.Context, option: click.Parameter, output: str | None) -> str | None:
    """Let the config that a search left in an output folder be the one at hand."""
    if output and (file := Path(output).expanduser() / AT_HAND).is_file():
        context.default_map = {"config_path": str(file)}
    return output


output_option = click.option(
    "--output", metavar="FOLDER", is_eager=True, callback=_its_config, help="The lake's folder, and the config there."
)


@click.command(cls=Job, epilog=EPILOG)
@click.argument("run_and_query", nargs=-1, metavar="[RUN] [QUERY]")
@config_option
@output_option
@set_option
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Documents of each query.")
@click.option("--queries", "most", type=click.IntRange(min=1), default=10, show_default=True, help="Queries to show.")
@click.option("--against", metavar="RUN", help="Another run of the same lake, to compare ranks with.")
@click.option(
    "--thumbnails", type=click.Path(path_type=Path), metavar="FOLDER", help="Write images of documents there."
)
@json_option
@verbose_option
def show(
    config_path: Path, output: str | None, overrides: Sequence[str], verbose: bool, as_json: bool, **options: Any
) -> None:
    """Show the lists of a run: rank before and after, relevance, label, file, page and text, and what was rejected.

    RUN is a run of the lake, by default the current one. QUERY is the id of a query, or words of its text.
    """

    def work() -> dict[str, Any]:
        from lakerank.cli.resolve import CommandLine

        sets = (*overrides, *_output(output))
        given = CommandLine(load_config(config_path, sets), str(config_path), sets, other_tables=True)
        return _show(given, as_json, **options)

    run_job(work, verbose, as_text=_text(as_json), quiet=not verbose)


@click.command(cls=Job, epilog=EPILOG)
@config_option
@output_option
@set_option
@json_option
@verbose_option
def runs(config_path: Path, output: str | None, overrides: Sequence[str], verbose: bool, as_json: bool) -> None:
    """List the runs of the lake: when, whether published or current, counts, nDCG@10 where evaluated, and the model."""

    def work() -> dict[str, Any]:
        return _runs(load_config(config_path, (*overrides, *_output(output))))

    run_job(work, verbose, as_text=None if as_json else _runs_table)


def _output(folder: str | None) -> list[str]:
    return [f"lake.output={json.dumps(str(Path(folder).expanduser()))}"] if folder else []


def _text(as_json: bool) -> Callable[[Mapping[str, Any]], str] | None:
    return None if as_json else lambda summary: str(summary["text"])


def _show(
    given: CommandLine,
    as_json: bool,
    run_and_query: Sequence[str],
    top: int,
    most: int,
    against: str | None,
    thumbnails: Path | None,
) -> dict[str, Any]:
    from lakerank.cli import resolve
    from lakerank.lake.publication import find_run
    from lakerank.lake.ranked import find_queries, ranked_lists, rejected_lists, shown_documents
    from lakerank.lake.runs import RunPaths, check_run_id

    storage, output = resolve.storage(given.config.lake.storage), given.config.lake.output
    run_id, words = _run_and_query(storage, output, run_and_query)

    def paths_of(run_id: str) -> RunPaths:
        check_run_id(run_id)
        return RunPaths(output, find_run(storage, output, run_id))

    paths = paths_of(run_id)
    lake = resolve.run_config(storage, given, paths.run_id).lake.located()
    queries = find_queries(storage, lake.queries, words, most)
    if not queries:
        raise ConfigError([f"no query of {lake.queries} has the id or all the words {words!r}"])
    ids = [query.query_id for query in queries]
    ranked, rejected = ranked_lists(storage, paths, ids), rejected_lists(storage, paths, ids)
    others = ranked_lists(storage, paths_of(against), ids) if against else None
    shown = [
        Shown(query, ranked.get(query.query_id, []), rejected.get(query.query_id, []),
              None if others is None else others.get(query.query_id, []))
        for query in queries
    ]  # fmt: skip
    doc_ids = {document.doc_id for item in shown for document in (*item.ranked[:top], *(item.other or [])[:top])}
    doc_ids |= {reject.doc_id for item in shown for reject in item.rejected[:top]}
    documents = shown_documents(storage, lake.documents, doc_ids, images=thumbnails is not None)
    files = write_thumbnails(thumbnails, documents) if thumbnails else {}
    if as_json:
        return {"run_id": paths.run_id, "queries": [as_dict(item, documents, files, top) for item in shown]}
    beside = f", rank in run {against}" if against else ""
    title = f"Run {paths.run_id}: rank, relevance, label, rank in the first stage{beside}, file and text"
    return {"text": "\n\n".join([title, *(as_lines(item, documents, files, top) for item in shown)])}


def _run_and_query(storage: Storage, output: str, arguments: Sequence[str]) -> tuple[str, str | None]:
    """The run and the query that one or two arguments name: one alone is a run if there is such a run."""
    from lakerank.lake.publication import CURRENT
    from lakerank.lake.storage import join

    if len(arguments) > 1:
        return arguments[0], " ".join(arguments[1:])
    if not arguments:
        return CURRENT, None
    names = [CURRENT, *storage.list_names(join(output, "runs"))]
    return (arguments[0], None) if arguments[0] in names else (CURRENT, arguments[0])


def as_lines(
    item: Shown, documents: Mapping[str, ShownDocument], files: Mapping[str, str], top: int, full: bool = True
) -> str:
    """A query and its list as lines, none wider than the terminal; `full`: with label, rank before, and rejects."""
    from lakerank.evaluation.report.cells import fit, one_line
    from lakerank.lake.ranked import passage

    width = min(shutil.get_terminal_size((110, 24)).columns, 160)
    query = one_line(item.query.text) or "[image]"
    lines = [click.style(fit(f"{query}  ({item.query.query_id})" if full else query, width), bold=True)]
    other = {document.doc_id: document.rank for document in item.other or ()}
    for document in item.ranked[:top]:
        about = documents[document.doc_id]
        before = f"  {_moved(document.first_stage_rank, '–'):>7}" if full else ""
        beside = "" if item.other is None else f"  {_moved(other.get(document.doc_id), 'new'):>7}"
        label = f"  {document.label}" if full else ""
        relevance = "   –" if math.isnan(document.relevance) else f"{document.relevance:.2f}"
        line = f"{document.rank:>4}  {relevance}{label}{before}{beside}  {_place(about)}"
        lines.append(fit(f"{line}  {one_line(passage(about.text, item.query.text))}", width))
        if about.doc_id in files:
            lines.append(f"{'':>12}{files[about.doc_id]}")
    if not item.ranked:
        lines.append("      nothing was ranked")
    left = [document for document in (item.other or [])[:top] if document.doc_id not in _top_ids(item, top)]
    lines += [fit(f"      gone from rank {d.rank}: {_place(documents[d.doc_id])}", width) for d in left]
    if full and item.rejected:
        counts = Counter(reject.reason.value for reject in item.rejected)
        lines.append("      rejected: " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common()))
        lines += [
            fit(f"        {reject.reason.value}: {_place(documents[reject.doc_id])}  {one_line(reject.detail)}", width)
            for reject in item.rejected[:top]
        ]
    return "\n".join(line.rstrip() for line in lines)


def _top_ids(item: Shown, top: int) -> set[str]:
    return {document.doc_id for document in item.ranked[:top]}


def _moved(rank: int | None, unknown: str) -> str:
    return unknown if rank is None else f"was {rank}"


def _place(about: ShownDocument) -> str:
    """The file and the page of a document; its id where the table does not know its file."""
    from lakerank.evaluation.report.cells import one_line

    page = f", page {about.page}" if about.page is not None else ""
    return f"{one_line(about.path or about.doc_id)}{page if about.path else ''}"


def as_dict(item: Shown, documents: Mapping[str, ShownDocument], files: Mapping[str, str], top: int) -> dict[str, Any]:
    """A query and its list, for JSON."""
    from lakerank.lake.ranked import passage

    other = {document.doc_id: document.rank for document in item.other or ()}

    def described(doc_id: str) -> dict[str, Any]:
        about = documents[doc_id]
        place = {"doc_id": doc_id, "path": about.path, "page": about.page, "title": about.title}
        return place | {"text": passage(about.text, item.query.text), "thumbnail": files.get(doc_id)}

    results = [
        {"rank": document.rank, "relevance": round(document.relevance, 6), "label": document.label,
         "logit": document.logit, "first_stage_rank": document.first_stage_rank, "truncated": document.truncated,
         **({} if item.other is None else {"other_rank": other.get(document.doc_id)}), **described(document.doc_id)}
        for document in item.ranked[:top]
    ]  # fmt: skip
    rejected = [
        {"doc_id": reject.doc_id, "reason": reject.reason.value, "detail": reject.detail} for reject in item.rejected
    ]
    query = {"query_id": item.query.query_id, "text": item.query.text}
    return {**query, "ranked": len(item.ranked), "results": results, "rejected": rejected}


def write_thumbnails(folder: Path, documents: Mapping[str, ShownDocument]) -> dict[str, str]:
    """Write an image of each document that has one; returns the files by document id."""
    from lakerank.model.preprocess.images import small_jpeg

    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for doc_id, document in documents.items():
        small = small_jpeg(document.image, THUMBNAIL_SIDE) if document.image else None
        if small is not None:
            file = folder / f"{hashlib.sha256(doc_id.encode()).hexdigest()[:16]}.jpg"
            file.write_bytes(small)
            files[doc_id] = str(file)
    return files


def _runs(config: Config) -> dict[str, Any]:
    from lakerank.cli import resolve
    from lakerank.lake.publication import current_run, publication_order
    from lakerank.lake.runs import RunPaths, read_json
    from lakerank.lake.storage import join

    storage, output = resolve.storage(config.lake.storage), config.lake.output
    pointer = current_run(storage, output) or {}
    runs = []
    for name in storage.list_names(join(output, "runs")):
        paths = RunPaths(output, name)
        manifest = read_json(storage, paths.manifest) or {}
        row = _run(storage, paths, manifest) | {"current": name == pointer.get("run_id")}
        runs.append((not manifest, publication_order(manifest), str(row["when"] or ""), row))
    runs.sort(key=lambda run: run[:3], reverse=True)  # what is not published has no number: it comes first
    return {"output": output, "current": pointer.get("run_id"), "runs": [row for *_, row in runs]}


def _run(storage: Storage, paths: RunPaths, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's files say of it."""
    from lakerank.lake.runs import read_json
    from lakerank.lake.storage import join
    from lakerank.settings import parse_settings

    audit = read_json(storage, join(paths.folder, "audit.json"))
    evaluation = read_json(storage, join(paths.folder, "evaluation.json")) or {}
    config = parse_settings(storage.read_optional(paths.config) or b"{}", paths.config)
    model, counts = config.get("model"), manifest.get("counts", {})
    failed = audit is not None and not audit["passed"]
    state = "published" if manifest else "audit failed" if failed else "unfinished"
    started = (read_json(storage, paths.started) or {}).get("started_at")
    return {
        "run_id": paths.run_id,
        "when": manifest.get("published_at") or started,
        "state": f"{state} anyway" if "published_anyway" in manifest else state,
        **{name: counts.get(name) for name in ("candidates", "scored", "reused", "rejected")},
        "nDCG@10": evaluation.get("overall", {}).get("reranked", {}).get("nDCG@10"),
        "model": model.get("path") if isinstance(model, dict) and "path" in model else "several" if model else None,
    }


def _runs_table(summary: Mapping[str, Any]) -> str:
    """A run a line; * marks the current one."""
    columns = ("run_id", "when", "state", "candidates", "scored", "reused", "rejected", "nDCG@10", "model")
    rows = [["", *columns]]
    for run in summary["runs"]:
        when = str(run["when"] or "–")[:16].replace("T", " ")
        cells = [when if name == "when" else _cell(run[name]) for name in columns]
        rows.append(["*" if run["current"] else "", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = range(4, 9)
    lines = [
        "  ".join(
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines) if summary["runs"] else f"no runs in {summary['output']}"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    show()
