"""`lakerank show`: a run's lists, for people to look at."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from lakerank.cli import resolve
from lakerank.cli.cells import fit, one_line
from lakerank.cli.job import AT_HAND, Job
from lakerank.errors import ConfigError
from lakerank.lake.publication import CURRENT, find_run
from lakerank.lake.ranked import (
    ShownDocument,
    ShownQuery,
    find_queries,
    passage,
    ranked_lists,
    rejected_lists,
    shown_documents,
)
from lakerank.lake.runs import RunPaths
from lakerank.lake.storage import Storage, join
from lakerank.records import RankedDocument, Reject

EPILOG = "Prints texts of the lake. Exit status: 0 success, 1 failure, 2 invalid arguments or config."

#: The longer side of a thumbnail, in pixels.
THUMBNAIL_SIDE = 480


@dataclass(frozen=True, slots=True)
class Shown:
    """The documents of some lists, their thumbnails by id, and how many of each list are shown."""

    documents: Mapping[str, ShownDocument]
    top: int
    thumbnails: Mapping[str, str]

    def list_of(
        self, query: ShownQuery, ranked: Sequence[RankedDocument], rejected: Sequence[Reject] = (),
        other: Sequence[RankedDocument] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A query, its list and what was rejected, for JSON; with another list, the ranks there and what has gone."""
        others = {document.doc_id: document.rank for document in other or ()}
        results = [self._result(document, query.text) for document in ranked[: self.top]]
        rejects = [
            {"doc_id": reject.doc_id, "reason": reject.reason.value, "detail": reject.detail,
             **(self._place(reject.doc_id) if number < self.top else {})}
            for number, reject in enumerate(rejected)
        ]  # fmt: skip
        shown = {**asdict(query), "ranked": len(ranked), "results": results, "rejected": rejects}
        if other is None:
            return shown
        for result in results:
            result["other_rank"] = others.get(result["doc_id"])
        still = {result["doc_id"] for result in results}
        gone = [document for document in other[: self.top] if document.doc_id not in still]
        return shown | {"gone": [{"rank": document.rank, **self._place(document.doc_id)} for document in gone]}

    def _result(self, document: RankedDocument, query: str) -> dict[str, Any]:
        about, known = self.documents[document.doc_id], not math.isnan(document.relevance)
        return {
            "rank": document.rank,
            "relevance": round(document.relevance, 6) if known else None,
            "label": document.label,
            "logit": document.logit if known else None,
            "first_stage_rank": document.first_stage_rank,
            "truncated": document.truncated,
            **self._place(document.doc_id),
            "title": about.title,
            "text": passage(about.text, query),
            "thumbnail": self.thumbnails.get(document.doc_id),
        }

    def _place(self, doc_id: str) -> dict[str, Any]:
        about = self.documents[doc_id]
        return {"doc_id": doc_id, "path": about.path, "page": about.page}


def as_lines(shown: Mapping[str, Any], full: bool = True) -> str:
    """`Shown.list_of` as lines, none wider than the terminal; `full`: with ids, labels, ranks before, and rejects."""
    width = min(shutil.get_terminal_size((110, 24)).columns, 160)
    query = one_line(shown["text"]) or "[image]"
    lines = [click.style(fit(f"{query}  ({shown['query_id']})" if full else query, width), bold=True)]
    lines += [fit(f"      instruction: {one_line(shown['instruction'])}", width)] if shown["instruction"] else []
    for result in shown["results"]:
        relevance = "   –" if result["relevance"] is None else f"{result['relevance']:.2f}"
        label = f"  {result['label']}  {_moved(result['first_stage_rank'], '–'):>7}" if full else ""
        beside = f"  {_moved(result['other_rank'], 'new'):>7}" if "other_rank" in result else ""
        line = f"{result['rank']:>4}  {relevance}{label}{beside}  {_place(result)}  {one_line(result['text'])}"
        lines.append(fit(line, width))
        if result["thumbnail"]:
            lines.append(f"{'':>12}{result['thumbnail']}")
    if not shown["results"]:
        lines.append("      nothing was ranked")
    lines += [fit(f"      gone from rank {gone['rank']}: {_place(gone)}", width) for gone in shown.get("gone", ())]
    if full and shown["rejected"]:
        counts = Counter(reject["reason"] for reject in shown["rejected"])
        lines.append("      rejected: " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common()))
        lines += [
            fit(f"        {reject['reason']}: {_place(reject)}  {one_line(reject['detail'])}", width)
            for reject in shown["rejected"]
            if "path" in reject
        ]
    return "\n".join(line.rstrip() for line in lines)


