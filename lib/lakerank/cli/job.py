"""What the command lines share: options, logging, the last line of standard output and the exit status."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from lakerank.config import SparkConfig, StorageConfig, bundled_config, load_config
from lakerank.errors import ConfigError, LakerankError
from lakerank.logs import about, log_context, start_logging

logger = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])

#: Exit statuses, as a scheduler reads them.
DONE, FAILED, WRONG_ARGUMENTS, NOT_PUBLISHED = 0, 1, 2, 3

EPILOG = (
    "Exit status: 0 success, 1 failure, 2 invalid arguments or config, 3 success but not published because an audit "
    "failed. Logs go to standard error; the last line of standard output is a JSON object."
)


class ConfigFile(click.Path):
    """A config file, or the name of a bundled config where there is no such file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path of the file."""
        bundled = None if Path(value).is_file() else bundled_config(str(value))
        return super().convert(bundled or value, param, ctx)


CONFIG_FILE = ConfigFile(dir_okay=False, path_type=Path)

config_option = click.option(
    "--config", "config_path", required=True, type=CONFIG_FILE, metavar="FILE",
    help="Config file (YAML), or the name of a bundled one, such as demo.",
)  # fmt: skip
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
    help="Override a setting of the config; the value is YAML. May be repeated.",
)  # fmt: skip


def verbose_option(command: Command) -> Command:
    """The options of every job: -v, --summary and --log-format."""

    def keep(context: click.Context, option: click.Parameter, value: str | None) -> None:
        context.meta[f"lakerank.{option.name}"] = value

    log_format = click.option(
        "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, expose_value=False,
        callback=keep,
        help="Format of the log on standard error: plain lines, or JSON objects with run, stage and unit.",
    )  # fmt: skip
    summary = click.option(
        "--summary", metavar="FILE", expose_value=False, callback=keep,
        help="Also write the last line to this path or URI of the lake's storage, whatever the exit status.",
    )  # fmt: skip
    verbose = click.option("-v", "--verbose", is_flag=True, help="Log more, libraries included.")
    return verbose(log_format(summary(command)))


def run_job(work: Callable[[], dict[str, Any]], verbose: bool = False) -> None:
    """Run a job's work, print its summary as the last line of standard output, and exit with its status."""
    context = click.get_current_context(silent=True)
    start_logging(context.meta.get("lakerank.log_format", "text") if context else "text", verbose)
    run_id = context.params.get("run_id") if context else None
    with about(**{"run": run_id} if run_id else {}):
        summary, status = _outcome(work, verbose)
        line = json.dumps(summary, ensure_ascii=False, allow_nan=False)
        _write_summary(line)
    sys.stdout.flush()
    click.echo(line)
    sys.exit(status)


@contextmanager
def spark_session(config: SparkConfig) -> Iterator[Any]:
    """A Spark session, stopped at the end of the block."""
    from lakerank.spark.runtime import session

    logger.info("starting Spark")
    spark = session.start(config.app_name, config.conf, config.partitions)
    try:
        yield spark
    finally:
        spark.stop()


def _outcome(work: Callable[[], dict[str, Any]], verbose: bool) -> tuple[dict[str, Any], int]:
    """Summary and exit status of a job, also of one that fails: the last line must be JSON."""
    try:
        summary = work()
    except ConfigError as error:
        return _report(type(error).__name__, str(error)), WRONG_ARGUMENTS
    except LakerankError as error:
        return _report(type(error).__name__, str(error)), FAILED
    except KeyboardInterrupt:
        return {"error": "interrupted", "message": "stopped from the keyboard"}, FAILED
    except Exception as error:
        cause = _worker_error(error) or spark_failure(error)
        if cause is None or verbose:
            if log_context().form == "json":
                logger.error("%s", type(error).__name__, exc_info=error)
            else:
                traceback.print_exc(file=sys.stderr)
        return _report(*(cause or (type(error).__name__, str(error)))), FAILED
    audit_failed = summary.get("published") is False and "failed_audits" in summary
    return summary, NOT_PUBLISHED if audit_failed else DONE


def _write_summary(line: str) -> None:
    """Write the last line where --summary says. A failure to write it changes nothing about the job."""
    context = click.get_current_context(silent=True)
    address = context.meta.get("lakerank.summary") if context else None
    if not context or not address:
        return
    from lakerank.cli import resolve

    config_path, storage_config = context.params.get("config_path"), StorageConfig()
    try:
        if config_path is not None:
            with suppress(ConfigError):  # a config that has faults: default storage
                storage_config = load_config(config_path, context.params.get("overrides", ())).lake.storage
        resolve.storage(storage_config).replace(address, line.encode() + b"\n")
    except Exception as error:
        click.echo(f"--summary {address}: not written: {error}", err=True)


def _report(name: str, message: str) -> dict[str, Any]:
    """Log an error; returns the summary of the failed job."""
    if log_context().form == "json":
        logger.error("%s: %s", name, message)
    else:
        click.echo(f"{name}: {message}", err=True)
    return {"error": name, "message": message}


def _worker_error(error: Exception) -> tuple[str, str] | None:
    """Name and message of a worker's LakerankError, which Spark wraps in tracebacks of its own."""
    errors = re.findall(r"^lakerank\.(?:[a-z_]+\.)+([A-Z]\w*): (.*)$", str(error), flags=re.MULTILINE)
    return errors[-1] if errors else None


_CAUSE = re.compile(r"^(?:Caused by: |: )?(?:[\w$]+\.)+([A-Z]\w*(?:Exception|Error)): (.+)$", re.MULTILINE)
_STAGE = re.compile(r"Job aborted due to stage failure: (.+)")

#: What to do about a cause that a Spark error message contains.
_ADVICE = {
    "No space left on device": "the disk under Spark's local folders is full (spark.local.dir or SPARK_LOCAL_DIRS): "
    "free space there or name other folders",
    "Python worker exited unexpectedly": "a Python worker was killed, most often for lack of memory: give executors "
    "more (spark.executor.memoryOverhead), or lower scoring.max_length; on a cluster spark.task.maxFailures lets Spark "
    "try again",
    "OutOfMemoryError": "Java ran out of memory: raise spark.driver.memory or spark.executor.memory",
    "ExecutorLostFailure": "executors were lost: the cluster manager's log has the reason, most often memory "
    "(spark.executor.memoryOverhead)",
}


def spark_failure(error: Exception) -> tuple[str, str] | None:
    """Name and a short message of a Spark failure, whose own text fills pages; None for any other error."""
    text = str(error)
    stage = _STAGE.search(text)
    causes = _CAUSE.findall(text)
    if stage is None and not causes:
        return None
    for sign, advice in _ADVICE.items():
        if sign in text:
            return "SparkFailure", f"{sign}: {advice}; then run the same command again, finished units are kept"
    if "Traceback (most recent call last)" in text:  # a fault of Python code, which needs all of it
        return None
    name, message = causes[-1] if causes else ("SparkFailure", stage[1] if stage else "")
    return name, f"{message.strip()[:300]} (Spark's whole message: run again with -v)"
