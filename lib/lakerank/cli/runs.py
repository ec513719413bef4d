"""`lakerank runs` and `lakerank clean`: the runs of a lake, and what none that is kept needs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import click

from lakerank.cli import resolve
from lakerank.cli.job import Job
from lakerank.cli.show import EPILOG, output_option, with_output
from lakerank.config import Config
from lakerank.errors import CheckpointError, LakerankError
from lakerank.lake.checksums import CorruptFile
from lakerank.lake.clean import Retention, delete, describe, plan_cleaning
from lakerank.lake.publication import current_run, publication_order
from lakerank.lake.runs import RunPaths, read_config, read_json
from lakerank.lake.storage import Storage, join
from lakerank.settings import parse_settings

logger = logging.getLogger(__name__)

_COLUMNS = ("run_id", "when", "state", "candidates", "scored", "reused", "rejected", "nDCG@10", "model")


@click.command(cls=Job)
@click.option(
    "--keep-runs", type=click.IntRange(min=1), default=3,
    help="Published runs to keep: the current one and the latest.",
)  # fmt: skip
@click.option(
    "--keep-days", type=click.FloatRange(min=0), default=0, help="Also keep published runs younger than this."
)
@click.option(
    "--grace-hours", type=click.FloatRange(min=1), default=48,
    help="Keep an unpublished run that wrote a file within this time: it may still be running. Must exceed the longest "
    "time in which a job writes nothing.",
)  # fmt: skip
@click.option("--apply", is_flag=True, help="Delete the files. Without it they are only listed.")
def clean(
    given: resolve.CommandLine, keep_runs: int, keep_days: float, grace_hours: float, apply: bool
) -> dict[str, Any]:
    """List, and with --apply delete, files of the output folder that no kept run needs.

    These are: published runs beyond the retention; abandoned runs; plans and ranked files that no manifest names;
    temporary files; scores of models that neither a kept run nor this config uses; score files whose content is also
    in another file; the index of table files that no longer exist. Scores that a later run could reuse are kept, and
    so is every file that lakerank did not write.

    Safe to run next to a job: it stops when one starts. The last line of standard output is a JSON object: applied,
    listed and deleted (files and bytes), by_reason, kept_runs, complete, seconds.
    """
    started, config, lake = time.monotonic(), given.config, given.config.lake.located()
    storage = resolve.storage(lake)
    retention = Retention(keep_runs, keep_days * 86400, grace_hours * 3600)
    tables = {"documents": lake.documents, "queries": lake.queries}
    plan = plan_cleaning(storage, lake.output, retention, _scorers(config), tables, time.time())
    for line in describe(lake.output, plan.deletions):
        click.echo(line)
    deleted: list[Any] = []
    complete = delete(storage, lake.output, plan, deleted.append) if apply else True
    if not complete:
        logger.warning("stopped: a job has started and may need the remaining files; run this again when it has ended")
    return {
        "applied": apply,
        "listed": _size(plan.deletions),
        "deleted": _size(deleted),
        "by_reason": dict(sorted(Counter(deletion.why for deletion in plan.deletions).items())),
        "kept_runs": list(plan.kept),
        "complete": complete,
        "seconds": round(time.monotonic() - started, 3),
    }


def _size(deletions: Iterable[Any]) -> dict[str, int]:
    sizes = [deletion.file.size for deletion in deletions]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _scorers(config: Config) -> list[str] | None:
    """The config's scorers and encoders; None, which keeps all scores, if a model's checkpoint is not there."""
    limits = resolve.limits(config.scoring)
    try:
        scorers = [resolve.model_spec(model).identify(limits) for model in config.rerankers]
        return [name for scorer in scorers for name in (scorer.fingerprint, scorer.encoder) if name]
    except CheckpointError as error:
        logger.warning("scores of all models are kept, because this config's model cannot be identified: %s", error)
        return None


def _runs_table(summary: Mapping[str, Any]) -> str:
    """A run a line; * marks the current one."""
    rows = [["", *_COLUMNS]]
    for run in summary["runs"]:
        when = str(run["when"] or "–")[:16].replace("T", " ")
        cells = [when if name == "when" else _cell(run[name]) for name in _COLUMNS]
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


@click.command(cls=Job, epilog=EPILOG, as_text=_runs_table)
@output_option
def runs(given: resolve.CommandLine, output: str | None) -> dict[str, Any]:
    """List the runs of the lake: when, whether published, current or damaged, counts, nDCG@10 where evaluated, and the
    model. Fails where no run can be said to be current, after the list."""
    lake = with_output(given, output).config.lake
    storage, current, rows, damaged = resolve.storage(lake.storage), None, [], {}
    try:
        current = (current_run(storage, lake.output) or {}).get("run_id")
    except CorruptFile as error:
        logger.error("%s", error)
        damaged = {"damaged": str(error)}
    for name in storage.list_names(join(lake.output, "runs")):
        paths = RunPaths(lake.output, name)
        manifest = {}
        try:
            manifest = read_json(storage, paths.manifest) or {}
            order, row = publication_order(manifest), _run(storage, paths, manifest)
        except (LakerankError, AttributeError, KeyError, TypeError, ValueError) as error:
            logger.warning("run %s: %s", name, error)
            order, row = publication_order({}), dict.fromkeys(_COLUMNS) | {"run_id": name, "state": "damaged"}
        rows.append((not manifest, order, str(row["when"] or ""), row | {"current": name == current}))
    rows.sort(key=lambda run: run[:3], reverse=True)  # what is not published has no number: it comes first
    return {"output": lake.output, "current": current, "runs": [row for *_, row in rows], **damaged}


def _run(storage: Storage, paths: RunPaths, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's files say of it."""
    audit = read_json(storage, join(paths.folder, "audit.json"))
    evaluation = read_json(storage, join(paths.folder, "evaluation.json")) or {}
    config = parse_settings(read_config(storage, paths) or b"{}", paths.config)
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
