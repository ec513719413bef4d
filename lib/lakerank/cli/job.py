"""What the command lines share: options, logging, exit status, the last line of standard output. Heavy imports wait."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lakerank.cli.spark_failures import told_by_spark
from lakerank.config import Config, load_config
from lakerank.errors import ConfigError, LakerankError
from lakerank.logs import LogFormat, about, log_context, start_logging

if TYPE_CHECKING:
    from lakerank.lake.storage import Storage

logger = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])

_SUMMARY = "lakerank.summary"
_LOG_FORMAT = "lakerank.log_format"

#: Exit statuses, as a scheduler reads them.
DONE, FAILED, WRONG_ARGUMENTS, NOT_PUBLISHED = 0, 1, 2, 3

EPILOG = (
    "Exit status: 0 done, 1 failed, 2 wrong arguments or config, 3 done but not published because an audit failed. "
    "Logs go to standard error; the last line of standard output is one JSON object."
)

config_option = click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Config file (YAML).",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one setting of the config; the value is read as YAML. May be given any number of times.",
)


def verbose_option(command: Command) -> Command:
    """-v, and what else every job has: --summary and --log-format."""
    log_format = click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        expose_value=False,
        callback=_keep_log_format,
        help="How to log to standard error: lines to read, or JSON objects that say run, stage and unit.",
    )
    summary = click.option(
        "--summary",
        metavar="FILE",
        expose_value=False,
        callback=_keep_summary_address,
        help="Also write the last line here, whatever the exit status: a path, or a URI of the lake's storage.",
    )
    verbose = click.option("-v", "--verbose", is_flag=True, help="Log more, libraries included.")
    return verbose(log_format(summary(command)))


def _keep_summary_address(context: click.Context, _option: click.Parameter, address: str | None) -> None:
    context.meta[_SUMMARY] = address


def _keep_log_format(context: click.Context, _option: click.Parameter, form: LogFormat) -> None:
    context.meta[_LOG_FORMAT] = form


def run_job(work: Callable[[], dict[str, Any]], verbose: bool = False) -> None:
    """Run a job's work, print its summary as the last line of standard output, and exit with its status."""
    context = click.get_current_context(silent=True)
    start_logging(context.meta.get(_LOG_FORMAT, "text") if context else "text", verbose)
    with about(**_run_of(context)):
        summary, status = _done(work, verbose)
        line = json.dumps(summary, ensure_ascii=False, allow_nan=False)
        _write_summary(line)
    sys.stdout.flush()
    click.echo(line)
    sys.exit(status)


def _done(work: Callable[[], dict[str, Any]], verbose: bool) -> tuple[dict[str, Any], int]:
    """The summary and the exit status of a job, whatever becomes of it: the last line must be JSON."""
    try:
        summary = work()
    except ConfigError as error:
        return _failure(error), WRONG_ARGUMENTS
    except LakerankError as error:
        return _failure(error), FAILED
    except KeyboardInterrupt:
        return {"error": "interrupted", "message": "stopped from the keyboard"}, FAILED
    except Exception as error:
        told = _from_worker(error) or told_by_spark(error)
        if told is None or verbose:
            _show_traceback(error)
        return _failure(error) if told is None else _told(*told), FAILED
    held_back = summary.get("published") is False and "failed_audits" in summary
    return summary, NOT_PUBLISHED if held_back else DONE


def _write_summary(line: str) -> None:
    """Write the last line where --summary says. That it cannot be written changes nothing about the job."""
    context = click.get_current_context(silent=True)
    address = context.meta.get(_SUMMARY) if context else None
    if not context or not address:
        return
    try:
        _storage_of_command(context.params).replace(address, line.encode() + b"\n")
    except Exception as error:
        click.echo(f"--summary {address}: not written: {error}", err=True)


def _storage_of_command(options: Mapping[str, Any]) -> Storage:
    """The storage of the command's config; the default one where there is no config, or a faulty one to tell about."""
    from lakerank.lake.storage import Storage

    if options.get("config_path") is None:
        return Storage()
    try:
        return storage_of(load_config(options["config_path"], options.get("overrides", ())))
    except ConfigError:
        return Storage()


def _failure(error: Exception) -> dict[str, Any]:
    return _told(type(error).__name__, str(error))


def _told(name: str, message: str) -> dict[str, Any]:
    if log_context().form == "json":
        logger.error("%s: %s", name, message)
    else:
        click.echo(f"{name}: {message}", err=True)
    return {"error": name, "message": message}


def _from_worker(error: Exception) -> tuple[str, str] | None:
    """The LakerankError of a worker, which arrives wrapped in Spark's with tracebacks around it."""
    found = re.findall(r"^lakerank\.(?:[a-z_]+\.)+([A-Z]\w*): (.*)$", str(error), flags=re.MULTILINE)
    return found[-1] if found else None


def _show_traceback(error: Exception) -> None:
    if log_context().form == "json":
        logger.error("%s", type(error).__name__, exc_info=error)
    else:
        traceback.print_exc(file=sys.stderr)


def _run_of(context: click.Context | None) -> dict[str, str]:
    """The run that a command is about, for its log lines."""
    run_id = context.params.get("run_id") if context else None
    return {"run": run_id} if run_id else {}


def storage_of(config: Config) -> Storage:
    """The object storage that the config describes."""
    from lakerank.lake.storage import Storage, StorageOptions

    return Storage(StorageOptions(**config.lake.storage.model_dump()))