def _moved(rank: int | None, unknown: str) -> str:
    return unknown if rank is None else f"was {rank}"


def _place(about: Mapping[str, Any]) -> str:
    """The file and the page of a document; its id where the table does not know its file."""
    page = f", page {about['page']}" if about["path"] and about["page"] is not None else ""
    return f"{one_line(about['path'] or about['doc_id'])}{page}"


def _show_text(summary: Mapping[str, Any]) -> str:
    beside = f", rank in run {summary['against']}" if summary["against"] else ""
    title = f"Run {summary['run_id']}: rank, relevance, label, rank in the first stage{beside}, file and text"
    return "\n\n".join([title, *map(as_lines, summary["queries"])])


def _its_config(context: click.Context, option: click.Parameter, output: str | None) -> str | None:
    """Let the config that a search left in an output folder be the one at hand."""
    if output and (file := Path(output).expanduser() / AT_HAND).is_file():
        context.default_map = {"config": str(file)}
    return output


#: Of the commands for people that look at a lake.
output_option = click.option(
    "--output", metavar="FOLDER", is_eager=True, callback=_its_config, help="The lake's folder, and the config there."
)


def with_output(given: resolve.CommandLine, folder: str | None) -> resolve.CommandLine:
    """The command line with the folder that --output names."""
    lake = given.config.lake.model_copy(update={"output": folder} if folder else {})
    return replace(given, config=given.config.model_copy(update={"lake": lake}))


@click.command(cls=Job, epilog=EPILOG, as_text=_show_text)
@click.argument("run_and_query", nargs=-1, metavar="[RUN] [QUERY]")
@output_option
@click.option("--top", type=click.IntRange(min=1), default=10, help="Documents of each query.")
@click.option("--queries", "most", type=click.IntRange(min=1), default=10, help="Queries to show.")
@click.option("--against", metavar="RUN", help="Another run of the same lake, to compare ranks with.")
@click.option(
    "--thumbnails", type=click.Path(path_type=Path), metavar="FOLDER", help="Write images of documents there."
)
def show(given: resolve.CommandLine, output: str | None, **options: Any) -> dict[str, Any]:
    """Show the lists of a run: rank before and after, relevance, label, file, page and text, and what was rejected.

    RUN is a run of the lake, by default the current one. QUERY is the id of a query, or words of its text.
    """
    return _show(with_output(given, output), **options)


def _show(
    given: resolve.CommandLine, run_and_query: Sequence[str], top: int, most: int, against: str | None,
    thumbnails: Path | None,
) -> dict[str, Any]:  # fmt: skip
    storage, output = resolve.storage(given.config.lake.storage), given.config.lake.output
    run_id, words = _run_and_query(storage, output, run_and_query)
    paths = RunPaths(output, find_run(storage, output, run_id))
    lake = resolve.run_config(storage, given, paths.run_id, other_tables=True).lake.located()
    storage = resolve.storage(lake, storage.pins)
    queries = find_queries(storage, lake.queries, words, most)
    if not queries:
        raise ConfigError([f"no query of {lake.queries} has the id or all the words {words!r}"])
    ids = [query.query_id for query in queries]
    ranked, rejected = ranked_lists(storage, paths, ids), rejected_lists(storage, paths, ids)
    baseline = RunPaths(output, find_run(storage, output, against)) if against else None
    others = ranked_lists(storage, baseline, ids) if baseline else {}
    lists: list[list[Any]] = [*ranked.values(), *rejected.values(), *others.values()]
    doc_ids = {document.doc_id for documents in lists for document in documents[:top]}
    documents = shown_documents(storage, lake.documents, doc_ids, images=thumbnails is not None)
    shown = Shown(documents, top, write_thumbnails(thumbnails, documents) if thumbnails else {})
    queries_shown = [
        shown.list_of(
            query, ranked.get(query.query_id, []), rejected.get(query.query_id, []),
            others.get(query.query_id, []) if against else None,
        )
        for query in queries
    ]  # fmt: skip
    return {"run_id": paths.run_id, "against": against, "queries": queries_shown}


def _run_and_query(storage: Storage, output: str, arguments: Sequence[str]) -> tuple[str, str | None]:
    """The run and the query that one or two arguments name: one alone is a run if there is such a run."""
    if len(arguments) > 1:
        return arguments[0], " ".join(arguments[1:])
    if not arguments:
        return CURRENT, None
    names = [CURRENT, *storage.list_names(join(output, "runs"))]
    return (arguments[0], None) if arguments[0] in names else (CURRENT, arguments[0])


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
