"""What the command lines share: options, logging, the last line of standard output and the exit status."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from lakerank.cli.signals import Interrupted, LastWords, end, interruptible, kill_children, take_signals
from lakerank.config import SparkConfig, bundled_config, load_config
from lakerank.credentials import StorageOptions, hide, is_secret, redacted, withheld
from lakerank.errors import ConfigError, DependencyError, LakerankError, OverdueError, requires
from lakerank.logs import about, log_context, start_logging

if TYPE_CHECKING:
    from lakerank.lake.snapshot import TableSnapshot
    from lakerank.lake.storage import Storage
    from lakerank.runner import Runner

logger = logging.getLogger(__name__)

#: Exit statuses, as a scheduler reads them.
DONE, FAILED, WRONG_ARGUMENTS, NOT_PUBLISHED = 0, 1, 2, 3

EPILOG = (
    "Exit status: 0 success, 1 failure, 2 invalid arguments or config, 3 success but not published because an audit "
    "failed, 130 or 143 interrupted. Logs go to standard error; the last line of standard output is a JSON object, "
    "whatever the exit status."
)

#: The config at hand, which every command takes where --config is absent.
AT_HAND = "lakerank.yaml"

#: The config of the last `lakerank search` here, taken where that is absent too.
LAKE_AT_HAND = "lakerank-out/lakerank.yaml"

#: As bin/java-home says it.
NO_JAVA = """\
Spark needs Java 17 or newer, and {none}. Install one, then run this again:
    Debian, Ubuntu    sudo apt-get install openjdk-17-jre-headless
    Fedora, RHEL      sudo dnf install java-17-openjdk-headless
    macOS             brew install openjdk@17
    anything else     any JDK 17, 21 or 25, with JAVA_HOME naming its folder"""


class Job(click.Command):
    """A command whose function returns a summary: the last line of standard output is that as JSON, whatever happens.

    To the function's own options it adds those that all jobs share. The function gets a `CommandLine` first, unless its
    command has no `config`. `as_text` is of commands for people: it makes of a summary what is printed where --json is
    not given; they log only warnings.
    """

    def __init__(
        self, *, params: Sequence[click.Parameter], config: Literal["required", "optional"] | None = "required",
        as_text: Callable[[dict[str, Any]], str] | None = None, **attributes: Any,
    ) -> None:  # fmt: skip
        params = [*([_CONFIG, SET] if config else []), *params, *([_JSON] if as_text else []), *_LOGGING]
        super().__init__(
            **{"epilog": EPILOG, **attributes, "params": params, "context_settings": {"show_default": True}}
        )
        self.config, self.as_text = config, as_text

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of a command line; a wrong one ends the process with the status of a usage error."""
        words = [_without_credentials(word) for word in args]
        try:
            return super().make_context(info_name, list(words), parent, **extra)
        except click.UsageError as error:
            if (self.as_text and "--json" not in words) or extra.get("resilient_parsing"):
                raise
            shown = StringIO()
            error.show(shown)
            click.echo(redacted(shown.getvalue()), nl=False, err=True)
            line = json.dumps({"error": "UsageError", "message": redacted(error.format_message())}, ensure_ascii=False)
            lenient = {"resilient_parsing": True, "ignore_unknown_options": True, "allow_extra_args": True}
            _write_summary(line, super().make_context(info_name, list(words), parent, **lenient).params)
            click.echo(line)
            sys.exit(WRONG_ARGUMENTS)

    def invoke(self, context: click.Context) -> None:
        """Run the job, and exit with its status."""
        function = cast(Callable[..., dict[str, Any]], self.callback)
        options = {name: value for name, value in context.params.items() if name not in SHARED}

        def work() -> dict[str, Any]:
            if self.config is None:
                return function(**options)
            from lakerank.cli.resolve import CommandLine
            from lakerank.lake.formats import READERS, SPARK_TABLE

            given = CommandLine.read(options.pop("config"), options.pop("overrides"))
            context.call_on_close(partial(READERS.update, {SPARK_TABLE: READERS[SPARK_TABLE]}))
            READERS[SPARK_TABLE] = partial(_spark_table, context, given.config.spark)
            return function(given, **options)

        as_text = None if context.params.get("as_json") else self.as_text
        run_job(work, as_text, quiet=self.as_text is not None and not context.params["verbose"])


def _without_credentials(word: str) -> str:
    """A word of a command line, an address without its credentials. Those of settings go where the config's do."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    setting, _, secret = value.partition("=") if option in ("", "--set") else ("", "", "")
    if is_secret(setting):
        hide(secret)
    return f"{option}{equals}{withheld(value)}" if _ADDRESS.match(value) else word


_ADDRESS = re.compile(r"[\w+.:-]+://")


def config_file(name: str) -> Path:
    """A config file, or where there is no such file the bundled config of that name."""
    file = Path(name).expanduser()
    return file if file.is_file() else bundled_config(name) or file


def _at_hand(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """The config that --config names, or else the one at hand."""
    if path is not None or context.resilient_parsing:
        return path
    path = config_at_hand()
    if path is None and getattr(context.command, "config", None) == "required":
        raise click.UsageError(
            f"no --config, and no {AT_HAND} in {Path.cwd()}: name one (`--config demo` is bundled), or let "
            "`lakerank init FOLDER --queries FILE` write it",
            context,
        )
    return path


def config_at_hand() -> Path | None:
    """The config that every command here takes where none is named, if there is one."""
    return next((Path(file) for file in (AT_HAND, LAKE_AT_HAND) if Path(file).is_file()), None)


_CONFIG = click.Option(
    ["--config"], type=config_file, metavar="FILE", callback=_at_hand,
    help=f"Config file (YAML), or the name of a bundled one, such as demo.  [default: ./{AT_HAND}, if it is there]",
)  # fmt: skip
SET = click.Option(
    ["--set", "overrides"], multiple=True, metavar="SECTION.KEY=VALUE",
    help="Override a setting of the config; the value is YAML. May be repeated.",
)  # fmt: skip
_JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print one line of JSON instead of text.")
other_tables_option = click.option(
    "--other-tables", is_flag=True,
    help="Let --set name other tables than those that the run was made from. Judgements (lake.qrels) need no leave.",
)  # fmt: skip
#: Options of every job that concern its output alone, and are not given to its function.
SHARED = ("summary", "log_format", "verbose", "as_json")
_LOGGING = [
    click.Option(
        ["--log-format"], type=click.Choice(["text", "json"]), default="text",
        help="Format of the log on standard error: plain lines, or JSON objects with run, stage and unit.",
    ),
    click.Option(
        ["--summary"], metavar="FILE",
        help="Also write the last line to this path or URI of the lake's storage, whatever the exit status.",
    ),
    click.Option(["-v", "--verbose"], is_flag=True, help="Log more, libraries included."),
]  # fmt: skip


def run_job(
    work: Callable[[], dict[str, Any]], as_text: Callable[[dict[str, Any]], str] | None = None, quiet: bool = False
) -> None:
    """Run a job's work, print its summary as the last line of standard output, and exit with its status.

    With `as_text` a summary is printed as that text, and failures only to standard error. A `quiet` job logs only
    warnings.
    """
    context, started = click.get_current_context(silent=True), time.monotonic()
    parameters: Mapping[str, Any] = context.params if context else {}
    verbose, run_id = parameters.get("verbose", False), parameters.get("run_id")
    start_logging(parameters.get("log_format", "text"), verbose)
    if quiet:
        logging.getLogger("lakerank").setLevel(logging.WARNING)

    def print_last_line(summary: dict[str, Any]) -> None:
        line = json.dumps(summary, ensure_ascii=False, allow_nan=False)
        _write_summary(line, parameters)
        sys.stdout.flush()
        if as_text is None or "error" not in summary:
            click.echo(line if as_text is None else as_text(summary))

    def say(interruption: Interrupted) -> None:
        done = context.meta.get(_DONE, dict) if context else dict
        print_last_line(_interrupted(interruption, run_id, time.monotonic() - started, done))

    last_words = LastWords(say)
    with about(**{"run": run_id} if run_id else {}):
        try:
            with interruptible(last_words):
                summary, status = _outcome(work, verbose)
        except (Interrupted, KeyboardInterrupt) as signal:  # the latter is Spark's, while a session is starting
            interruption = signal if isinstance(signal, Interrupted) else Interrupted(SIGINT, "")
            kill_children()
            last_words(interruption)
            sys.exit(interruption.status)
        print_last_line(summary)
    backends = sys.modules.get("lakerank.lake.backends")
    if summary.get("error") == OverdueError.__name__ or (backends is not None and backends.transfers_left()):
        end(status)  # threads that wait for ever would be waited for, or crash the interpreter that ends
    sys.exit(status)


_DONE = "lakerank.done"


def when_interrupted(done: Callable[[], dict[str, Any]]) -> None:
    """Let the summary of the running job, if SIGINT or SIGTERM ends it, say what `done` returns."""
    click.get_current_context().meta[_DONE] = done


def _interrupted(
    interruption: Interrupted, run_id: str | None, seconds: float, done: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The summary of an interrupted job, after a line on standard error."""
    stage = f" (stage {interruption.stage})" if interruption.stage else ""
    message = f"by {interruption.name} after {seconds:.1f} s{stage}; the same command goes on from what is finished"
    summary = _report("interrupted", message) | {"interrupted": True, "signal": interruption.name}
    summary |= {"stage": interruption.stage or None, "seconds": round(seconds, 3)}
    with suppress(Exception):  # the lake may be what the job was waiting for
        summary |= done()
    return summary | ({"run_id": run_id} if run_id else {})


@contextmanager
def job_runner(config: SparkConfig, is_small: Callable[[], bool]) -> Iterator[Runner]:
    """Where a job's tasks run: in this process (see `needs_no_spark`), else in Spark.

    Raises:
        DependencyError: there is no Java, or no pyspark.
    """
    from lakerank.runner import LocalRunner, available_cores

    if needs_no_spark(config, is_small):
        logger.info("small tables: running in this process, without Spark")
        cores = re.search(r"\d+", str(config.conf.get("spark.master", "")))
        yield LocalRunner(int(cores[0]) if cores else available_cores())
        return
    with spark_session(config) as spark:
        from lakerank.spark.runtime.runner import SparkRunner

        yield SparkRunner(spark)


def needs_no_spark(config: SparkConfig, is_small: Callable[[], bool]) -> bool:
    """Whether a job's tables are small, and nobody has chosen a Spark.

    Under spark-submit, in a session that is there, where the config names a cluster and where `spark.local_pairs` is 0
    it is Spark, whatever the size.
    """
    return not (_has_session() or on_cluster(config)) and config.local_pairs > 0 and is_small()


@contextmanager
def spark_session(config: SparkConfig) -> Iterator[Any]:
    """A Spark session, stopped at the end of the block unless it was there before.

    Raises:
        DependencyError: there is no Java, or no pyspark.
    """
    if "PYSPARK_GATEWAY_PORT" not in os.environ and not _has_session():
        check_java()
    with requires("spark"):
        from lakerank.spark.runtime import session
    shared = session.is_shared()
    logger.info("joining a Spark session" if shared else "starting Spark")
    try:
        spark = session.start(config.app_name, config.conf, config.partitions)
    except Exception as error:
        if "JAVA_GATEWAY_EXITED" in str(error):
            none = "the one found did not start (its own words are above)"
            raise DependencyError(NO_JAVA.format(none=none)) from error
        raise
    take_signals()  # Spark has set a handler of its own
    stopping: AbstractContextManager[None] = nullcontext()
    try:
        yield spark
    except Interrupted:
        stopping = suppress(Exception)  # a call that was cut short leaves the JVM's answers out of step with the calls
        with suppress(Exception):  # what tasks say of being stopped is of no use to anyone
            spark.sparkContext.setLogLevel("OFF")
        raise
    finally:
        with stopping:
            session.leave(spark, shared)


def _spark_table(context: click.Context, config: SparkConfig, storage: Storage, address: str) -> TableSnapshot:
    """A table of Spark's catalogs, in a session that lasts until the job ends.

    Raises:
        DependencyError: there is no Java, or no pyspark.
        StorageError: Spark cannot read the table.
    """
    spark = context.with_resource(spark_session(config))
    from lakerank.spark.tables import snapshot

    return snapshot(spark, storage, address)


def _has_session() -> bool:
    """Whether this process has a Spark session, found without an import of pyspark."""
    pyspark = sys.modules.get("pyspark")
    return pyspark is not None and pyspark.SparkContext._active_spark_context is not None


def on_cluster(config: SparkConfig) -> bool:
    """Whether Spark is somewhere else, where its tasks may run on other machines than this one."""
    elsewhere = {"PYSPARK_GATEWAY_PORT", "MASTER", "SPARK_REMOTE"} & os.environ.keys()
    return bool(elsewhere) or not re.fullmatch(r"local(\[.*\])?", str(config.conf.get("spark.master", "local")))


def check_java() -> None:
    """Raise DependencyError, which says how to get one, if Spark would find no Java to start."""
    home = os.environ.get("JAVA_HOME")
    if not shutil.which("java", path=str(Path(home) / "bin") if home else None):
        none = f"JAVA_HOME={home} has no bin/java" if home else "none was found"
        raise DependencyError(NO_JAVA.format(none=none))


def _outcome(work: Callable[[], dict[str, Any]], verbose: bool) -> tuple[dict[str, Any], int]:
    """Summary and exit status of a job, also of one that fails: the last line must be JSON."""
    try:
        summary = work()
    except ConfigError as error:
        return _report(type(error).__name__, str(error)), WRONG_ARGUMENTS
    except LakerankError as error:
        return _report(type(error).__name__, str(error)), FAILED
    except Exception as error:
        from lakerank.spark.runtime.crash import spark_failure

        cause = spark_failure(error)
        if cause is None or verbose:
            if log_context().form == "json":
                logger.error("%s", type(error).__name__, exc_info=error)
            else:
                click.echo(redacted(traceback.format_exc()), nl=False, err=True)
        return _report(*(cause or (type(error).__name__, str(error)))), FAILED
    if "damaged" in summary:
        return summary, FAILED
    # A run that passed, or was published anyway, and is not current because a later one is, is done.
    audit_failed = (
        summary.get("published") is False and bool(summary.get("failed_audits")) and not summary.get("superseded_by")
    )
    return summary, NOT_PUBLISHED if audit_failed else DONE


def _write_summary(line: str, parameters: Mapping[str, Any]) -> None:
    """Write the last line where --summary says. A failure to write it changes nothing about the job."""
    address, path = parameters.get("summary"), parameters.get("config")
    if address is None:
        return
    from lakerank.cli import resolve

    config = StorageOptions()
    try:
        with suppress(ConfigError):  # a config that has faults: default storage
            config = load_config(path, parameters.get("overrides", ())).lake.storage if path else config
        resolve.storage(config).replace(address, line.encode() + b"\n")
    except Exception as error:
        click.echo(redacted(f"--summary {address}: not written: {error}"), err=True)


def _report(name: str, message: str) -> dict[str, Any]:
    """Log an error; returns the summary of the failed job."""
    message = redacted(message)
    if log_context().form == "json":
        logger.error("%s: %s", name, message)
    else:
        click.echo(f"{name}: {message}", err=True)
    return {"error": name, "message": message}
